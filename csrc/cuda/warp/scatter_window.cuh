// Sums that neighbouring threads scatter to neighbouring pixels: a block adds them up in a window in shared memory and
// then adds the window to memory, one atomic for each pixel that was touched instead of one for each tap.
//
// A tile of 32 x 32 pixels of a smooth flow lands in a window of about 36 x 36: 1.3 atomics a pixel and channel instead
// of 4. An addition in shared memory is a loop of compare-and-swap (there is no instruction that adds floats): seven
// instructions where nobody else adds to the place meanwhile. Where the window would not fit, the block adds to memory.
#pragma once

#include "warp/warp_tiles.cuh"

namespace cosegflow::warp_cuda {

constexpr int kScatterSide = 32;                                        // of a tile
constexpr int kScatterPixels = kScatterSide * kScatterSide / kThreads;  // of a thread
template <class A>
constexpr int kWindowElements = static_cast<int>(36 * 1024 / sizeof(A));

// The pixels of an image that taps of a block's pixels touch.
struct Box {
  int left = INT32_MAX, right = -1, top = INT32_MAX, bottom = -1;

  template <class A>
  __device__ __forceinline__ void add(const WarpPoint<A>& point, int width, int height) {
    const int next = point.nearest ? 0 : 1;
    const bool lands = point.finite && point.x0 >= -next && point.x0 < width && point.y0 >= -next && point.y0 < height;
    if (!lands) return;
    left = min(left, max(point.x0, 0)), right = max(right, min(point.x0 + next, width - 1));
    top = min(top, max(point.y0, 0)), bottom = max(bottom, min(point.y0 + next, height - 1));
  }
};

// Of all threads of the block, which all must call it.
__device__ __forceinline__ Box block_box(Box box) {
  constexpr int kWarps = kThreads / 32;
  using Boxes = int[kWarps][4];
  CSF_SHARED(Boxes, boxes);
#pragma unroll
  for (int apart = 16; apart > 0; apart /= 2) {
    box.left = min(box.left, __shfl_xor_sync(kWholeWarp, box.left, apart));
    box.right = max(box.right, __shfl_xor_sync(kWholeWarp, box.right, apart));
    box.top = min(box.top, __shfl_xor_sync(kWholeWarp, box.top, apart));
    box.bottom = max(box.bottom, __shfl_xor_sync(kWholeWarp, box.bottom, apart));
  }
  if (threadIdx.x % 32 == 0) {
    int (&mine)[4] = boxes[threadIdx.x / 32];
    mine[0] = box.left, mine[1] = box.right, mine[2] = box.top, mine[3] = box.bottom;
  }
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    box.left = min(box.left, boxes[w][0]), box.right = max(box.right, boxes[w][1]);
    box.top = min(box.top, boxes[w][2]), box.bottom = max(box.bottom, boxes[w][3]);
  }
  return box;
}

// Where the taps of a point that are inside lie in planes with these steps.
template <class A>
__device__ __forceinline__ void tap_places(const WarpPoint<A>& point, const TapGeometry& image, int left, int top,
                                           int step_y, int step_x, int (&place)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    int x = point.x0 + (k & 1), y = point.y0 + (k >> 1);
    if (image.border) x = min(x, image.width - 1), y = min(y, image.height - 1);
    place[k] = (y - top) * step_y + (x - left) * step_x;
  }
}

// The window of a block: `channels` planes of width x height sums, or nothing where they do not fit.
template <class A>
struct ScatterWindow {
  A* sums;  // in shared memory
  int left, top, width, height;
  bool fits;

  __device__ __forceinline__ ScatterWindow(A* memory, const Box& box, int channels)
      : sums(memory), left(box.left), top(box.top), width(box.right - box.left + 1), height(box.bottom - box.top + 1) {
    if (box.right < 0) left = top = width = height = 0;  // nothing is touched
    fits = static_cast<int64_t>(width) * height * channels <= kWindowElements<A>;
    if (!fits) return;
    for (int i = static_cast<int>(threadIdx.x); i < width * height * channels; i += kThreads) sums[i] = A(0);
  }

  __device__ __forceinline__ int plane() const { return width * height; }

  // Adds the window to `to`, the first channel of an image: a warp a row. After a barrier.
  __device__ __forceinline__ void add_to(A* to, int64_t step_channel, int step_y, int step_x, int channels) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    for (int c = 0; c < channels; ++c, to += step_channel) {
      for (int y = warp; y < height; y += kThreads / 32) {
        for (int x = lane; x < width; x += 32) {
          const A sum = sums[c * plane() + y * width + x];
          if (sum != A(0)) atomicAdd(to + ((top + y) * step_y + (left + x) * step_x), sum);
        }
      }
    }
  }
};

}  // namespace cosegflow::warp_cuda

// warp's forward on CUDA for planes (NCHW) of halves: where two bytes are read at a time, the instructions are the
// limit, not the memory. So x goes through shared memory with 8 channels of a pixel side by side.
//
// A block has a tile of 32 x 16 output pixels, a thread two of them, and a run of channels. It finds the window of x
// that the tile reads, border or zeros included. For 8 channels at a time it
//   loads the window, 8 bytes (4 pixels of a plane) at a time, and writes it as 16 bytes a pixel (channels last), in an
//   order in which writes do not meet in a bank, and reads of neighbours seldom more than two;
//   reads 16 bytes a tap, forms the sums in float32, and stores two bytes a channel, coalesced over pixels.
// Four blocks a multiprocessor: while one waits for its loads, others compute. Where the window does not fit, the block
// does as warp_forward_planes_kernel.
// 62 registers, 20 KB of shared memory. Counted for a channel of 32 pixels and a smooth flow: 21 instructions and 5
// passes of the load and store unit; warp_forward_planes_kernel has 26 and 7, if a tap of 32 neighbours costs 1.5
// passes. Time not measured yet.
#pragma once

#include "warp/scatter_window.cuh"
#include "warp/warp_forward_kernels.cuh"

namespace cosegflow::warp_cuda {

constexpr int kWindowTileHeight = 2 * kRows;
constexpr int kWindowPixels = 1280;  // 20 KB
constexpr int kWindowChannels = 8;   // at once: 16 bytes a pixel

// Where a pixel of the window lies: 8 threads that write every fourth pixel, or read neighbours, meet 8 places of 16
// bytes.
__device__ __forceinline__ int window_place(int pixel) { return pixel ^ ((pixel >> 3) & 3); }

// The window of x of a block: rows of `pitch` pixels, a multiple of 8, from a multiple of 4 on.
struct SourceWindow {
  int left, top, pitch, height;
  bool fits;
};

// From the upper left taps of the block's pixels: no tap is clamped.
__device__ __forceinline__ SourceWindow source_window(const Box& taps) {
  if (taps.right < taps.left) return {0, 0, 8, 0, true};  // no rows
  const int left = taps.left & ~3;
  const int pitch = (taps.right + 1 - left + 8) & ~7, height = taps.bottom + 2 - taps.top;
  return {left, taps.top, pitch, height, static_cast<int64_t>(pitch) * height <= kWindowPixels};
}

// Four neighbouring pixels of 8 planes to the window, channels last. `place` is that of the first; the others follow by
// its last two bits.
template <class T>
__device__ __forceinline__ void copy_quad(uint4* window, int place, const T* from, int64_t step) {
  uint2 word[kWindowChannels];
#pragma unroll
  for (int c = 0; c < kWindowChannels; ++c, from += step) word[c] = *reinterpret_cast<const uint2*>(from);
  const auto low = [](uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); };  // their lower halves
  const auto high = [](uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); };
  window[place] = make_uint4(low(word[0].x, word[1].x), low(word[2].x, word[3].x), low(word[4].x, word[5].x),
                             low(word[6].x, word[7].x));
  window[place ^ 1] = make_uint4(high(word[0].x, word[1].x), high(word[2].x, word[3].x), high(word[4].x, word[5].x),
                                 high(word[6].x, word[7].x));
  window[place ^ 2] = make_uint4(low(word[0].y, word[1].y), low(word[2].y, word[3].y), low(word[4].y, word[5].y),
                                 low(word[6].y, word[7].y));
  window[place ^ 3] = make_uint4(high(word[0].y, word[1].y), high(word[2].y, word[3].y), high(word[4].y, word[5].y),
                                 high(word[6].y, word[7].y));
}

// Four pixels beyond x: zeros, or the pixel at `last` four times.
template <class T>
__device__ __forceinline__ void fill_quad(uint4* window, int place, const T* last, int64_t step) {
  uint32_t word[kWindowChannels / 2] = {};
  if (last != nullptr) {
#pragma unroll
    for (int c = 0; c < kWindowChannels; ++c, last += step) {
      word[c / 2] |= static_cast<uint32_t>(last->bits) << (c % 2 * 16);
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) window[place ^ j] = make_uint4(word[0], word[1], word[2], word[3]);
}

// The same for the whole window, by the block.
template <class T>
__device__ __forceinline__ void copy_window(const WarpParams& p, const SourceWindow& source, uint4* window,
                                            const T* planes) {
  const int width = static_cast<int>(p.width), height = static_cast<int>(p.height);
  const int quads = source.pitch / 4, row_step = kThreads / quads, quad_step = kThreads % quads;
  const bool border = p.padding == WarpPadding::kBorder;
#pragma unroll 1
  for (int row = static_cast<int>(threadIdx.x) / quads, quad = static_cast<int>(threadIdx.x) % quads;
       row < source.height;) {
    const int y = border ? min(source.top + row, height - 1) : source.top + row, x = source.left + quad * 4;
    const int place = window_place(row * source.pitch + quad * 4);
    const T* const line = planes + y * static_cast<int>(p.x.stride[2]);
    if (y >= 0 && y < height && x >= 0 && x < width) {
      copy_quad(window, place, line + x, p.x.stride[1]);
    } else {
      fill_quad(window, place, border ? line + (width - 1) : nullptr, p.x.stride[1]);
    }
    row += row_step, quad += quad_step;
    if (quad >= quads) quad -= quads, ++row;
  }
}

template <class T>
__device__ __forceinline__ void sample_window(const uint4* window, const int (&place)[4], const float (&weight)[4],
                                              T* to, int64_t step) {
  float v[4][kWindowChannels];
#pragma unroll
  for (int k = 0; k < 4; ++k) load_vector(reinterpret_cast<const T*>(window + place[k]), v[k]);
#pragma unroll
  for (int c = 0; c < kWindowChannels; ++c, to += step) {
    *to = from_float<T>(blend<float>(weight, v[0][c], v[1][c], v[2][c], v[3][c]));
  }
}

// T is Half or BFloat16; bilinear; channels in eights; rows of x are contiguous and, like planes and images, begin
// at 8 bytes.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) warp_forward_window_kernel(WarpParams p, TileGrid grid, int run) {
  constexpr int kPixels = kWindowTileHeight / kRows;
  using Window = uint4[kWindowPixels + 1];
  CSF_SHARED(Window, window);  // the last pixel is 0, for points that read nothing
  const int thread = static_cast<int>(threadIdx.x);
  const TilePixel first = pixel_of_thread(grid);
  const int64_t first_channel = static_cast<int64_t>(blockIdx.y) * run;
  int channels = static_cast<int>(p.channels - first_channel < run ? p.channels - first_channel : run);

  float weight[kPixels][4];
  int x0[kPixels], y0[kPixels];
  bool lands[kPixels], exists[kPixels];
  Box box;
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int row = min(first.row + i * kRows, grid.height - 1);
    exists[i] = first.exists && first.row + i * kRows < grid.height;
    const WarpPoint<float> point = point_of_pixel<float>(p, first.b, row, first.column);
    if (p.valid.data != nullptr && blockIdx.y == 0 && exists[i]) {
      write_valid(p, first.b, row, first.column, point.valid);
    }
    x0[i] = point.x0, y0[i] = point.y0;
    lands[i] = point.finite && x0[i] >= -1 && x0[i] < static_cast<int>(p.width) && y0[i] >= -1 &&
               y0[i] < static_cast<int>(p.height);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      weight[i][k] = ((k & 1) ? point.wx : 1.0f - point.wx) * ((k >> 1) ? point.wy : 1.0f - point.wy);
    }
    if (!lands[i]) continue;
    box.left = min(box.left, x0[i]), box.right = max(box.right, x0[i]);
    box.top = min(box.top, y0[i]), box.bottom = max(box.bottom, y0[i]);
  }
  const SourceWindow source = source_window(block_box(box));
  const T* x = plane_of<const T>(p.x, first.b, first_channel);
  T* out = plane_of<T>(p.out, first.b, first_channel) + place_of(p.out, first.row, first.column);
  const int64_t below = kRows * p.out.stride[2];
  if (!source.fits) {
#pragma unroll 1
    for (int i = 0; i < kPixels; ++i) {
      const int row = min(first.row + i * kRows, grid.height - 1);
      const PixelTaps<float> taps = pixel_taps(point_of_pixel<float>(p, first.b, row, first.column), p);
      sample_run<false, 4>(taps, x, p.x.stride[1], out + i * below, p.out.stride[1], channels,
                           first.exists && first.row + i * kRows < grid.height);
    }
    return;
  }
  int place[kPixels][4];
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int pixel = (y0[i] - source.top) * source.pitch + (x0[i] - source.left);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      place[i][k] = lands[i] ? window_place(pixel + (k & 1) + (k >> 1) * source.pitch) : kWindowPixels;
    }
  }
  if (thread == 0) window[kWindowPixels] = make_uint4(0, 0, 0, 0);

#pragma unroll 1
  for (; channels > 0; channels -= kWindowChannels) {
    copy_window(p, source, window, x);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      if (exists[i]) sample_window(window, place[i], weight[i], out + i * below, p.out.stride[1]);
    }
    x += kWindowChannels * p.x.stride[1], out += kWindowChannels * p.out.stride[1];
    __syncthreads();
  }
}

}  // namespace cosegflow::warp_cuda

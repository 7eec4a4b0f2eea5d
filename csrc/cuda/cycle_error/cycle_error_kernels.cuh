// cycle_error on CUDA.
//
// Forward: a block has a tile of 32 x 8 pixels of a, a thread one of them. It reads flow_ab (coalesced), forms the four
//   taps in registers, reads both channels of flow_ba at them (8 loads, near each other where flow_ab is smooth) and
//   writes the length and whether it is valid. The flow carried back is never stored. About 250 instructions a pixel.
//   Must move, in float32: 8 bytes of each flow per pixel + 5 written per pixel of a.
// Backward: computes the same again, which costs less than storing it. A block has a tile of 32 x 32 pixels, a thread
//   four of them in a column. The gradient to flow_ab is written; the shares of flow_ba's are summed up in a window in
//   shared memory (warp/scatter_window.cuh, 36 KB), which goes to memory at the end. About 560 instructions a pixel.
//   Must move: 8 bytes of each flow read, 8 of each gradient written, 4 of the incoming one read per pixel.
// Deterministic backward: the same kernel leaves the gradients of the samples, and where they were read (NaN where
//   nothing was), in the workspace; they are gathered as warp's gradient is (warp/warp_gather_kernels.cuh).
// Time not measured yet.
#pragma once

#include "common/cycle_error_math.h"
#include "warp/scatter_window.cuh"

namespace cosegflow::cycle_cuda {

using namespace warp_cuda;

// A pixel with what it read of flow_ba: channel by tap.
template <class A>
struct TappedPixel : CycleSum<A> {
  PixelTaps<A> taps;
  A read[2][4];
};

template <class T>
__device__ __forceinline__ WarpPoint<accumulate_t<T>> cycle_point(const CycleErrorParams& p, int64_t b, int row,
                                                                  int column, accumulate_t<T>& ab_x,
                                                                  accumulate_t<T>& ab_y) {
  const T* ab = plane_of<const T>(p.flow_ab, b, 0) + place_of(p.flow_ab, row, column);
  ab_x = to_float(ab[0]), ab_y = to_float(ab[p.flow_ab.stride[1]]);
  using A = accumulate_t<T>;
  return warp_point_of(ab_x, ab_y, static_cast<A>(column), static_cast<A>(row),
                       static_cast<A>(static_cast<int>(p.width_b) - 1),
                       static_cast<A>(static_cast<int>(p.height_b) - 1), WarpMode::kBilinear, WarpPadding::kBorder);
}

__device__ __forceinline__ TapGeometry target_geometry(const CycleErrorParams& p) {
  return {static_cast<int>(p.width_b), static_cast<int>(p.height_b), static_cast<int>(p.flow_ba.stride[2]),
          static_cast<int>(p.flow_ba.stride[3]), true};
}

template <class T>
__device__ __forceinline__ TappedPixel<accumulate_t<T>> tapped_pixel(const CycleErrorParams& p, int64_t b, int row,
                                                                     int column) {
  using A = accumulate_t<T>;
  TappedPixel<A> pixel;
  A ab_x, ab_y;
  pixel.point = cycle_point<T>(p, b, row, column, ab_x, ab_y);
  pixel.taps = pixel_taps(pixel.point, target_geometry(p));
  pixel.x = pixel.y = pixel.length = A(0);
  pixel.valid = pixel.point.valid;
  const T* ba = plane_of<const T>(p.flow_ba, b, 0);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      pixel.read[c][k] =
          pixel.valid ? static_cast<A>(to_float(ba[pixel.taps.offset[k] + c * p.flow_ba.stride[1]])) : A(0);
    }
  }
  if (!pixel.valid) return pixel;
  const auto sample = [&](const A(&v)[4]) { return blend<A>(pixel.taps.weight, v[0], v[1], v[2], v[3]); };
  add_way_back<A>(pixel, ab_x, ab_y, sample(pixel.read[0]), sample(pixel.read[1]));
  return pixel;
}

template <class A>
__device__ __forceinline__ BackSlopes<A> slopes_of(const TappedPixel<A>& pixel) {
  const WarpPoint<A>& at = pixel.point;
  const auto across = [&](const A(&v)[4]) { return at.dx * ((v[1] - v[0]) * (A(1) - at.wy) + (v[3] - v[2]) * at.wy); };
  const auto down = [&](const A(&v)[4]) { return at.dy * ((v[2] - v[0]) * (A(1) - at.wx) + (v[3] - v[1]) * at.wx); };
  return {across(pixel.read[0]), down(pixel.read[0]), across(pixel.read[1]), down(pixel.read[1])};
}

template <class T>
__device__ __forceinline__ T* place_in(const View3& view, int64_t b, int row, int column) {
  return static_cast<T*>(view.data) + b * view.stride[0] + row * view.stride[1] + column * view.stride[2];
}

template <class T>
__global__ void __launch_bounds__(kThreads) cycle_error_forward_kernel(CycleErrorParams p, TileGrid grid) {
  using A = accumulate_t<T>;
  const TilePixel at = pixel_of_thread(grid);
  const TappedPixel<A> pixel = tapped_pixel<T>(p, at.b, at.row, at.column);
  if (!at.exists) return;
  *place_in<A>(p.error, at.b, at.row, at.column) = pixel.length;
  if (p.valid.data != nullptr) *place_in<bool>(p.valid, at.b, at.row, at.column) = pixel.valid;
}

// What the deterministic way keeps of each pixel of a, (B, 2, Ha, Wa) each; null elsewhere.
template <class A>
struct KeptSamples {
  A* flow;  // flow_ab; NaN where no gradient reaches flow_ba
  A* grad;  // of the sample
};

// grad_ba is 0 before, where it is wanted and nothing is kept.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    cycle_error_backward_kernel(CycleErrorParams p, TileGrid grid, KeptSamples<accumulate_t<T>> kept) {
  using A = accumulate_t<T>;
  // Named, since nvcc's host pass takes a variable template in the extent of an array for no constant.
  constexpr int kElements = kWindowElements<A>;
  using Memory = A[kElements];
  CSF_SHARED(Memory, memory);
  const Tile tile = tile_of_block(grid);
  const int column = tile.column + static_cast<int>(threadIdx.x % kScatterSide);
  const int first_row = tile.row + static_cast<int>(threadIdx.x / kScatterSide);
  const int end_row = column < grid.width ? min(tile.row + kScatterSide, grid.height) : 0;
  const int width = static_cast<int>(p.width_b), height = static_cast<int>(p.height_b);
  const bool scatters = p.grad_ba.data != nullptr && kept.flow == nullptr;

  Box box;
  if (scatters) {
#pragma unroll
    for (int i = 0; i < kScatterPixels; ++i) {
      const int row = first_row + i * kRows;
      if (row >= end_row) break;
      A ab_x, ab_y;
      const WarpPoint<A> point = cycle_point<T>(p, tile.b, row, column, ab_x, ab_y);
      if (point.valid) box.add(point, width, height);
    }
    box = block_box(box);
  }
  const ScatterWindow<A> window(memory, box, 2);
  __syncthreads();

  const int plane = width * height;
  A* const grad_ba = static_cast<A*>(p.grad_ba.data) + tile.b * 2 * plane;
  const int64_t plane_a = static_cast<int64_t>(grid.width) * grid.height;
#pragma unroll 1
  for (int row = first_row; row < end_row; row += kRows) {
    const TappedPixel<A> pixel = tapped_pixel<T>(p, tile.b, row, column);
    A grad_x, grad_y;
    cycle_sum_gradient<A>(pixel, *place_in<A>(p.grad_error, tile.b, row, column), grad_x, grad_y);
    if (p.grad_ab.data != nullptr) {
      A to_x, to_y;
      cycle_ab_gradient(pixel.valid && pixel.length > A(0) ? slopes_of(pixel) : BackSlopes<A>{}, grad_x, grad_y, to_x,
                        to_y);
      A* grad_ab = plane_of<A>(p.grad_ab, tile.b, 0) + (row * p.grad_ab.stride[2] + column * p.grad_ab.stride[3]);
      grad_ab[0] = to_x;
      grad_ab[p.grad_ab.stride[1]] = to_y;
    }
    if (kept.flow != nullptr) {
      const int64_t at = tile.b * 2 * plane_a + static_cast<int64_t>(row) * grid.width + column;
      A ab_x, ab_y;
      cycle_point<T>(p, tile.b, row, column, ab_x, ab_y);
      kept.flow[at] = pixel.valid ? ab_x : A(NAN);
      kept.flow[at + plane_a] = ab_y;
      kept.grad[at] = grad_x;
      kept.grad[at + plane_a] = grad_y;
    }
    if (!scatters || !pixel.valid) continue;
    int place[4];
    if (window.fits) {
      tap_places(pixel.point, target_geometry(p), window.left, window.top, window.width, 1, place);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        atomicAdd(memory + place[k], pixel.taps.weight[k] * grad_x);
        atomicAdd(memory + (window.plane() + place[k]), pixel.taps.weight[k] * grad_y);
      }
    } else {
      tap_places(pixel.point, target_geometry(p), 0, 0, width, 1, place);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        atomicAdd(grad_ba + place[k], pixel.taps.weight[k] * grad_x);
        atomicAdd(grad_ba + (int64_t{plane} + place[k]), pixel.taps.weight[k] * grad_y);
      }
    }
  }
  __syncthreads();
  if (scatters && window.fits) window.add_to(grad_ba, plane, width, 1, 2);
}

}  // namespace cosegflow::cycle_cuda

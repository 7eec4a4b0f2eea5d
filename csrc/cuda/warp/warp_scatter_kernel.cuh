// warp's backward on CUDA for images, masks and flows: up to four channels of float32 or float64, where the bits may
// depend on the order of additions. To list where every pixel lands (warp_inverse.cuh) would move more than such
// images.
//
// A block has a tile of 32 x 32 pixels of the output, a thread four of them in a column, and all channels. First it
//   finds the window of x that the tile touches; then each pixel is read once, gives its gradient to the flow, and adds
//   its shares to the window (scatter_window.cuh), which goes to memory at the end.
// Must move: C (2 H W + Ho Wo) elements, 16 Ho Wo bytes of flow and its gradient; the sums of a few images at a time
//   are cleared and added while the second-level cache has them.
#pragma once

#include "warp/scatter_window.cuh"
#include "warp/warp_flow_gradient_kernels.cuh"

namespace cosegflow::warp_cuda {

constexpr int kScatterChannels = 4;  // at most

// The addresses of one channel.
template <class A>
struct ChannelPlanes {
  const A *x, *grad;
  A* sums;  // the window's, or grad_x
};

// One pixel: its gradient to the flow, and its shares. kFits: the sums are in shared memory.
template <bool kFits, class A>
__device__ __forceinline__ void scatter_pixel(const WarpParams& p, const ChannelPlanes<A> (&plane)[kScatterChannels],
                                              const ScatterWindow<A>& window, int64_t b, int row, int column) {
  const int channels = static_cast<int>(p.channels);
  const WarpPoint<A> point = point_of_pixel<A>(p, b, row, column);
  const TapGeometry image = geometry_of_x(p);
  const PixelTaps<A> taps = pixel_taps(point, image);
  const int at = place_of(p.grad_out, row, column);
  A g[kScatterChannels];
#pragma unroll
  for (int c = 0; c < kScatterChannels; ++c) {
    if (c < channels) g[c] = plane[c].grad[at];
  }
  if (p.grad_flow.data != nullptr) {
    Slopes<A> slopes;
#pragma unroll
    for (int c = 0; c < kScatterChannels; ++c) {
      if (c >= channels) break;
      A v[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) v[k] = taps.inside[k] ? plane[c].x[taps.offset[k]] : A(0);
      slopes.add(g[c], v[0], v[1], v[2], v[3]);
    }
    write_flow_gradient(p, b, row, column, point.finite ? slopes.x(point.wy, point.dx) : A(0),
                        point.finite ? slopes.y(point.wx, point.dy) : A(0));
  }
  int place[4];
  if (kFits) {
    tap_places(point, image, window.left, window.top, window.width, 1, place);
  } else {
    tap_places(point, image, 0, 0, static_cast<int>(p.grad_x.stride[2]), static_cast<int>(p.grad_x.stride[3]), place);
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (!taps.inside[k]) continue;
#pragma unroll
    for (int c = 0; c < kScatterChannels; ++c) {
      if (c >= channels) break;
      atomicAdd(plane[c].sums + place[k], taps.weight[k] * g[c]);
    }
  }
}

// Images from `first_image` on. grad_x is 0 before.
template <class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 2 : 4)
    warp_scatter_kernel(WarpParams p, TileGrid grid, int64_t first_image) {
  // Named, since nvcc's host pass takes a variable template in the extent of an array for no constant.
  constexpr int kElements = kWindowElements<A>;
  using Memory = A[kElements];
  CSF_SHARED(Memory, memory);
  Tile tile = tile_of_block(grid);
  tile.b += first_image;
  const int column = tile.column + static_cast<int>(threadIdx.x % kScatterSide);
  const int first_row = tile.row + static_cast<int>(threadIdx.x / kScatterSide);
  const int end_row = column < grid.width ? min(tile.row + kScatterSide, grid.height) : 0;
  const int channels = static_cast<int>(p.channels);

  Box box;
#pragma unroll
  for (int i = 0; i < kScatterPixels; ++i) {
    const int row = first_row + i * kRows;
    if (row >= end_row) break;
    box.add(point_of_pixel<A>(p, tile.b, row, column), static_cast<int>(p.width), static_cast<int>(p.height));
  }
  const ScatterWindow<A> window(memory, block_box(box), channels);
  __syncthreads();

  A* const grad_x = plane_of<A>(p.grad_x, tile.b, 0);
  ChannelPlanes<A> plane[kScatterChannels];
#pragma unroll
  for (int c = 0; c < kScatterChannels; ++c) {
    plane[c].x = in_registers(plane_of<const A>(p.x, tile.b, c));
    plane[c].grad = in_registers(plane_of<const A>(p.grad_out, tile.b, c));
  }
  if (window.fits) {
#pragma unroll
    for (int c = 0; c < kScatterChannels; ++c) plane[c].sums = memory + c * window.plane();
#pragma unroll 1
    for (int row = first_row; row < end_row; row += kRows) scatter_pixel<true>(p, plane, window, tile.b, row, column);
    __syncthreads();
    window.add_to(grad_x, p.grad_x.stride[1], static_cast<int>(p.grad_x.stride[2]),
                  static_cast<int>(p.grad_x.stride[3]), channels);
  } else {
#pragma unroll
    for (int c = 0; c < kScatterChannels; ++c) plane[c].sums = in_registers(grad_x + c * p.grad_x.stride[1]);
#pragma unroll 1
    for (int row = first_row; row < end_row; row += kRows) scatter_pixel<false>(p, plane, window, tile.b, row, column);
  }
}

}  // namespace cosegflow::warp_cuda

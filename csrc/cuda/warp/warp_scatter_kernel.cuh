// warp's backward on CUDA for images, masks and flows: up to four channels of float32 or float64, where the bits may
// depend on the order of additions. To list where every pixel lands (warp_inverse.cuh) would move more than such
// images.
//
// A block has a tile of 32 x 32 pixels of the output, a thread four of them in a column, and all channels. First it
//   finds the window of x that the tile touches; then each pixel is read once, gives its gradient to the flow, and adds
//   its shares to the window (scatter_window.cuh), which goes to memory at the end.
// Must move: C (2 H W + Ho Wo) elements, 16 Ho Wo bytes of flow and its gradient; the sums of a few images at a time
// are
//   cleared and added while the second-level cache has them.
#pragma once

#include "warp/scatter_window.cuh"
#include "warp/warp_flow_gradient_kernels.cuh"

namespace cosegflow::warp_cuda {

constexpr int kScatterChannels = 4;  // at most

// Images from `first_image` on. grad_x is 0 before.
template <class A>
__global__ void __launch_bounds__(kThreads, sizeof(A) == 8 ? 2 : 4)
    warp_scatter_kernel(WarpParams p, TileGrid grid, int64_t first_image) {
  using Memory = A[kWindowElements<A>];
  CSF_SHARED(Memory, memory);
  Tile tile = tile_of_block(grid);
  tile.b += first_image;
  const int column = tile.column + static_cast<int>(threadIdx.x) % kScatterSide;
  const int first_row = tile.row + static_cast<int>(threadIdx.x) / kScatterSide;
  const int width = static_cast<int>(p.width), height = static_cast<int>(p.height);
  const int channels = static_cast<int>(p.channels);
  const bool border = p.padding == WarpPadding::kBorder;

  Box box;
#pragma unroll
  for (int i = 0; i < kScatterPixels; ++i) {
    const int row = first_row + i * kRows;
    if (row >= grid.height || column >= grid.width) continue;
    const WarpPoint<A> point = point_of_pixel<A>(p, tile.b, row, column);
    const PixelTaps<A> taps = pixel_taps(point, p);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (taps.inside[k]) box.add(tap_x(point, k, width, border), tap_y(point, k, height, border));
    }
  }
  const ScatterWindow<A> window(memory, block_box(box), channels);
  __syncthreads();

  A* const grad_x = plane_of<A>(p.grad_x, tile.b, 0);
#pragma unroll 1
  for (int i = 0; i < kScatterPixels; ++i) {
    const int row = first_row + i * kRows;
    if (row >= grid.height || column >= grid.width) continue;
    const WarpPoint<A> point = point_of_pixel<A>(p, tile.b, row, column);
    const PixelTaps<A> taps = pixel_taps(point, p);
    const A* x = plane_of<const A>(p.x, tile.b, 0);
    const A* grad = plane_of<const A>(p.grad_out, tile.b, 0) + place_of(p.grad_out, row, column);
    A g[kScatterChannels];
#pragma unroll
    for (int c = 0; c < kScatterChannels; ++c) {
      if (c < channels) g[c] = grad[c * p.grad_out.stride[1]];
    }
    if (p.grad_flow.data != nullptr) {
      Slopes<A> slopes;
#pragma unroll
      for (int c = 0; c < kScatterChannels; ++c) {
        if (c >= channels) break;
        A v[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) v[k] = taps.inside[k] ? x[taps.offset[k] + c * p.x.stride[1]] : A(0);
        slopes.add(g[c], v[0], v[1], v[2], v[3]);
      }
      write_flow_gradient(p, tile.b, row, column, point.finite ? slopes.x(point.wy, point.dx) : A(0),
                          point.finite ? slopes.y(point.wx, point.dy) : A(0));
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!taps.inside[k]) continue;
      const int at_x = tap_x(point, k, width, border), at_y = tap_y(point, k, height, border);
      const int place = window.fits ? window.place(at_x, at_y) : place_of(p.grad_x, at_y, at_x);
#pragma unroll
      for (int c = 0; c < kScatterChannels; ++c) {
        if (c >= channels) break;
        if (window.fits) {
          atomicAdd(memory + (c * window.plane() + place), taps.weight[k] * g[c]);
        } else {
          atomicAdd(grad_x + (c * p.grad_x.stride[1] + place), taps.weight[k] * g[c]);
        }
      }
    }
  }
  __syncthreads();
  if (!window.fits) return;
  window.add_to(grad_x, p.grad_x.stride[1], static_cast<int>(p.grad_x.stride[2]), static_cast<int>(p.grad_x.stride[3]),
                channels);
}

}  // namespace cosegflow::warp_cuda

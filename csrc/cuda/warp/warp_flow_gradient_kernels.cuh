// warp's gradient to the flow on CUDA: the sum over channels of the gradient of the output times the slopes of x.
//
// Planes: a thread has one pixel of a 32 x 8 tile and walks over all channels, four in flight, as the forward does.
//   Four sums stay in registers: the gradient times the differences right - left of the upper and of the lower taps,
//   and lower - upper of the left and of the right ones. The fractions weigh them once, at the end. 64 registers; 21.5
//   instructions a channel of float32 where a warp lies inside, else 35.
// Channels: as many neighbouring threads as a pixel has 16-byte vectors (a power of two up to 32) share a pixel; their
//   sums meet by shuffles, and go through shared memory (9 KB) into coalesced stores. 80 registers; about 130
//   instructions for 16 bytes of float32.
// Must move: C (H W + Ho Wo) elements read, 8 Ho Wo bytes of flow read and as many written; 8 FLOPs an input. Time not
// measured yet.
#pragma once

#include "warp/channel_vector.cuh"
#include "warp/warp_tiles.cuh"

namespace cosegflow::warp_cuda {

template <class A>
struct Slopes {
  A across_upper = A(0), across_lower = A(0), down_left = A(0), down_right = A(0);

  __device__ __forceinline__ void add(A g, A v0, A v1, A v2, A v3) {
    across_upper = multiply_add(g, v1 - v0, across_upper);
    across_lower = multiply_add(g, v3 - v2, across_lower);
    down_left = multiply_add(g, v2 - v0, down_left);
    down_right = multiply_add(g, v3 - v1, down_right);
  }
  // wx, wy: the fractions; dx, dy: 1, or 0 where the flow's change does not reach the point, whatever x holds there.
  __device__ __forceinline__ A x(A wy, A dx) const {
    return dx == A(0) ? A(0) : (A(1) - wy) * across_upper + wy * across_lower;
  }
  __device__ __forceinline__ A y(A wx, A dy) const {
    return dy == A(0) ? A(0) : (A(1) - wx) * down_left + wx * down_right;
  }
};

template <bool kWhole, bool kFull, int kFlight, class T, class A>
__device__ __forceinline__ void slopes_of_planes(const PixelTaps<A>& taps, const TapPointers<kWhole, T>& from,
                                                 int64_t step, const T* grad, int64_t grad_step, int64_t channels,
                                                 Slopes<A>& slopes) {
  T v[kFlight][4], g[kFlight];
#pragma unroll
  for (int i = 0; i < kFlight; ++i) {
    if (!kFull && i >= channels) break;
    g[i] = grad[i * grad_step];
    from.load(taps, i * step, v[i]);
  }
#pragma unroll
  for (int i = 0; i < kFlight; ++i) {
    if (!kFull && i >= channels) break;
    slopes.add(to_float(g[i]), to_float(v[i][0]), to_float(v[i][1]), to_float(v[i][2]), to_float(v[i][3]));
  }
}

template <bool kWhole, class T, class A>
__device__ __forceinline__ Slopes<A> slopes_of_pixel(const PixelTaps<A>& taps, const T* x, int64_t step, const T* grad,
                                                     int64_t grad_step, int64_t channels) {
  constexpr int kFlight = sizeof(T) == 8 ? 2 : 4;
  TapPointers<kWhole, T> from(taps, x);
  Slopes<A> slopes;
#pragma unroll 1
  for (; channels >= kFlight; channels -= kFlight, from.advance(kFlight * step), grad += kFlight * grad_step) {
    slopes_of_planes<kWhole, true, kFlight>(taps, from, step, grad, grad_step, kFlight, slopes);
  }
  if (channels > 0) slopes_of_planes<kWhole, false, kFlight>(taps, from, step, grad, grad_step, channels, slopes);
  return slopes;
}

// 0 where the flow is not finite, even where the incoming gradient is NaN.
template <class A>
__device__ __forceinline__ void write_flow_gradient(const WarpParams& p, int64_t b, int row, int column, A x, A y) {
  A* to = plane_of<A>(p.grad_flow, b, 0) + (row * p.grad_flow.stride[2] + column * p.grad_flow.stride[3]);
  to[0] = x;
  to[p.grad_flow.stride[1]] = y;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) warp_flow_gradient_planes_kernel(WarpParams p, TileGrid grid) {
  using A = accumulate_t<T>;
  const TilePixel at = pixel_of_thread(grid);
  const WarpPoint<A> point = point_of_pixel<A>(p, at.b, at.row, at.column);
  const PixelTaps<A> taps = pixel_taps(point, p);
  const T* x = plane_of<const T>(p.x, at.b, 0);
  const T* grad = plane_of<const T>(p.grad_out, at.b, 0) + place_of(p.grad_out, at.row, at.column);
  const int64_t step = p.x.stride[1], grad_step = p.grad_out.stride[1];
  const Slopes<A> slopes = p.x.stride[3] == 1 && __all_sync(kWholeWarp, taps.whole)
                               ? slopes_of_pixel<true>(taps, x, step, grad, grad_step, p.channels)
                               : slopes_of_pixel<false>(taps, x, step, grad, grad_step, p.channels);
  if (!at.exists) return;
  const A grad_x = point.finite ? slopes.x(point.wy, point.dx) : A(0);
  const A grad_y = point.finite ? slopes.y(point.wx, point.dy) : A(0);
  write_flow_gradient(p, at.b, at.row, at.column, grad_x, grad_y);
}

template <class A>
struct SharedSlopePoint {
  int offset[4];     // -1: outside
  A wx, wy, dx, dy;  // afterwards wx and wy are the gradient
};

// `lanes`: threads of a pixel, a power of two up to 32.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    warp_flow_gradient_channels_kernel(WarpParams p, TileGrid grid, int lanes) {
  using A = accumulate_t<T>;
  using Points = SharedSlopePoint<A>[kThreads];
  using Places = int[kThreads];
  CSF_SHARED(Points, shared);
  CSF_SHARED(Places, places);  // of the pixels in grad_out; -1: beyond it
  const Tile tile = tile_of_block(grid);
  const int thread = static_cast<int>(threadIdx.x), pixels = grid.tile_height * kPieceWidth;
  const int own_row = tile.row + thread / kPieceWidth, own_column = tile.column + thread % kPieceWidth;
  const bool owns = thread < pixels && own_row < grid.height && own_column < grid.width;
  bool finite = false;
  places[thread] = owns ? place_of(p.grad_out, own_row, own_column) : -1;
  if (owns) {
    const WarpPoint<A> point = point_of_pixel<A>(p, tile.b, own_row, own_column);
    const PixelTaps<A> taps = pixel_taps(point, p);
    for (int k = 0; k < 4; ++k) shared[thread].offset[k] = taps.inside[k] ? taps.offset[k] : -1;
    shared[thread].wx = point.wx, shared[thread].wy = point.wy;
    shared[thread].dx = point.dx, shared[thread].dy = point.dy;
    finite = point.finite;
  }
  __syncthreads();
  const T* const x = in_registers(plane_of<const T>(p.x, tile.b, 0));
  const T* const grad = in_registers(plane_of<const T>(p.grad_out, tile.b, 0));
  const int lane = thread & (lanes - 1), step = kThreads / lanes;
  const int channels = static_cast<int>(p.channels);
  // A tile has 32 pixels or more, a multiple of them: whole warps come and go.
  for (int pixel = thread / lanes; pixel < pixels; pixel += step) {
    Slopes<A> slopes;
    SharedSlopePoint<A> point = {};
    const int place = places[pixel];
    if (place >= 0) {
      point = shared[pixel];
      for (int c = lane * kVector<T>; c < channels; c += lanes * kVector<T>) {
        A v[4][kVector<T>] = {}, g[kVector<T>];
        load_vector(grad + (place + c), g);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (point.offset[k] >= 0) load_vector(x + (point.offset[k] + c), v[k]);
        }
#pragma unroll
        for (int i = 0; i < kVector<T>; ++i) slopes.add(g[i], v[0][i], v[1][i], v[2][i], v[3][i]);
      }
    }
    A sum_x = slopes.x(point.wy, point.dx), sum_y = slopes.y(point.wx, point.dy);
    for (int apart = lanes / 2; apart > 0; apart /= 2) {
      sum_x += __shfl_xor_sync(kWholeWarp, sum_x, apart);
      sum_y += __shfl_xor_sync(kWholeWarp, sum_y, apart);
    }
    if (lane == 0) shared[pixel].wx = sum_x, shared[pixel].wy = sum_y;  // nobody else reads this pixel
  }
  __syncthreads();
  if (!owns) return;
  write_flow_gradient(p, tile.b, own_row, own_column, finite ? shared[thread].wx : A(0),
                      finite ? shared[thread].wy : A(0));
}

}  // namespace cosegflow::warp_cuda

// warp on CUDA, the plainly right kernels: any sizes and strides, 64-bit offsets. They serve where the fast ones do not
// (planes of more than 2^31 elements), and are what those are compared with.
//
// Forward: a thread owns one output pixel and a run of kChannels channels: it reads the flow once, forms the four taps
//   and weights once in registers, and reuses them over its channels.
// Backward to flow: a thread owns one pixel and all channels; the sum over channels stays in registers.
// Backward to x: a thread owns one pixel and a run of channels and adds four weighted values by atomics. The
//   deterministic kernel gives a thread one whole plane of x, which it scans in raster order: no atomics, one order.
// No shared memory.
#pragma once

#include <cuda_runtime.h>

#include "common/warp_math.h"
#include "primitives/launch.cuh"

namespace cosegflow::warp_simple {

constexpr int kThreads = 256;
constexpr int kChannels = 16;

template <class T>
__device__ __forceinline__ T* at(const View4& view, int64_t b, int64_t c) {
  return static_cast<T*>(view.data) + b * view.stride[0] + c * view.stride[1];
}

// This thread's image and output pixel, from a flat grid over (image, tile of pixels).
struct PixelOfThread {
  int64_t b, row, column;
  bool exists;
};

__device__ __forceinline__ PixelOfThread pixel_of_thread(const WarpParams& p) {
  const int64_t pixels = p.out_height * p.out_width;
  const int64_t tiles = (pixels + kThreads - 1) / kThreads;
  const int64_t pixel = (blockIdx.x % tiles) * kThreads + threadIdx.x;
  return {static_cast<int64_t>(blockIdx.x / tiles), pixel / p.out_width, pixel % p.out_width, pixel < pixels};
}

template <class A>
__device__ __forceinline__ WarpPoint<A> point_of_pixel(const WarpParams& p, int64_t b, int64_t row, int64_t column) {
  const A* flow = at<A>(p.flow, b, 0) + row * p.flow.stride[2] + column * p.flow.stride[3];
  return warp_point(flow[0], flow[p.flow.stride[1]], column, row, p.width, p.height, p.mode, p.padding);
}

template <class T>
__global__ void __launch_bounds__(kThreads) warp_simple_forward_kernel(WarpParams p) {
  using A = accumulate_t<T>;
  const PixelOfThread pixel = pixel_of_thread(p);
  if (!pixel.exists) return;
  const WarpPoint<A> point = point_of_pixel<A>(p, pixel.b, pixel.row, pixel.column);
  const WarpTaps<A> taps = warp_taps(point, p.width, p.height, p.x.stride[3], p.x.stride[2], p.padding);
  const int64_t out_offset = pixel.row * p.out.stride[2] + pixel.column * p.out.stride[3];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kChannels;
  const int64_t end = first + kChannels < p.channels ? first + kChannels : p.channels;
  for (int64_t c = first; c < end; ++c) {
    at<T>(p.out, pixel.b, c)[out_offset] = from_float<T>(warp_sample(taps, at<const T>(p.x, pixel.b, c)));
  }
  if (p.valid.data != nullptr && blockIdx.y == 0) {
    static_cast<bool*>(
        p.valid.data)[pixel.b * p.valid.stride[0] + pixel.row * p.valid.stride[1] + pixel.column * p.valid.stride[2]] =
        point.valid;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) warp_simple_flow_gradient_kernel(WarpParams p) {
  using A = accumulate_t<T>;
  const PixelOfThread pixel = pixel_of_thread(p);
  if (!pixel.exists) return;
  const WarpPoint<A> point = point_of_pixel<A>(p, pixel.b, pixel.row, pixel.column);
  const WarpTaps<A> taps = warp_taps(point, p.width, p.height, p.x.stride[3], p.x.stride[2], p.padding);
  const int64_t grad_offset = pixel.row * p.grad_out.stride[2] + pixel.column * p.grad_out.stride[3];
  A sum_x = A(0), sum_y = A(0);
  if (point.finite) {  // elsewhere the gradient is 0 even where the incoming one is NaN
    for (int64_t c = 0; c < p.channels; ++c) {
      const A g = to_float(at<const T>(p.grad_out, pixel.b, c)[grad_offset]);
      A d_x, d_y;
      warp_sample_gradient(point, taps, at<const T>(p.x, pixel.b, c), d_x, d_y);
      sum_x += g * d_x;
      sum_y += g * d_y;
    }
  }
  A* grad_flow =
      at<A>(p.grad_flow, pixel.b, 0) + pixel.row * p.grad_flow.stride[2] + pixel.column * p.grad_flow.stride[3];
  grad_flow[0] = point.dx == A(0) ? A(0) : sum_x;
  grad_flow[p.grad_flow.stride[1]] = point.dy == A(0) ? A(0) : sum_y;
}

template <class T>
__global__ void __launch_bounds__(kThreads) warp_simple_atomic_kernel(WarpParams p) {
  using A = accumulate_t<T>;
  const PixelOfThread pixel = pixel_of_thread(p);
  if (!pixel.exists) return;
  const WarpPoint<A> point = point_of_pixel<A>(p, pixel.b, pixel.row, pixel.column);
  const WarpTaps<A> taps = warp_taps(point, p.width, p.height, p.grad_x.stride[3], p.grad_x.stride[2], p.padding);
  const int64_t grad_offset = pixel.row * p.grad_out.stride[2] + pixel.column * p.grad_out.stride[3];
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kChannels;
  const int64_t end = first + kChannels < p.channels ? first + kChannels : p.channels;
  for (int64_t c = first; c < end; ++c) {
    const A g = to_float(at<const T>(p.grad_out, pixel.b, c)[grad_offset]);
    A* plane = at<A>(p.grad_x, pixel.b, c);
    for (int k = 0; k < 4; ++k) {
      if (taps.inside[k]) atomicAdd(plane + taps.offset[k], taps.weight[k] * g);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) warp_simple_deterministic_kernel(WarpParams p) {
  using A = accumulate_t<T>;
  const int64_t plane_id = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (plane_id >= p.batch * p.channels) return;
  const int64_t b = plane_id / p.channels, c = plane_id % p.channels;
  A* plane = at<A>(p.grad_x, b, c);
  for (int64_t row = 0; row < p.out_height; ++row) {
    for (int64_t column = 0; column < p.out_width; ++column) {
      const WarpPoint<A> point = point_of_pixel<A>(p, b, row, column);
      const WarpTaps<A> taps = warp_taps(point, p.width, p.height, p.grad_x.stride[3], p.grad_x.stride[2], p.padding);
      const A g = to_float(at<const T>(p.grad_out, b, c)[row * p.grad_out.stride[2] + column * p.grad_out.stride[3]]);
      for (int k = 0; k < 4; ++k) {
        if (taps.inside[k]) plane[taps.offset[k]] += taps.weight[k] * g;
      }
    }
  }
}

}  // namespace cosegflow::warp_simple

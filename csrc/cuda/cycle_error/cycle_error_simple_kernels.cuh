// cycle_error on CUDA, the plainly right kernels: any sizes and strides, 64-bit offsets. They serve where the fast ones
// do not, and are what those are compared with. A thread owns one pixel of a; the deterministic kernel gives a thread
// one whole plane of flow_ba's gradient, for which it scans the pixels of a in raster order.
#pragma once

#include <cuda_runtime.h>

#include "common/cycle_error_math.h"
#include "primitives/launch.cuh"

namespace cosegflow::cycle_simple {

constexpr int kThreads = 256;

struct PixelOfThread {
  int64_t b, row, column;
  bool exists;
};

// From a flat grid over (image, tile of pixels).
__device__ __forceinline__ PixelOfThread pixel_of_thread(const CycleErrorParams& p) {
  const int64_t pixels = p.height_a * p.width_a;
  const int64_t tiles = (pixels + kThreads - 1) / kThreads;
  const int64_t pixel = (blockIdx.x % tiles) * kThreads + threadIdx.x;
  return {static_cast<int64_t>(blockIdx.x / tiles), pixel / p.width_a, pixel % p.width_a, pixel < pixels};
}

template <class T>
__device__ __forceinline__ T& at(const View3& view, int64_t b, int64_t row, int64_t column) {
  return static_cast<T*>(view.data)[b * view.stride[0] + row * view.stride[1] + column * view.stride[2]];
}

template <class T>
__global__ void __launch_bounds__(kThreads) cycle_error_simple_forward_kernel(CycleErrorParams p) {
  using A = accumulate_t<T>;
  const PixelOfThread here = pixel_of_thread(p);
  if (!here.exists) return;
  const CyclePixel<A> pixel = cycle_pixel<T>(p, here.b, here.row, here.column);
  at<A>(p.error, here.b, here.row, here.column) = pixel.length;
  if (p.valid.data != nullptr) at<bool>(p.valid, here.b, here.row, here.column) = pixel.valid;
}

// grad_ba is 0 before, where it is wanted.
template <class T>
__global__ void __launch_bounds__(kThreads) cycle_error_simple_backward_kernel(CycleErrorParams p, bool scatter) {
  using A = accumulate_t<T>;
  const PixelOfThread here = pixel_of_thread(p);
  if (!here.exists) return;
  const CyclePixel<A> pixel = cycle_pixel<T>(p, here.b, here.row, here.column);
  A grad_x, grad_y;
  cycle_sum_gradient(pixel, at<A>(p.grad_error, here.b, here.row, here.column), grad_x, grad_y);
  if (p.grad_ab.data != nullptr) {
    A* grad_ab = static_cast<A*>(p.grad_ab.data) + here.b * p.grad_ab.stride[0] + here.row * p.grad_ab.stride[2] +
                 here.column * p.grad_ab.stride[3];
    cycle_ab_gradient<T>(p, pixel, here.b, grad_x, grad_y, grad_ab[0], grad_ab[p.grad_ab.stride[1]]);
  }
  if (!scatter || !pixel.valid) return;
  const int64_t plane = p.height_b * p.width_b;
  A* grad_ba = static_cast<A*>(p.grad_ba.data) + here.b * 2 * plane;
  const WarpTaps<A> taps = warp_taps(pixel.point, p.width_b, p.height_b, int64_t{1}, p.width_b, WarpPadding::kBorder);
  for (int k = 0; k < 4; ++k) {
    if (!taps.inside[k]) continue;
    atomicAdd(grad_ba + taps.offset[k], taps.weight[k] * grad_x);
    atomicAdd(grad_ba + plane + taps.offset[k], taps.weight[k] * grad_y);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) cycle_error_simple_scatter_kernel(CycleErrorParams p) {
  using A = accumulate_t<T>;
  const int64_t plane_id = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (plane_id >= 2 * p.batch) return;
  const int64_t b = plane_id / 2;
  A* plane = static_cast<A*>(p.grad_ba.data) + plane_id * p.height_b * p.width_b;
  for (int64_t row = 0; row < p.height_a; ++row) {
    for (int64_t column = 0; column < p.width_a; ++column) {
      const CyclePixel<A> pixel = cycle_pixel<T>(p, b, row, column);
      if (!pixel.valid) continue;
      A grad_x, grad_y;
      cycle_sum_gradient(pixel, at<A>(p.grad_error, b, row, column), grad_x, grad_y);
      const A grad = plane_id % 2 == 0 ? grad_x : grad_y;
      const WarpTaps<A> taps =
          warp_taps(pixel.point, p.width_b, p.height_b, int64_t{1}, p.width_b, WarpPadding::kBorder);
      for (int k = 0; k < 4; ++k) {
        if (taps.inside[k]) plane[taps.offset[k]] += taps.weight[k] * grad;
      }
    }
  }
}

}  // namespace cosegflow::cycle_simple

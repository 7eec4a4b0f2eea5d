// local_correlation, the plainly right kernels: every thread reads the caller's tensors through their strides, nothing
// is in shared memory and nothing is pipelined. The math of windows is common/window_math.h.
//
// forward: one thread per output element: the inner products with its one tap (or with flow four), interpolated.
//   Neighbouring threads have neighbouring pixels. Per element C (4 C) pairs through the caches, 2 C (8 C) FLOPs.
// backward to fa: one thread per pixel and run of kRun channels, which stay in registers while it walks over its
//   window: the gradient to a product is read once for all of the run.
// backward to fb: without flow a gather over mirrored offsets, of the same form. With flow, atomics: one thread per
//   pixel of a and run of channels; or, deterministic, one thread per plane of fb, which walks over all pixels of a.
// backward to flow: one warp per pixel, whose lanes share the products of the window; a butterfly adds them up.
// Fraction of the limit reached: not measured yet.
#pragma once

#include "common/window_math.h"
#include "cosegflow/local_correlation.h"
#include "primitives/launch.cuh"
#include "primitives/real_math.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kThreads = 256;
constexpr int kPlaneThreads = 32;  // where a thread has a whole plane: few threads, spread over all multiprocessors
constexpr int kRun = 8;            // channels of a thread

// One image side: its features, and 1 / norm of each pixel (null: not normalized).
template <class T>
struct Side {
  using Acc = accumulate_t<T>;
  View4 features;
  int64_t channels;
  int height, width;
  const Acc* inverse_norm;  // (B, H, W)

  CSF_HD int64_t positions() const { return static_cast<int64_t>(height) * width; }
  __device__ __forceinline__ bool inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }
  __device__ __forceinline__ const T* pixel(int64_t b, int y, int x) const {
    const View4& f = features;
    return static_cast<const T*>(f.data) + b * f.stride[0] + y * f.stride[2] + x * f.stride[3];
  }
  __device__ __forceinline__ Acc scale(int64_t b, int y, int x) const {
    return inverse_norm == nullptr ? Acc(1) : inverse_norm[(b * height + y) * width + x];
  }
};

template <class T>
__device__ __forceinline__ accumulate_t<T> inner_product(const Side<T>& a, int64_t b, int ya, int xa,
                                                         const Side<T>& other, int yb, int xb) {
  using Acc = accumulate_t<T>;
  const T *from_a = a.pixel(b, ya, xa), *from_b = other.pixel(b, yb, xb);
  Acc sum = Acc(0);
  for (int64_t c = 0; c < a.channels; ++c) {
    sum += to_float(from_a[c * a.features.stride[1]]) * to_float(from_b[c * other.features.stride[1]]);
  }
  return sum * a.scale(b, ya, xa) * other.scale(b, yb, xb);
}

// The window of pixel (y, x) of a: its first pixel in b, its size, and the weights of its taps.
template <class A>
struct Window {
  int x, y, size;
  TapWeights<A> wx, wy;
  bool between, finite;
};

template <class A>
__device__ __forceinline__ Window<A> window_of(const LocalCorrelationParams& p, int64_t b, int y, int x) {
  const int radius = static_cast<int>(p.radius), side = static_cast<int>(p.side());
  if (p.flow.data == nullptr) return {x - radius, y - radius, side, {A(1), A(0)}, {A(1), A(0)}, false, true};
  const View4& f = p.flow;
  const A* flow = static_cast<const A*>(f.data) + b * f.stride[0] + y * f.stride[2] + x * f.stride[3];
  const WindowPoint<A> point = window_point(flow[0], flow[f.stride[1]], x, y, p.width_b, p.height_b, p.radius);
  return {point.x, point.y, side + 1, interpolation(point.wx), interpolation(point.wy), true, point.finite};
}

// grad_out of one pixel of a.
template <class T>
struct GradientOfPixel {
  const T* data;
  int64_t stride;
  int side;
  __device__ __forceinline__ GradientOfPixel(const LocalCorrelationParams& p, int64_t b, int y, int x)
      : data(static_cast<const T*>(p.grad_out.data) + b * p.grad_out.stride[0] + y * p.grad_out.stride[2] +
             x * p.grad_out.stride[3]),
        stride(p.grad_out.stride[1]),
        side(static_cast<int>(p.side())) {}
  __device__ __forceinline__ accumulate_t<T> operator()(int dy, int dx) const {
    return to_float(data[(dy * side + dx) * stride]);
  }
};

// The gradient to the window's product (i, j).
template <class T>
__device__ __forceinline__ accumulate_t<T> gradient_to_product(const Window<accumulate_t<T>>& w,
                                                               const GradientOfPixel<T>& grad, int i, int j) {
  return w.between ? window_gradient(i, j, grad.side, w.wy, w.wx, grad) : grad(i, j);
}

__device__ __forceinline__ int64_t flat_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_simple_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other) {
  using Acc = accumulate_t<T>;
  const int64_t at = flat_thread(), n = a.positions(), planes = p.side() * p.side();
  if (at >= p.batch * planes * n) return;
  const int64_t b = at / n / planes;
  const int k = static_cast<int>(at / n % planes), pixel = static_cast<int>(at % n), side = static_cast<int>(p.side());
  const int y = pixel / a.width, x = pixel % a.width;
  const Window<Acc> w = window_of<Acc>(p, b, y, x);
  Acc sum = Acc(0);
  if (w.finite) {
    for (int tap = 0; tap < (w.between ? 4 : 1); ++tap) {
      const int yb = w.y + k / side + tap / 2, xb = w.x + k % side + tap % 2;
      if (!other.inside(yb, xb)) continue;
      const Acc weight = (tap / 2 == 0 ? w.wy.here : w.wy.before) * (tap % 2 == 0 ? w.wx.here : w.wx.before);
      sum += weight * inner_product(a, b, y, x, other, yb, xb);
    }
  }
  static_cast<T*>(p.out)[at] = from_float<T>(sum);
}

// A thread's pixel of `side` and run of channels, from a flat grid over (image, run, pixel).
struct PixelAndRun {
  int64_t b, first;
  int y, x, channels;
  bool exists;
};
template <class T>
__device__ __forceinline__ PixelAndRun pixel_and_run(int64_t batch, const Side<T>& side) {
  const int64_t runs = (side.channels + kRun - 1) / kRun, n = side.positions(), at = flat_thread();
  const int64_t first = at / n % runs * kRun;
  const int64_t left = side.channels - first;
  const int pixel = static_cast<int>(at % n), channels = left < kRun ? static_cast<int>(left) : kRun;
  return {at / n / runs, first, pixel / side.width, pixel % side.width, channels, at < batch * runs * n};
}

template <class T>
__device__ __forceinline__ void store_run(const Side<T>& side, const PixelAndRun& t, const accumulate_t<T>* sum,
                                          accumulate_t<T>* gradient) {
  const int64_t n = side.positions();
  accumulate_t<T>* to = gradient + (t.b * side.channels + t.first) * n + static_cast<int64_t>(t.y) * side.width + t.x;
#pragma unroll
  for (int c = 0; c < kRun; ++c) {
    if (c < t.channels) to[c * n] = sum[c];
  }
}

// gradient (B, C, Ha, Wa): to the (normalized) features of a.
template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_grad_a_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other, accumulate_t<T>* gradient) {
  using Acc = accumulate_t<T>;
  const PixelAndRun t = pixel_and_run(p.batch, a);
  if (!t.exists) return;
  const Window<Acc> w = window_of<Acc>(p, t.b, t.y, t.x);
  const GradientOfPixel<T> grad(p, t.b, t.y, t.x);
  Acc sum[kRun] = {};
  for (int i = 0; w.finite && i < w.size; ++i) {
    for (int j = 0; j < w.size; ++j) {
      const int yb = w.y + i, xb = w.x + j;
      if (!other.inside(yb, xb)) continue;
      const Acc g = gradient_to_product(w, grad, i, j) * other.scale(t.b, yb, xb);
      const T* feature = other.pixel(t.b, yb, xb) + t.first * other.features.stride[1];
#pragma unroll
      for (int c = 0; c < kRun; ++c, feature += other.features.stride[1]) {
        if (c < t.channels) sum[c] += g * to_float(*feature);
      }
    }
  }
  store_run(a, t, sum, gradient);
}

// gradient (B, C, Hb, Wb), without flow: pixel q of b is the target of q - d at offset d.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)  // 64 registers: else ptxas aims at 48 and spills
    local_correlation_grad_b_gather_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other,
                                           accumulate_t<T>* gradient) {
  using Acc = accumulate_t<T>;
  const PixelAndRun t = pixel_and_run(p.batch, other);
  if (!t.exists) return;
  const int radius = static_cast<int>(p.radius), side = static_cast<int>(p.side());
  Acc sum[kRun] = {};
  for (int i = 0; i < side; ++i) {
    for (int j = 0; j < side; ++j) {
      const int ya = t.y + radius - i, xa = t.x + radius - j;
      if (!a.inside(ya, xa)) continue;
      const Acc g = GradientOfPixel<T>(p, t.b, ya, xa)(i, j) * a.scale(t.b, ya, xa);
      const T* feature = a.pixel(t.b, ya, xa) + t.first * a.features.stride[1];
#pragma unroll
      for (int c = 0; c < kRun; ++c, feature += a.features.stride[1]) {
        if (c < t.channels) sum[c] += g * to_float(*feature);
      }
    }
  }
  store_run(other, t, sum, gradient);
}

// Adds what a thread's pixel of a gives to the gradient of b, for its run of channels or, not atomic, its one channel.
template <bool kAtomic, class T>
__device__ __forceinline__ void scatter_pixel(const LocalCorrelationParams& p, const Side<T>& a, const Side<T>& other,
                                              const PixelAndRun& t, accumulate_t<T>* gradient) {
  using Acc = accumulate_t<T>;
  const Window<Acc> w = window_of<Acc>(p, t.b, t.y, t.x);
  if (!w.finite) return;
  const GradientOfPixel<T> grad(p, t.b, t.y, t.x);
  const T* feature = a.pixel(t.b, t.y, t.x) + t.first * a.features.stride[1];
  const Acc scale = a.scale(t.b, t.y, t.x);
  const int64_t n = other.positions();
  for (int i = 0; i < w.size; ++i) {
    for (int j = 0; j < w.size; ++j) {
      const int yb = w.y + i, xb = w.x + j;
      if (!other.inside(yb, xb)) continue;
      const Acc g = gradient_to_product(w, grad, i, j) * scale;
      Acc* to = gradient + (t.b * other.channels + t.first) * n + static_cast<int64_t>(yb) * other.width + xb;
      if constexpr (kAtomic) {
        for (int c = 0; c < t.channels; ++c) atomicAdd(to + c * n, g * to_float(feature[c * a.features.stride[1]]));
      } else {  // one channel
        *to += g * to_float(*feature);
      }
    }
  }
}

// gradient (B, C, Hb, Wb) starts as 0.
template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_grad_b_atomic_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other,
                                           accumulate_t<T>* gradient) {
  const PixelAndRun t = pixel_and_run(p.batch, a);
  if (t.exists) scatter_pixel<true>(p, a, other, t, gradient);
}

template <class T>
__global__ void __launch_bounds__(kPlaneThreads)
    local_correlation_grad_b_deterministic_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other,
                                                  accumulate_t<T>* gradient) {
  const int64_t plane = flat_thread();
  if (plane >= p.batch * p.channels) return;
  for (int y = 0; y < a.height; ++y) {
    for (int x = 0; x < a.width; ++x) {
      scatter_pixel<false>(p, a, other, PixelAndRun{plane / p.channels, plane % p.channels, y, x, 1, true}, gradient);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_grad_flow_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other) {
  using Acc = accumulate_t<T>;
  const int64_t pixel = flat_thread() / 32, n = a.positions();
  if (pixel >= p.batch * n) return;  // a whole warp
  const int64_t b = pixel / n;
  const int y = static_cast<int>(pixel % n) / a.width, x = static_cast<int>(pixel % n) % a.width;
  const Window<Acc> w = window_of<Acc>(p, b, y, x);
  const GradientOfPixel<T> grad(p, b, y, x);
  Acc sum_x = Acc(0), sum_y = Acc(0);
  for (int k = static_cast<int>(threadIdx.x) % 32; w.finite && k < w.size * w.size; k += 32) {
    const int i = k / w.size, j = k % w.size;
    if (!other.inside(w.y + i, w.x + j)) continue;
    const Acc product = inner_product(a, b, y, x, other, w.y + i, w.x + j);
    sum_x += product * window_gradient(i, j, grad.side, w.wy, slope<Acc>(), grad);
    sum_y += product * window_gradient(i, j, grad.side, slope<Acc>(), w.wx, grad);
  }
  sum_x = warp_reduce_sum(sum_x);
  sum_y = warp_reduce_sum(sum_y);
  if (threadIdx.x % 32 != 0) return;
  Acc* to = static_cast<Acc*>(p.grad_flow.data) + b * 2 * n + pixel % n;
  to[0] = sum_x;
  to[n] = sum_y;
}

}  // namespace cosegflow::local_correlation_cuda

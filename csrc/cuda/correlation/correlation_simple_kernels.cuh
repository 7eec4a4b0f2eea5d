// correlation, the plainly right kernels: no packing, no tiles, no shared memory; every thread reads the caller's
// tensors through their strides.
//
// Forward: one thread per entry of the volume; it sums the product and both squared norms over the channels.
//   Neighbouring threads have neighbouring targets. Moves 2 * C elements per entry through the caches; 6 * C FLOPs.
// Backward, for each side in three steps: the factor 1 / norm per pixel of the other side (one thread per pixel), the
//   gradient of the normalized features (one thread per pixel and channel), the gradient of the features (one thread
//   per pixel). Nothing is pipelined. Fraction of the limit reached: not measured yet.
#pragma once

#include "common/half.h"
#include "cosegflow/correlation.h"
#include "primitives/launch.cuh"
#include "primitives/real_math.cuh"

namespace cosegflow::correlation_cuda {

// One side: its features and grid.
struct Side {
  View4 features;
  int64_t height, width;
  CSF_HD int64_t positions() const { return height * width; }
};

template <class T>
__device__ __forceinline__ accumulate_t<T> feature(const Side& s, int64_t b, int64_t c, int64_t position) {
  const View4& f = s.features;
  const int64_t y = position / s.width, x = position % s.width;
  return to_float(static_cast<const T*>(f.data)[b * f.stride[0] + c * f.stride[1] + y * f.stride[2] + x * f.stride[3]]);
}

template <class T>
__global__ void __launch_bounds__(256) correlation_simple_kernel(CorrelationParams p, Side a, Side b) {
  using Acc = accumulate_t<T>;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t rows = a.positions(), cols = b.positions();
  if (at >= p.batch * rows * cols) return;
  const int64_t j = at % cols, i = at / cols % rows, image = at / cols / rows;
  Acc product = Acc(0), square_a = Acc(0), square_b = Acc(0);
  for (int64_t c = 0; c < p.channels; ++c) {
    const Acc x = feature<T>(a, image, c, i), y = feature<T>(b, image, c, j);
    product += x * y, square_a += x * x, square_b += y * y;
  }
  if (p.normalize) product *= inverse_norm_of(square_a) * inverse_norm_of(square_b);
  if (p.relu && product < Acc(0)) product = Acc(0);
  static_cast<T*>(p.corr)[at] = from_float<T>(product);
}

// inv_norm (B, positions)
template <class T>
__global__ void __launch_bounds__(256)
    correlation_simple_norm_kernel(CorrelationParams p, Side s, accumulate_t<T>* inv_norm) {
  using Acc = accumulate_t<T>;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, n = s.positions();
  if (at >= p.batch * n) return;
  Acc square = Acc(0);
  for (int64_t c = 0; c < p.channels; ++c) {
    const Acc x = feature<T>(s, at / n, c, at % n);
    square += x * x;
  }
  inv_norm[at] = p.normalize ? inverse_norm_of(square) : Acc(1);
}

// grad_f_hat (B, positions of `self`, C) = sum over the positions of `other` of gradient * f_hat of other.
template <class T>
__global__ void __launch_bounds__(256)
    correlation_simple_product_kernel(CorrelationParams p, Side self, Side other, bool self_is_a,
                                      const accumulate_t<T>* inv_norm_other, accumulate_t<T>* grad_f_hat) {
  using Acc = accumulate_t<T>;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t n = self.positions(), m = other.positions();
  if (at >= p.batch * n * p.channels) return;
  const int64_t c = at % p.channels, i = at / p.channels % n, b = at / p.channels / n;
  Acc sum = Acc(0);
  for (int64_t j = 0; j < m; ++j) {
    const int64_t entry = self_is_a ? (b * n + i) * m + j : (b * m + j) * n + i;
    if (p.relu && to_float(static_cast<const T*>(p.corr)[entry]) <= Acc(0)) continue;
    const Acc gradient = to_float(static_cast<const T*>(p.grad_corr)[entry]);
    sum += gradient * (feature<T>(other, b, c, j) * inv_norm_other[b * m + j]);
  }
  grad_f_hat[at] = sum;
}

// grad (B, C, positions) from grad_f_hat; the formula is in normalize_backward.cuh.
template <class T>
__global__ void __launch_bounds__(256)
    correlation_simple_normalize_kernel(CorrelationParams p, Side s, const accumulate_t<T>* inv_norm,
                                        const accumulate_t<T>* grad_f_hat, T* grad) {
  using Acc = accumulate_t<T>;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, n = s.positions();
  if (at >= p.batch * n) return;
  const int64_t b = at / n, i = at % n;
  const Acc scale = inv_norm[at];
  const Acc* d = grad_f_hat + at * p.channels;
  Acc inner = Acc(0);
  if (p.normalize && scale < Acc(1) / Acc(1e-12)) {
    for (int64_t c = 0; c < p.channels; ++c) inner += d[c] * (feature<T>(s, b, c, i) * scale);
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    const Acc g = p.normalize ? (d[c] - inner * (feature<T>(s, b, c, i) * scale)) * scale : d[c];
    grad[(b * p.channels + c) * n + i] = from_float<T>(g);
  }
}

}  // namespace cosegflow::correlation_cuda

// What the soft argmax kernels share: geometry, accesses of 16 bytes, places without divisions, the window, and the log
// weights of the targets, which are computed once per call.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/arena.h"
#include "common/dispatch.h"
#include "common/half.h"
#include "common/log.h"
#include "common/round_up.h"
#include "common/soft_argmax_checks.h"
#include "kernel_window.cuh"
#include "mask_weight.cuh"
#include "primitives/launch.cuh"
#include "primitives/online_softmax.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::soft_argmax_cuda {

inline int64_t sources(const SoftArgmaxParams& p) { return p.height_a * p.width_a; }
inline int64_t targets(const SoftArgmaxParams& p) { return p.height_b * p.width_b; }

// kCount values from global or shared memory, in 16-byte words. kCount * sizeof(T) is a multiple of 16, p aligned
// to 16.
template <class T, int kCount>
__device__ __forceinline__ void load_vector(T (&values)[kCount], const T* p) {
  constexpr int kWords = kCount * static_cast<int>(sizeof(T)) / 16;
  uint4 words[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) words[w] = __ldg(reinterpret_cast<const uint4*>(p) + w);
  memcpy(values, words, sizeof(values));
}
template <class T, int kCount>
__device__ __forceinline__ void load_shared(T (&values)[kCount], const T* p) {
  constexpr int kWords = kCount * static_cast<int>(sizeof(T)) / 16;
  uint4 words[kWords];
#pragma unroll
  for (int w = 0; w < kWords; ++w) words[w] = reinterpret_cast<const uint4*>(p)[w];
  memcpy(values, words, sizeof(values));
}
// Division by a number that a launch knows, in three instructions instead of twenty (Granlund and Montgomery): n / d is
// (floor(n m / 2^32) + n) / 2^l with 2^l >= d and m = floor(2^32 (2^l - d) / d) + 1.
struct Divisor {
  int divisor = 1;  // at least 1
  unsigned multiplier = 1, shift = 0;

  Divisor() = default;
  explicit Divisor(int d) : divisor(d) {
    while ((uint64_t{1} << shift) < static_cast<uint64_t>(d)) ++shift;
    const uint64_t by = static_cast<uint64_t>(d);
    multiplier = static_cast<unsigned>(((((uint64_t{1} << shift) - by) << 32) / by) + 1);
  }
  __device__ __forceinline__ int quotient(int n) const {  // n >= 0
    const unsigned u = static_cast<unsigned>(n);
    return static_cast<int>((__umulhi(u, multiplier) + u) >> shift);
  }
};

// A pixel that walks in raster order in steps of a fixed length. Coordinates are whole numbers below 2^24: exact.
template <class Acc>
struct RasterStep {
  Acc x, y;
  __device__ __forceinline__ RasterStep(int64_t length, int64_t width)
      : x(static_cast<Acc>(length % width)), y(static_cast<Acc>(length / width)) {}
};
template <class Acc>
__device__ __forceinline__ void advance(Acc& x, Acc& y, const RasterStep<Acc>& step, Acc width) {
  x += step.x, y += step.y;
  if (x >= width) x -= width, y += Acc(1);
}

template <class Acc>
__device__ __forceinline__ Acc beta_of(const SoftArgmaxParams& p, int64_t b) {
  return static_cast<const Acc*>(p.beta.data)[b * p.beta.stride[0]];
}

// A gradient that may be missing.
template <class Acc>
__device__ __forceinline__ Acc gradient_or_zero(const void* data, int64_t at) {
  return data == nullptr ? Acc(0) : static_cast<const Acc*>(data)[at];
}

// The window (kernel_window.cuh) of the fast kernels. In float32 its exponent is to the base 2. On the host, because it
// takes divisions in float64. Finite, so that 0 times it is 0.
template <class Acc>
Acc window_exponent(double sigma) {
  const Acc rate = window_rate<Acc>(sigma);
  if (sizeof(Acc) == sizeof(double)) return rate;
  return rate < Acc(2e38) ? rate * Acc(1.4426950408889634) : rate;
}
__device__ __forceinline__ float window_value(float exponent, float dx2, float dy2) {
  return exp2_fast(fma_of(-exponent, dx2, -exponent * dy2));
}
__device__ __forceinline__ double window_value(double exponent, double dx2, double dy2) {
  return exp_of(-exponent * (dx2 + dy2));
}

// exp_of (real_math.cuh) loses |x| 2^-24, which is nothing next to a peak at x = 0. Here x is relative to lse: where
// all probabilities are small it is not.
__device__ __forceinline__ float precise_exp(float x) { return expf(x); }
__device__ __forceinline__ double precise_exp(double x) { return exp(x); }

// What a row of the backward needs: p_ij = exp(logit_ij - lse), d(loss)/d(logit_ij) = p_ij (g . (q_j - E_i) + g_lse).
template <class Acc>
struct BackwardRow {
  Acc expected_x, expected_y, grad_x, grad_y, grad_lse, lse;
  KernelWindow<Acc> window;  // only with a kernel_sigma
  __device__ __forceinline__ bool excluded() const { return lse == minus_infinity<Acc>(); }
  __device__ __forceinline__ Acc grad_logit(Acc logit, Acc x, Acc y) const {
    return precise_exp(logit - lse) * (grad_x * (x - expected_x) + grad_y * (y - expected_y) + grad_lse);
  }
};

// Incoming gradients of an excluded row are not read: they may be NaN.
template <class Acc>
__device__ __forceinline__ BackwardRow<Acc> load_row(const SoftArgmaxParams& p, int64_t b, int64_t i) {
  const int64_t rows = p.height_a * p.width_a, y = i / p.width_a, x = i % p.width_a;
  BackwardRow<Acc> row{};
  row.lse = static_cast<const Acc*>(p.lse.data)[b * rows + i];
  if (row.excluded()) return row;
  const Acc* flow = static_cast<const Acc*>(p.flow.data) + b * 2 * rows + i;
  row.expected_x = flow[0] + static_cast<Acc>(x), row.expected_y = flow[rows] + static_cast<Acc>(y);
  const View4& gf = p.grad_flow;
  const int64_t at = b * gf.stride[0] + y * gf.stride[2] + x * gf.stride[3];
  row.grad_x = gradient_or_zero<Acc>(gf.data, at), row.grad_y = gradient_or_zero<Acc>(gf.data, at + gf.stride[1]);
  const View3& gl = p.grad_lse;
  if (p.kernel_sigma > 0) {
    row.window = KernelWindow<Acc>::around(p.index[b * rows + i], p.width_b, p.kernel_sigma);
  }
  row.grad_lse = gradient_or_zero<Acc>(gl.data, b * gl.stride[0] + y * gl.stride[1] + x * gl.stride[2]);
  return row;
}

// log_weight (B, Hb * Wb), -inf for excluded targets. One thread per target.
template <class Acc>
__global__ void __launch_bounds__(256) soft_argmax_weight_kernel(SoftArgmaxParams p, Acc* log_weight) {
  const int64_t n = p.height_b * p.width_b, at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at >= p.batch * n) return;
  const int64_t j = at % n;
  log_weight[at] = mask_weight<Acc>(p.mask_b, at / n, j / p.width_b, j % p.width_b).log_weight;
}

// Blocks and threads in one dimension; more blocks than that would take more memory than a GPU has.
inline Status grid_of(int64_t blocks, dim3& grid) {
  if (blocks > INT32_MAX) return Status{"soft_argmax: the volume is too large for one launch"};
  grid = dim3(static_cast<unsigned>(blocks));
  return {};
}

template <class Acc>
Status launch_weights(const SoftArgmaxParams& p, Acc* log_weight, Stream stream) {
  dim3 grid;
  if (Status s = grid_of(ceil_div(p.batch * targets(p), 256), grid); !s.ok()) return s;
  return launch(&soft_argmax_weight_kernel<Acc>, grid, dim3(256), 0, stream, p, log_weight);
}

// Says with COSEGFLOW_LOG=1 which kernels a call takes: the fast ones take whatever comes.
inline void log_kernels(const SoftArgmaxParams& p, const char* operation) {
  log_path(operation, p.simple ? "simple kernels" : "streaming kernels",
           p.simple ? "the simple kernels were asked for" : nullptr);
}

inline bool aligned_rows(const void* volume, int64_t row_bytes) {
  return volume == nullptr || (reinterpret_cast<uintptr_t>(volume) % 16 == 0 && row_bytes % 16 == 0);
}

}  // namespace cosegflow::soft_argmax_cuda

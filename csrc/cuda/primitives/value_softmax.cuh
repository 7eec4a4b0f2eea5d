// Online softmax in base 2 whose value is a vector: sums of 2^(k logit - base) and of that times each value, with
// k = log2(e), so that an exponential is one multiply-add and one instruction of the special-function unit. Logits
// themselves stay natural: k logit might overflow where the logit does not.
//
// The base of a row is its largest logit times k, rounded; everything is relative to the rounded base, and what
// rounding took (`base_residual`, at most 16) is put back into the log-sum-exp. From |logit| = 2^28 on it would grow to
// more than an exponential holds, and k is 1: two logits of that size are either equal or at least 16 apart, so every
// term is 1 or next to nothing whatever k is.
#pragma once

#include <cuda_runtime.h>

#include "primitives/launch.cuh"
#include "primitives/real_math.cuh"

namespace cosegflow {

struct ExponentBase {
  float k, base;  // a term is 2^(k logit - base)

  // Of a row whose largest logit is `peak`; -inf (nothing allowed yet) is taken as 0, because -inf - -inf is NaN.
  static __device__ __forceinline__ ExponentBase of(float peak) {
    const float finite = peak == minus_infinity<float>() ? 0.0f : peak;
    const float k = fabsf(finite) >= 268435456.0f ? 1.0f : 1.4426950408889634f;  // 2^28
    return {k, rounded_product(finite, k)};                                      // the same bits wherever it is used
  }
  __device__ __forceinline__ float term(float logit) const { return exp2_fast(fma_of(logit, k, -base)); }
};

template <int kValues>
struct alignas(kValues == 2 ? 16 : 4) ValueSoftmax {
  float peak, total, value[kValues];

  __device__ __forceinline__ void clear() {
    peak = minus_infinity<float>(), total = 0.0f;
#pragma unroll
    for (int v = 0; v < kValues; ++v) value[v] = 0.0f;
  }

  // Makes `new_peak` >= peak the one that the sums are relative to, and returns the base for further terms.
  __device__ __forceinline__ ExponentBase raise(float new_peak) {
    const ExponentBase to = ExponentBase::of(new_peak);
    const float factor = factor_to(to);
    total *= factor, peak = new_peak;
#pragma unroll
    for (int v = 0; v < kValues; ++v) value[v] *= factor;
    return to;
  }

  __device__ __forceinline__ void merge(const ValueSoftmax& other) {
    const float theirs = other.factor_to(raise(max_of(peak, other.peak)));
    total = fma_of(other.total, theirs, total);
#pragma unroll
    for (int v = 0; v < kValues; ++v) value[v] = fma_of(other.value[v], theirs, value[v]);
  }

  // Merges the states of `Width` neighbouring lanes; all of them get the result, bit for bit the same, because the sum
  // of two numbers does not depend on their order. Every lane of the warp must call it.
  template <int Width>
  __device__ __forceinline__ void merge_lanes() {
    float highest = peak;
#pragma unroll
    for (int lanes = 1; lanes < Width; lanes *= 2) {
      highest = max_of(highest, __shfl_xor_sync(0xffffffffu, highest, lanes));
    }
    raise(highest);
#pragma unroll
    for (int lanes = 1; lanes < Width; lanes *= 2) {
      total += __shfl_xor_sync(0xffffffffu, total, lanes);
#pragma unroll
      for (int v = 0; v < kValues; ++v) value[v] += __shfl_xor_sync(0xffffffffu, value[v], lanes);
    }
  }

  // Field by field: a choice between two structs would take their addresses and put both into local memory.
  __device__ __forceinline__ void take_if(bool wanted, const ValueSoftmax& other) {
    peak = wanted ? other.peak : peak;
    total = wanted ? other.total : total;
#pragma unroll
    for (int v = 0; v < kValues; ++v) value[v] = wanted ? other.value[v] : value[v];
  }

  __device__ __forceinline__ bool empty() const { return total == 0.0f; }
  __device__ __forceinline__ float mean(int v) const { return value[v] / total; }
  __device__ __forceinline__ float log_sum_exp() const {
    if (empty()) return peak;
    const ExponentBase at = ExponentBase::of(peak);
    return peak + fma_of(base_residual(at), -0.6931471805599453f, log_of(total));
  }
  __device__ __forceinline__ float largest_probability() const {
    if (empty()) return 0.0f;
    return exp2_fast(base_residual(ExponentBase::of(peak))) / total;
  }

 private:
  // 2^(this state's base - to.base); 0 where nothing was allowed.
  __device__ __forceinline__ float factor_to(const ExponentBase& to) const {
    if (peak == minus_infinity<float>()) return 0.0f;
    const ExponentBase from = ExponentBase::of(peak);
    if (from.k == to.k) return exp2_fast(from.base - to.base);
    return exp2_fast(fma_of(peak, to.k, -to.base) - base_residual(from));
  }
  // k peak - base: what rounding the base took.
  __device__ __forceinline__ float base_residual(const ExponentBase& at) const { return fma_of(peak, at.k, -at.base); }
};

}  // namespace cosegflow

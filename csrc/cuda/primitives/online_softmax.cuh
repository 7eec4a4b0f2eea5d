// Online softmax whose value is a coordinate: the softmax-weighted mean of (x, y) over a stream of logits, in one pass
// and O(1) registers. The sums are kept relative to the largest logit so far; a larger one rescales them.
// A logit of -inf is an excluded entry; a NaN logit makes the sums NaN. Differences are taken before the exponential's
// change of base: a logit times log2(e) might overflow.
#pragma once

#include <cuda_runtime.h>

#include "primitives/launch.cuh"
#include "primitives/real_math.cuh"

namespace cosegflow {

template <class Acc>
struct OnlineSoftmax {
  Acc peak, total, x, y;  // the largest logit; sums of e, e * x, e * y with e = exp(logit - peak)

  __device__ __forceinline__ void clear() {
    peak = minus_infinity<Acc>();
    total = x = y = Acc(0);
  }

  // What logits are taken relative to: never -inf, because -inf - -inf is NaN.
  static __device__ __forceinline__ Acc base_of(Acc peak) { return peak == minus_infinity<Acc>() ? Acc(0) : peak; }

  template <int kCount>
  __device__ __forceinline__ void add(const Acc (&logit)[kCount], const Acc (&at_x)[kCount],
                                      const Acc (&at_y)[kCount]) {
    Acc new_peak = peak;
#pragma unroll
    for (int n = 0; n < kCount; ++n) new_peak = max_of(new_peak, logit[n]);
    const Acc base = base_of(new_peak);
    const Acc rescale = exp_of(peak - base);
    total *= rescale, x *= rescale, y *= rescale, peak = new_peak;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const Acc e = exp_of(logit[n] - base);
      total += e, x += e * at_x[n], y += e * at_y[n];
    }
  }

  __device__ __forceinline__ void merge(const OnlineSoftmax& other) {
    const Acc new_peak = max_of(peak, other.peak), base = base_of(new_peak);
    const Acc mine = exp_of(peak - base), theirs = exp_of(other.peak - base);
    total = total * mine + other.total * theirs;
    x = x * mine + other.x * theirs;
    y = y * mine + other.y * theirs;
    peak = new_peak;
  }

  // Merges the states of `Width` neighbouring lanes; all of them get the result. Every lane of the warp must call it.
  template <int Width = 32>
  __device__ __forceinline__ void merge_lanes() {
#pragma unroll
    for (int lanes = Width / 2; lanes > 0; lanes /= 2) {
      OnlineSoftmax other;
      other.peak = __shfl_xor_sync(0xffffffffu, peak, lanes);
      other.total = __shfl_xor_sync(0xffffffffu, total, lanes);
      other.x = __shfl_xor_sync(0xffffffffu, x, lanes);
      other.y = __shfl_xor_sync(0xffffffffu, y, lanes);
      merge(other);
    }
  }

  // Nothing was allowed: every logit was -inf.
  __device__ __forceinline__ bool empty() const { return total == Acc(0); }
  __device__ __forceinline__ Acc log_sum_exp() const { return empty() ? peak : base_of(peak) + log_of(total); }
  __device__ __forceinline__ Acc mean_x() const { return x / total; }
  __device__ __forceinline__ Acc mean_y() const { return y / total; }
  __device__ __forceinline__ Acc largest_probability() const { return empty() ? Acc(0) : Acc(1) / total; }
};

}  // namespace cosegflow

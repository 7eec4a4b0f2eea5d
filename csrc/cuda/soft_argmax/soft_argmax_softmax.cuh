// The softmax of a row over the places of its targets: sums of terms 2^(k logit - base) (value_softmax.cuh), or
// exp(logit - base) in float64, and of terms times x and y.
#pragma once

#include "primitives/online_softmax.cuh"
#include "primitives/value_softmax.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::soft_argmax_cuda {

template <class Acc>
struct PlaceSoftmax;

template <>
struct PlaceSoftmax<float> : ValueSoftmax<2> {
  using Base = ExponentBase;
  // From one base to a higher one. Where k changes the peaks are at least 16 apart: next to nothing is left.
  static __device__ __forceinline__ float factor(const Base& from, const Base& to) {
    return from.k == to.k ? exp2_fast(from.base - to.base) : 0.0f;
  }
  // exp(-peak) / 2^-base: what rounding the base took.
  static __device__ __forceinline__ float remainder(const Base& at, float peak) {
    return exp2_fast(fma_of(-peak, at.k, at.base));
  }
  __device__ __forceinline__ float& sum_x() { return value[0]; }
  __device__ __forceinline__ float& sum_y() { return value[1]; }
  __device__ __forceinline__ float mean_x() const { return mean(0); }
  __device__ __forceinline__ float mean_y() const { return mean(1); }
};

template <>
struct PlaceSoftmax<double> : OnlineSoftmax<double> {
  struct Base {
    double base;
    static __device__ __forceinline__ Base of(double peak) { return {base_of(peak)}; }
    __device__ __forceinline__ double term(double logit) const { return exp_of(logit - base); }
  };
  static __device__ __forceinline__ double factor(const Base& from, const Base& to) {
    return exp_of(from.base - to.base);
  }
  static __device__ __forceinline__ double remainder(const Base&, double) { return 1.0; }
  __device__ __forceinline__ double& sum_x() { return x; }
  __device__ __forceinline__ double& sum_y() { return y; }
};

// While it grows: with the base that terms are relative to.
template <class Acc>
struct RunningSoftmax : PlaceSoftmax<Acc> {
  using Base = typename PlaceSoftmax<Acc>::Base;
  Base at;

  __device__ __forceinline__ void clear() {
    PlaceSoftmax<Acc>::clear();
    at = Base::of(this->peak);
  }
  // Makes `new_peak` >= peak the one that terms are relative to.
  __device__ __forceinline__ void raise(Acc new_peak) {
    const Base to = Base::of(new_peak);
    const Acc factor = this->peak > minus_infinity<Acc>() ? PlaceSoftmax<Acc>::factor(at, to) : Acc(0);
    this->total *= factor, this->sum_x() *= factor, this->sum_y() *= factor;
    this->peak = new_peak, at = to;
  }
  // Merges the states of a warp; all lanes get the result.
  __device__ __forceinline__ void merge_warp() {
    raise(warp_reduce_max(this->peak));
    this->total = warp_reduce_sum(this->total);
    this->sum_x() = warp_reduce_sum(this->sum_x());
    this->sum_y() = warp_reduce_sum(this->sum_y());
  }
};

}  // namespace cosegflow::soft_argmax_cuda

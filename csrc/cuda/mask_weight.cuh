// Reading a mask of any dtype and strides as weights: NaN and negative count as 0, +inf as the largest finite value of
// the mask's own dtype. The logarithm of a float64 mask is taken in float64 also where the rest is float32.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "common/half.h"
#include "cosegflow/types.h"
#include "primitives/real_math.cuh"

namespace cosegflow {

template <class Acc>
struct MaskWeight {
  Acc weight;  // 0: excluded; positive and finite otherwise
  Acc log_weight;
};

template <class Acc>
__device__ __forceinline__ MaskWeight<Acc> excluded_weight() {
  return {Acc(0), minus_infinity<Acc>()};
}

// The weight in the accumulate type, from a positive finite value. A float64 weight that float32 would round to 0 or to
// infinity stays positive and finite: gradients are divided by it.
__device__ __forceinline__ float narrow_weight(double v, float) {
  return static_cast<float>(v < FLT_MIN ? static_cast<double>(FLT_MIN) : (v > FLT_MAX ? FLT_MAX : v));
}
__device__ __forceinline__ double narrow_weight(double v, double) { return v; }

template <class Acc>
__device__ __forceinline__ MaskWeight<Acc> weight_of_float(float v, float largest) {
  if (!(v > 0)) return excluded_weight<Acc>();
  const Acc w = v > largest ? largest : v;
  return {w, log_of(w)};
}

// The weight at one pixel; without a mask it is 1 everywhere.
template <class Acc>
__device__ __forceinline__ MaskWeight<Acc> mask_weight(const View3& mask, int64_t b, int64_t y, int64_t x) {
  if (mask.data == nullptr) return {Acc(1), Acc(0)};
  const int64_t at = b * mask.stride[0] + y * mask.stride[1] + x * mask.stride[2];
  switch (mask.dtype) {
    case DType::kBool:
      if (static_cast<const uint8_t*>(mask.data)[at] == 0) return excluded_weight<Acc>();
      return {Acc(1), Acc(0)};
    case DType::kFloat16: return weight_of_float<Acc>(to_float(static_cast<const Half*>(mask.data)[at]), 65504.0f);
    case DType::kBFloat16:
      return weight_of_float<Acc>(to_float(static_cast<const BFloat16*>(mask.data)[at]), 3.3895313892515355e38f);
    case DType::kFloat32: return weight_of_float<Acc>(static_cast<const float*>(mask.data)[at], FLT_MAX);
    case DType::kFloat64: {
      double v = static_cast<const double*>(mask.data)[at];
      if (!(v > 0)) return excluded_weight<Acc>();
      v = v > DBL_MAX ? DBL_MAX : v;
      return {narrow_weight(v, Acc()), static_cast<Acc>(log_of(v))};
    }
  }
  return excluded_weight<Acc>();
}

}  // namespace cosegflow

// The gradient of the scores, ds, as halves, for products on tensor cores: which factors it carries, and the scale that
// float16 needs.
//
// bfloat16 has the range of float32, so ds takes the factors inv_norm of its row and column with it, and both products
// multiply the features as they are packed ("folded"). float16 has not: its ds carries a power of two instead, one for
// each image, so that the largest that it might be is about 2^14, and the products take features of norm 1
// (normalize_rows.cuh). normalize_backward.cuh takes that power out again (`unscale`).
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/half.h"
#include "primitives/real_math.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow {

template <class T>
constexpr bool kFolded = std::is_same<T, BFloat16>::value;

// The power of two by which ds is scaled where no |ds| is above `bound`; 1 where the bound says nothing. At most 2^100,
// so that products with it are finite: what is lost are gradients below 1e-31.
__device__ __forceinline__ float range_scale(float bound) {
  if (!(bound > 0.0f) || !(bound < HUGE_VALF)) return 1.0f;
  const int exponent = static_cast<int>(__float_as_uint(bound) >> 23) - 127;  // of a subnormal -127
  return __uint_as_float(static_cast<uint32_t>(min(max(127 + 13 - exponent, 1), 227)) << 23);
}
// 1 / range_scale(bound), exactly.
__device__ __forceinline__ float range_unscale(float bound) {
  return __uint_as_float((254u << 23) - __float_as_uint(range_scale(bound)));
}

// A factor of what may be 0: large, but never infinite.
__device__ __forceinline__ float finite_factor(float factor) { return fminf(fmaxf(factor, -3.4e38f), 3.4e38f); }

// What the bound of image b learns from a warp. All lanes; those without a row have bound -1. One atomic a warp, but
// where a warp has rows of two images.
__device__ __forceinline__ void raise_bound(int* bounds, int64_t b, float bound) {
  int bits = bound < HUGE_VALF ? __float_as_int(bound) : -1;
  const int first = static_cast<int>(__shfl_sync(0xffffffffu, static_cast<int>(b), 0));
  const bool together = __all_sync(0xffffffffu, first == static_cast<int>(b));
  if (together) bits = warp_reduce_max(bits);
  // Numbers >= 0 are in the order of their bits, so it does not matter who is first.
  if (bits >= 0 && (!together || threadIdx.x % 32 == 0)) atomicMax(bounds + b, bits);
}

}  // namespace cosegflow

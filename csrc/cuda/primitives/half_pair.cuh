// Two float32 numbers to two halves in a word, the first in the lower half, rounded to nearest even; kRelu: negative
// ones to 0, in the same instruction. A NaN stays one.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/half.h"

namespace cosegflow {

// T is Half or BFloat16.
template <class T, bool kRelu = false>
__device__ __forceinline__ uint32_t half_pair(float low, float high) {
  static_assert(std::is_same<T, Half>::value || std::is_same<T, BFloat16>::value, "two of 16 bits fit a word");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define CSF_CONVERT(operation) asm(operation " %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low))
  uint32_t pair;
  if constexpr (std::is_same<T, Half>::value) {
    if constexpr (kRelu) {
      CSF_CONVERT("cvt.rn.relu.f16x2.f32");
    } else {
      CSF_CONVERT("cvt.rn.f16x2.f32");
    }
  } else {
    if constexpr (kRelu) {
      CSF_CONVERT("cvt.rn.relu.bf16x2.f32");
    } else {
      CSF_CONVERT("cvt.rn.bf16x2.f32");
    }
  }
#undef CSF_CONVERT
  return pair;
#else
  if (kRelu && low < 0.0f) low = 0.0f;
  if (kRelu && high < 0.0f) high = 0.0f;
  return static_cast<uint32_t>(from_float<T>(low).bits) | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
#endif
}

}  // namespace cosegflow

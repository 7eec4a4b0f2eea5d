// Sixteen bytes of a row of scores, as one load brings them: as numbers, and, of 16-bit scores, two at a time.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/half.h"
#include "primitives/real_math.cuh"

namespace cosegflow::soft_argmax_cuda {

namespace detail {

__device__ __forceinline__ float smaller(float a, float b) { return fminf(a, b); }
__device__ __forceinline__ double smaller(double a, double b) { return fmin(a, b); }

// Of two pairs of halves the larger or smaller ones; a NaN loses against a number.
template <class T, bool kLeast>
__device__ __forceinline__ uint32_t extreme_pair(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  using Pair = std::conditional_t<std::is_same<T, Half>::value, __half2, __nv_bfloat162>;
  Pair x, y;
  memcpy(&x, &a, 4), memcpy(&y, &b, 4);
  const Pair best = kLeast ? __hmin2(x, y) : __hmax2(x, y);
  memcpy(&a, &best, 4);
  return a;
#else
  T x[2], y[2];
  memcpy(x, &a, 4), memcpy(y, &b, 4);
  for (int i = 0; i < 2; ++i) {
    const float p = to_float(x[i]), q = to_float(y[i]);
    if ((kLeast ? q < p : q > p) || p != p) x[i] = y[i];
  }
  memcpy(&a, x, 4);
  return a;
#endif
}

// max(s, 0) of a pair of halves, where a NaN stays one.
template <class T>
__device__ __forceinline__ uint32_t clipped_pair(uint32_t a) {
#if defined(__CUDA_ARCH__)
  using Pair = std::conditional_t<std::is_same<T, Half>::value, __half2, __nv_bfloat162>;
  Pair x, zero;
  const uint32_t none = 0;
  memcpy(&x, &a, 4), memcpy(&zero, &none, 4);
  const Pair clipped = __hmax2_nan(x, zero);
  memcpy(&a, &clipped, 4);
  return a;
#else
  T x[2];
  memcpy(x, &a, 4);
  for (int i = 0; i < 2; ++i) {
    if (to_float(x[i]) <= 0.0f) x[i] = T{};
  }
  memcpy(&a, x, 4);
  return a;
#endif
}

// Two numbers rounded to nearest even, the first in the lower half: one instruction.
template <class T>
__device__ __forceinline__ uint32_t rounded_pair(float low, float high) {
  uint32_t word;
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same<T, Half>::value) {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&word, &pair, 4);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&word, &pair, 4);
  }
#else
  const T pair[2] = {from_float<T>(low), from_float<T>(high)};
  memcpy(&word, pair, 4);
#endif
  return word;
}

}  // namespace detail

template <class T>
struct Pack {
  using Acc = accumulate_t<T>;
  static constexpr int kItems = 16 / static_cast<int>(sizeof(T));
  uint4 words;

  __device__ __forceinline__ void unpack(Acc (&scores)[kItems]) const {
    if constexpr (std::is_same<T, BFloat16>::value) {  // one instruction each: a bfloat16 is the upper half of a float
      const uint32_t pair[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int u = 0; u < kItems; ++u) {
        const uint32_t bits = u % 2 == 0 ? pair[u / 2] << 16 : pair[u / 2] & 0xffff0000u;
        memcpy(&scores[u], &bits, 4);
      }
    } else {
      T items[kItems];
      memcpy(items, &words, 16);
#pragma unroll
      for (int u = 0; u < kItems; ++u) scores[u] = to_float(items[u]);
    }
  }

  __device__ __forceinline__ void pack(const Acc (&scores)[kItems]) {
    if constexpr (sizeof(T) == 2) {
      words = {detail::rounded_pair<T>(scores[0], scores[1]), detail::rounded_pair<T>(scores[2], scores[3]),
               detail::rounded_pair<T>(scores[4], scores[5]), detail::rounded_pair<T>(scores[6], scores[7])};
    } else {
      memcpy(&words, scores, 16);
    }
  }

  // max(s, 0), where a NaN stays one.
  __device__ __forceinline__ void unpack_clipped(Acc (&scores)[kItems]) const {
    if constexpr (sizeof(T) == 2) {
      const auto clip = [](uint32_t word) { return detail::clipped_pair<T>(word); };
      Pack{{clip(words.x), clip(words.y), clip(words.z), clip(words.w)}}.unpack(scores);
    } else {
      unpack(scores);
#pragma unroll
      for (int u = 0; u < kItems; ++u) scores[u] = scores[u] <= Acc(0) ? Acc(0) : scores[u];
    }
  }
};

// The largest of the scores, or the smallest; NaN where all are.
template <bool kLeast, class T, int kCount>
__device__ __forceinline__ accumulate_t<T> extreme_score(const Pack<T> (&pack)[kCount]) {
  using Acc = accumulate_t<T>;
  const auto better = [](Acc a, Acc b) { return kLeast ? detail::smaller(a, b) : max_of(a, b); };
  if constexpr (sizeof(T) == 2) {
    const auto pair = [](uint32_t a, uint32_t b) { return detail::extreme_pair<T, kLeast>(a, b); };
    uint4 best = pack[0].words;
#pragma unroll
    for (int c = 1; c < kCount; ++c) {
      const uint4 w = pack[c].words;
      best = {pair(best.x, w.x), pair(best.y, w.y), pair(best.z, w.z), pair(best.w, w.w)};
    }
    const uint32_t last = pair(pair(best.x, best.y), pair(best.z, best.w));
    T halves[2];
    memcpy(halves, &last, 4);
    return better(to_float(halves[0]), to_float(halves[1]));
  } else {
    Acc best{};
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      Acc scores[Pack<T>::kItems];
      pack[c].unpack(scores);
#pragma unroll
      for (int u = 0; u < Pack<T>::kItems; ++u) best = c + u == 0 ? scores[0] : better(best, scores[u]);
    }
    return best;
  }
}

// Past L1 soon: a row is read once.
template <class T>
__device__ __forceinline__ Pack<T> load_once(const T* p) {
  return {__ldcs(reinterpret_cast<const uint4*>(p))};
}
template <class T>
__device__ __forceinline__ Pack<T> load_again(const T* p) {
  return {__ldg(reinterpret_cast<const uint4*>(p))};
}

}  // namespace cosegflow::soft_argmax_cuda

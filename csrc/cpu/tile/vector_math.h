// Vectors of the instruction set that the including file is compiled for, and 2^x on them.
//
// Included by tile/kernels_<isa>.cpp under its target pragma, with CSF_VECTOR_BYTES and CSF_ISA (a namespace) set.
// Everything is in a namespace of that file and nothing comes from the standard library: an inline function of <cmath>
// compiled here with AVX-512 could be the copy that the linker keeps for machines without it.
#pragma once

namespace cosegflow {
namespace CSF_ISA {

template <class T>
struct Vec;
template <>
struct Vec<float> {
  typedef float type __attribute__((vector_size(CSF_VECTOR_BYTES)));
  typedef int32_t bits __attribute__((vector_size(CSF_VECTOR_BYTES)));
};
template <>
struct Vec<double> {
  typedef double type __attribute__((vector_size(CSF_VECTOR_BYTES)));
  typedef int64_t bits __attribute__((vector_size(CSF_VECTOR_BYTES)));
};
template <class T>
using vec = typename Vec<T>::type;
using vecf = vec<float>;
using vecd = vec<double>;

template <class T>
constexpr int64_t kLanes = CSF_VECTOR_BYTES / int64_t(sizeof(T));

#define CSF_INLINE static inline __attribute__((always_inline))

template <class T>
CSF_INLINE vec<T> load(const T* p) {
  return *reinterpret_cast<const vec<T>*>(p);
}
template <class T>
CSF_INLINE void store(T* p, vec<T> v) {
  *reinterpret_cast<vec<T>*>(p) = v;
}
// The same at an address that need not be aligned.
template <class T>
CSF_INLINE vec<T> load_anywhere(const T* p) {
  vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <class T>
CSF_INLINE void store_anywhere(T* p, vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}
template <class T>
CSF_INLINE vec<T> splat(T value) {
  return vec<T>{} + value;
}

// The larger of each lane; where either is NaN, b. (So a running maximum b = larger(a, b) ignores NaN in a, and the
// lower clamp larger(limit, x) keeps a NaN in x.)
#if CSF_VECTOR_BYTES == 64
CSF_INLINE vecf larger(vecf a, vecf b) { return (vecf)_mm512_max_ps((__m512)a, (__m512)b); }
CSF_INLINE vecd larger(vecd a, vecd b) { return (vecd)_mm512_max_pd((__m512d)a, (__m512d)b); }
#elif CSF_VECTOR_BYTES == 32
CSF_INLINE vecf larger(vecf a, vecf b) { return (vecf)_mm256_max_ps((__m256)a, (__m256)b); }
CSF_INLINE vecd larger(vecd a, vecd b) { return (vecd)_mm256_max_pd((__m256d)a, (__m256d)b); }
#else
CSF_INLINE vecf larger(vecf a, vecf b) { return a > b ? a : b; }
CSF_INLINE vecd larger(vecd a, vecd b) { return a > b ? a : b; }
#endif

// 2^r on [-1/2, 1/2]: minimax polynomials (Remez, relative error 1.9e-9 and 3e-18 before rounding).
CSF_INLINE vecf exp2_fraction(vecf r) {
  vecf p = r * 1.5345812e-4f + 1.339993121e-3f;
  p = p * r + 9.618488957e-3f;
  p = p * r + 5.5503287770e-2f;
  p = p * r + 2.40226468906e-1f;
  p = p * r + 6.93147205738e-1f;
  return p * r + 1.0f;
}
CSF_INLINE vecd exp2_fraction(vecd r) {
  vecd p = r * 4.4352809446103362e-10 + 7.0741056262456594e-9;
  p = p * r + 1.0178198033328528e-7;
  p = p * r + 1.3215433089594629e-6;
  p = p * r + 1.5252733489960805e-5;
  p = p * r + 1.5403530462514613e-4;
  p = p * r + 1.333355814678995e-3;
  p = p * r + 9.6181291075883351e-3;
  p = p * r + 5.5504108664819921e-2;
  p = p * r + 2.4022650695910156e-1;
  p = p * r + 6.9314718055994533e-1;
  return p * r + 1.0;
}

// 2^x for x below the overflow threshold: about 1 ulp, 0 where the result would be subnormal, NaN for NaN.
// Split x = n + r with n whole; 2^r is the polynomial and 2^n the exponent field.
#if CSF_VECTOR_BYTES == 64
CSF_INLINE vecf exp2_below(vecf x) {
  x = larger(splat(-160.0f), x);
  const vecf n = (vecf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (vecf)_mm512_scalef_ps((__m512)exp2_fraction(x - n), (__m512)n);
}
CSF_INLINE vecd exp2_below(vecd x) {
  x = larger(splat(-1100.0), x);
  const vecd n = (vecd)_mm512_roundscale_pd((__m512d)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return (vecd)_mm512_scalef_pd((__m512d)exp2_fraction(x - n), (__m512d)n);
}
#else
// Adding 1.5 * 2^(mantissa bits) rounds x to a whole number, whose two's complement is then in the low bits of t.
// The clamp gives n = -bias, whose exponent field is 0: a factor of exactly 0.
CSF_INLINE vecf exp2_below(vecf x) {
  x = larger(splat(-127.0f), x);
  const vecf t = x + 12582912.0f;
  const vecf scale = (vecf)(((Vec<float>::bits)t + 127) << 23);
  return exp2_fraction(x - (t - 12582912.0f)) * scale;
}
CSF_INLINE vecd exp2_below(vecd x) {
  x = larger(splat(-1023.0), x);
  const vecd t = x + 6755399441055744.0;
  const vecd scale = (vecd)(((Vec<double>::bits)t + 1023) << 52);
  return exp2_fraction(x - (t - 6755399441055744.0)) * scale;
}
#endif

// Horizontal reductions. The lanes are added pairwise, halves first, in the order that shuffles have.
#if CSF_VECTOR_BYTES == 64
CSF_INLINE float sum_lanes(vecf v) { return _mm512_reduce_add_ps((__m512)v); }
CSF_INLINE double sum_lanes(vecd v) { return _mm512_reduce_add_pd((__m512d)v); }
CSF_INLINE float largest_lane(vecf v) { return _mm512_reduce_max_ps((__m512)v); }
CSF_INLINE double largest_lane(vecd v) { return _mm512_reduce_max_pd((__m512d)v); }
#else
template <class V>
CSF_INLINE auto sum_lanes(V v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  for (int half = lanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  }
  return v[0];
}
template <class V>
CSF_INLINE auto largest_lane(V v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  auto best = v[0];
  for (int i = 1; i < lanes; ++i) best = v[i] > best ? v[i] : best;
  return best;
}
#endif

}  // namespace CSF_ISA
}  // namespace cosegflow

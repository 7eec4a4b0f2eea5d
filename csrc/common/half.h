// float16 and bfloat16 as storage: 16 bits and conversions, no arithmetic (kernels compute in float32).
// One pair of types serves the CUDA kernels, the CPU kernels and hostsim; on the device the conversions are the
// hardware's, on the host they are spelled out, and both round to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define CSF_HD __host__ __device__ __forceinline__
#else
#define CSF_HD inline
#endif

namespace cosegflow {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

namespace detail {

inline float bits_to_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline uint32_t float_to_bits(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}

}  // namespace detail

CSF_HD float to_float(Half h) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(h.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t magnitude = h.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return detail::bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // inf, NaN
  // Scaling by 2^112 rebiases the exponent and normalises subnormals in one exact multiplication.
  const float value = detail::bits_to_float(magnitude << 13) * 5.192296858534828e33f;
  return detail::bits_to_float(sign | detail::float_to_bits(value));
#endif
}

CSF_HD float to_float(BFloat16 b) {
#if defined(__CUDA_ARCH__)
  return __bfloat162float(__ushort_as_bfloat16(b.bits));
#else
  return detail::bits_to_float(static_cast<uint32_t>(b.bits) << 16);
#endif
}

CSF_HD float to_float(float f) { return f; }
CSF_HD double to_float(double d) { return d; }

// from_float<T>(value): rounds to nearest even.
template <class T>
struct FromFloat;

template <>
struct FromFloat<Half> {
  static CSF_HD Half convert(float f) {
#if defined(__CUDA_ARCH__)
    return Half{__half_as_ushort(__float2half_rn(f))};
#else
    const uint32_t u = detail::float_to_bits(f);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t magnitude = u & 0x7fffffffu;
    uint32_t result;
    if (magnitude > 0x7f800000u) {
      result = 0x7fffu;  // NaN
    } else if (magnitude >= 0x477ff000u) {
      result = 0x7c00u;  // 65520 and more round to infinity
    } else if (magnitude < 0x38800000u) {
      // Subnormal: adding 0.5 lets the float adder round the bits below 2^-24.
      result = detail::float_to_bits(detail::bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    } else {
      result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    return Half{static_cast<uint16_t>(sign | result)};
#endif
  }
};

template <>
struct FromFloat<BFloat16> {
  static CSF_HD BFloat16 convert(float f) {
#if defined(__CUDA_ARCH__)
    return BFloat16{__bfloat16_as_ushort(__float2bfloat16_rn(f))};
#else
    const uint32_t u = detail::float_to_bits(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return BFloat16{static_cast<uint16_t>(0x7fffu)};
    return BFloat16{static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
#endif
  }
};

template <>
struct FromFloat<float> {
  static CSF_HD float convert(float f) { return f; }
};

template <>
struct FromFloat<double> {
  static CSF_HD double convert(double d) { return d; }
};

template <class T, class A>
CSF_HD T from_float(A value) {
  return FromFloat<T>::convert(value);
}

// The accumulator of inputs of type T: coordinates, log-sum-exp and sums are kept in it.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

}  // namespace cosegflow

// hostsim: the device functions that <cmath> does not have. The approximate ones (__expf, ...) are exact here: their
// rounding error is not modelled.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "hostsim/types.h"

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

// min and max as CUDA overloads them: a NaN operand loses.
#define CSF_HOSTSIM_MINMAX(type)                               \
  constexpr type min(type a, type b) { return b < a ? b : a; } \
  constexpr type max(type a, type b) { return a < b ? b : a; }
CSF_HOSTSIM_MINMAX(int)
CSF_HOSTSIM_MINMAX(unsigned)
CSF_HOSTSIM_MINMAX(long)
CSF_HOSTSIM_MINMAX(unsigned long)
CSF_HOSTSIM_MINMAX(long long)
CSF_HOSTSIM_MINMAX(unsigned long long)
#undef CSF_HOSTSIM_MINMAX
inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
inline double min(double a, double b) { return ::fmin(a, b); }
inline double max(double a, double b) { return ::fmax(a, b); }
inline double min(float a, double b) { return ::fmin(a, b); }
inline double min(double a, float b) { return ::fmin(a, b); }
inline double max(float a, double b) { return ::fmax(a, b); }
inline double max(double a, float b) { return ::fmax(a, b); }
constexpr unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
constexpr unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
constexpr unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
constexpr unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }

inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __expf(float x) { return ::expf(x); }
inline float __exp10f(float x) { return ::powf(10.0f, x); }
inline float __logf(float x) { return ::logf(x); }
inline float __log2f(float x) { return ::log2f(x); }
inline float __powf(float x, float y) { return ::powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return ::sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __saturatef(float x) { return x >= 1.0f ? 1.0f : (x > 0.0f ? x : 0.0f); }
// Never contracted into an fma on the device; hostsim is built with -ffp-contract=off.
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmaf_rn(float x, float y, float z) { return ::fmaf(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __fma_rn(double x, double y, double z) { return ::fma(x, y, z); }

namespace cosegflow {
namespace hostsim {
template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
// Float to integer as the hardware does it: NaN gives 0 (the minimum in 64 bits is what x86 would give: not copied).
template <class To, class From>
inline To saturate(From x) {
  if (!(x == x)) return 0;
  constexpr To low = std::is_signed_v<To> ? static_cast<To>(static_cast<To>(1) << (8 * sizeof(To) - 1)) : To(0);
  constexpr To high = static_cast<To>(~low);
  if (x <= static_cast<From>(low)) return low;
  if (x >= static_cast<From>(high)) return high;
  return static_cast<To>(x);
}
}  // namespace hostsim
}  // namespace cosegflow

inline int __float_as_int(float x) { return cosegflow::hostsim::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return cosegflow::hostsim::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return cosegflow::hostsim::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return cosegflow::hostsim::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return cosegflow::hostsim::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return cosegflow::hostsim::bit_cast<double>(x); }
inline int __float2int_rn(float x) { return cosegflow::hostsim::saturate<int>(::rintf(x)); }
inline int __float2int_rd(float x) { return cosegflow::hostsim::saturate<int>(::floorf(x)); }
inline int __float2int_ru(float x) { return cosegflow::hostsim::saturate<int>(::ceilf(x)); }
inline int __float2int_rz(float x) { return cosegflow::hostsim::saturate<int>(::truncf(x)); }
inline unsigned __float2uint_rn(float x) { return cosegflow::hostsim::saturate<unsigned>(::rintf(x)); }
inline unsigned __float2uint_rz(float x) { return cosegflow::hostsim::saturate<unsigned>(::truncf(x)); }
inline long long __float2ll_rn(float x) { return cosegflow::hostsim::saturate<long long>(::rintf(x)); }
inline long long __float2ll_rd(float x) { return cosegflow::hostsim::saturate<long long>(::floorf(x)); }
inline int __double2int_rn(double x) { return cosegflow::hostsim::saturate<int>(::rint(x)); }
inline int __double2int_rd(double x) { return cosegflow::hostsim::saturate<int>(::floor(x)); }
inline long long __double2ll_rn(double x) { return cosegflow::hostsim::saturate<long long>(::rint(x)); }
inline long long __double2ll_rd(double x) { return cosegflow::hostsim::saturate<long long>(::floor(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}
// Byte i of the result is byte selector's i-th digit of (b, a), without the mode that repeats a sign.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = static_cast<unsigned long long>(b) << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; ++i) r |= static_cast<unsigned>(bytes >> (selector >> (4 * i) & 7) * 8 & 0xff) << (8 * i);
  return r;
}
inline unsigned __brev(unsigned x) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= ((x >> i) & 1u) << (31 - i);
  return r;
}

// exp, log, sqrt, fma and max by the type of the argument, on the device and on the host; infinity as a constant.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

#include "common/half.h"

namespace cosegflow {

template <class A>
CSF_HD constexpr A minus_infinity() {
  return -static_cast<A>(HUGE_VAL);
}

// exp of a difference of logits d <= 0. In float by exp2, the hardware's own base: the rounding of the product with
// log2(e) is at most 2^-24 |d| exp(d) < 3e-8.
CSF_HD float exp_of(float d) { return exp2f(d * 1.4426950408889634f); }
CSF_HD double exp_of(double d) { return exp(d); }

// 2^x by the hardware's own instruction (relative error about 2^-22); results below 2^-126 are 0.
CSF_HD float exp2_fast(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
#endif
}

CSF_HD float log_of(float x) { return logf(x); }
CSF_HD double log_of(double x) { return log(x); }

CSF_HD float sqrt_of(float x) { return sqrtf(x); }
CSF_HD double sqrt_of(double x) { return sqrt(x); }

// 1 / max(norm, 1e-12) of a vector with this sum of squares; keeps a NaN.
template <class A>
CSF_HD A inverse_norm_of(A squares) {
  const A norm = sqrt_of(squares);
  return A(1) / (norm < A(1e-12) ? A(1e-12) : norm);
}

// Contracted explicitly, so that forward and backward round a logit in the same way.
CSF_HD float fma_of(float a, float b, float c) { return fmaf(a, b, c); }
CSF_HD double fma_of(double a, double b, double c) { return fma(a, b, c); }

// A product that is rounded, whatever is added to it: nvcc would make one instruction of both.
CSF_HD float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// A NaN loses against a number.
CSF_HD float max_of(float a, float b) { return fmaxf(a, b); }
CSF_HD double max_of(double a, double b) { return fmax(a, b); }

}  // namespace cosegflow

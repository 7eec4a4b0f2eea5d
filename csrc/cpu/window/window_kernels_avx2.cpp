// The window kernels for AVX2 and FMA. The target pragma is in force for them alone: the binary runs on any x86-64.
#include "cpu/window/window_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define CSF_ISA avx2
#define CSF_VECTOR_BYTES 32

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#include "cpu/tile/vector_math.h"

#include "cpu/window/window_kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace cosegflow {
const WindowKernels<float> kAvx2WindowFloat = avx2::kWindowTable<float>;
const WindowKernels<double> kAvx2WindowDouble = avx2::kWindowTable<double>;
}  // namespace cosegflow
#endif

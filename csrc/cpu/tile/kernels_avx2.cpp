// The tile kernels for AVX2 and FMA. The target pragma is in force for them alone: the binary runs on any x86-64.
#include "cpu/tile/tile_kernels.h"

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

#include "cpu/tile/product_kernel.h"
#include "cpu/tile/softmax_both_kernel.h"
#include "cpu/tile/softmax_kernel.h"
#include "cpu/tile/transfer_kernel.h"
#include "cpu/tile/window_kernel.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace cosegflow {
const TileKernels<float> kAvx2Float = avx2::kTable<float>;
const TileKernels<double> kAvx2Double = avx2::kTable<double>;
}  // namespace cosegflow
#endif

// The tile kernels for AVX-512. The target pragma is in force for them alone: the binary runs on any x86-64.
#include "cpu/tile/tile_kernels.h"

#if defined(__x86_64__)
// GCC's own intrinsics start from a vector that is undefined on purpose, and GCC 12 warns of it.
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define CSF_ISA avx512
#define CSF_VECTOR_BYTES 64

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
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
const TileKernels<float> kAvx512Float = avx512::kTable<float>;
const TileKernels<double> kAvx512Double = avx512::kTable<double>;
}  // namespace cosegflow
#endif

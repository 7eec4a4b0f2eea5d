// The product of bfloat16 pairs, for machines with AVX512_BF16; all else is the table of AVX-512.
//
// An element of a panel is 32 bits: two neighbours of the summed index. One instruction multiplies 16 pairs by a
// broadcast pair and adds both products to float32 sums, so the loops are those of the float32 product with half the
// steps. The products are exact; subnormal operands count as 0, which is why features are scaled by powers of two first
// (pack_cpu.cpp).
#include "cpu/tile/tile_kernels.h"

#if defined(__x86_64__)
// As in kernels_avx512.cpp.
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#define CSF_ISA avx512_bf16
#define CSF_VECTOR_BYTES 64

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx512bf16,avx2,fma")
#endif
#include "cpu/tile/vector_math.h"

#include "cpu/tile/product_kernel.h"

namespace cosegflow {
namespace avx512_bf16 {

struct PairMultiplyAdd {
  CSF_INLINE vecf step(vecf sum, float a, vecf b) {
    int32_t pair;  // bits: as a float it could be a signalling NaN
    __builtin_memcpy(&pair, &a, 4);
    return (vecf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)b);
  }
};

void multiply_pairs(int64_t rows, int64_t inner, int64_t columns, Panels<const float> a, Panels<const float> b,
                    const float* row_factor, const float* column_factor, Panels<float> out) {
  constexpr int64_t width = kWidth<float>, lanes = kLanes<float>;
  for (int64_t c = 0; c < columns; c += width) {
    const BlockProduct<float> block = block_product_for<float, PairMultiplyAdd>(columns - c);
    const float* const right = b.data + c / width * b.panel_stride;
    float* const to = out.data + c / width * out.panel_stride;
    for (int64_t k = 0; k < inner; k += kInnerBlock<float>) {
      const int64_t length = inner - k < kInnerBlock<float> ? inner - k : kInnerBlock<float>;
      const float* const left = a.data + k / width * a.panel_stride;
      for (int64_t r = 0; r < rows; r += kBlockRows) {
        block(length, left + r * width, a.panel_stride, right + k * width, to + r * width, k > 0);
      }
    }
    for (int64_t n = 0; n < width && c + n < columns; n += lanes) {
      const vecf factor = load_anywhere(column_factor + c + n);
      for (int64_t r = 0; r < rows; ++r) {
        float* const at = to + r * width + n;
        store(at, load(at) * row_factor[r] * factor);
      }
    }
  }
}

}  // namespace avx512_bf16
}  // namespace cosegflow
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace cosegflow {
namespace {

// Runs when the library is loaded, on any machine: outside of the target pragma.
TileKernels<float> with_pairs(TileKernels<float> kernels) {
  kernels.multiply_pairs = avx512_bf16::multiply_pairs;
  return kernels;
}

}  // namespace

const TileKernels<float> kAvx512Bf16Float = with_pairs(kAvx512Float);
}  // namespace cosegflow
#endif

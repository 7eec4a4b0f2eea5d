// The product of panels. Included like vector_math.h, once for each instruction set.
//
// The innermost kernel keeps a block of kBlockRows x width results in registers; each step of the summed index loads
// one row of b (a few vectors) and broadcasts kBlockRows elements of a. With AVX-512 that is 16 sums and 10 loads for
// 16 multiply-adds, with AVX2 12 sums and 7 loads: the multipliers are the bound, not the loads.
#pragma once

namespace cosegflow {
namespace CSF_ISA {

constexpr int64_t kVectors = CSF_VECTOR_BYTES == 32 ? 3 : 2;    // of a panel's row
constexpr int64_t kBlockRows = CSF_VECTOR_BYTES == 64 ? 8 : 4;  // divides every panel width
template <class T>
constexpr int64_t kWidth = kVectors * kLanes<T>;

// The summed index is cut so that a slice of b of 32 KiB is reused over the rows of a tile; shorter cuts cost more in
// reading and writing `out` than they save (measured on Zen 4: 8 KiB 5% and 16 KiB 2% slower, 64 KiB the same).
template <class T>
constexpr int64_t kInnerBlock = 32768 / int64_t(sizeof(T)) / kWidth<T> / kWidth<T> * kWidth<T>;
static_assert(kInnerBlock<float> > 0 && kInnerBlock<double> > 0, "");

// What one step of the summed index does to a vector of sums.
template <class T>
struct MultiplyAdd {
  CSF_INLINE vec<T> step(vec<T> sum, T a, vec<T> b) { return sum + a * b; }
};

template <class T, int kN, class Op = MultiplyAdd<T>>
struct Block {
  vec<T> sum[kBlockRows][kN];

  CSF_INLINE void clear(Block& block) {
#pragma GCC unroll 16
    for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) block.sum[r][n] = vec<T>{};
    }
  }
  CSF_INLINE void write(const Block& block, T* to) {
#pragma GCC unroll 16
    for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) store(to + r * kWidth<T> + n * kLanes<T>, block.sum[r][n]);
    }
  }
  // At the end, not as the start of the sums: one chain of float32 adds over thousands of terms would lose digits.
  CSF_INLINE void add(const Block& block, T* to) {
#pragma GCC unroll 16
    for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) {
        T* const at = to + r * kWidth<T> + n * kLanes<T>;
        store(at, load(at) + block.sum[r][n]);
      }
    }
  }
  // One step of the summed index: rows of a are `kRowStep` elements apart.
  template <int64_t kRowStep>
  CSF_INLINE void step(Block& block, const T* a, const T* b) {
    vec<T> row[kN];
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) row[n] = load(b + n * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < kBlockRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) block.sum[r][n] = Op::step(block.sum[r][n], a[r * kRowStep], row[n]);
    }
  }
};

// out (kBlockRows x kN vectors) (+)= a b, where the summed index runs along the columns of a.
template <class T, int kN, class Op = MultiplyAdd<T>>
void block_product(int64_t inner, const T* a, int64_t a_panel_stride, const T* b, T* out, bool accumulate) {
  using B = Block<T, kN, Op>;
  B block;
  B::clear(block);
  for (; inner > 0; inner -= kWidth<T>, a += a_panel_stride) {
    const int64_t end = inner < kWidth<T> ? inner : kWidth<T>;
    for (int64_t k = 0; k < end; ++k, b += kWidth<T>) B::template step<kWidth<T>>(block, a + k, b);
  }
  if (accumulate) {
    B::add(block, out);
  } else {
    B::write(block, out);
  }
}

// out (kBlockRows x kN vectors) += a^T b, where the summed index runs along the rows of a.
template <class T, int kN>
void block_product_transposed(int64_t inner, const T* a, const T* b, T* out) {
  using B = Block<T, kN>;
  B block;
  B::clear(block);
  for (; inner > 0; --inner, a += kWidth<T>, b += kWidth<T>) B::template step<1>(block, a, b);
  B::add(block, out);
}

// The block kernel for a panel of which `columns` are left, so that narrow last panels cost what they need.
template <class T>
using BlockProduct = void (*)(int64_t, const T*, int64_t, const T*, T*, bool);
template <class T, class Op = MultiplyAdd<T>>
static BlockProduct<T> block_product_for(int64_t columns) {
  if (columns <= kLanes<T>) return block_product<T, 1, Op>;
  if (columns <= 2 * kLanes<T>) return block_product<T, 2, Op>;
  return block_product<T, kVectors, Op>;
}
template <class T>
using BlockProductTransposed = void (*)(int64_t, const T*, const T*, T*);
template <class T>
static BlockProductTransposed<T> block_product_transposed_for(int64_t columns) {
  if (columns <= kLanes<T>) return block_product_transposed<T, 1>;
  if (columns <= 2 * kLanes<T>) return block_product_transposed<T, 2>;
  return block_product_transposed<T, kVectors>;
}

template <class T>
void multiply(int64_t rows, int64_t inner, int64_t columns, Panels<const T> a, Panels<const T> b, Panels<T> out,
              bool accumulate) {
  constexpr int64_t width = kWidth<T>;
  for (int64_t k = 0; k < inner; k += kInnerBlock<T>) {
    const int64_t length = inner - k < kInnerBlock<T> ? inner - k : kInnerBlock<T>;
    for (int64_t c = 0; c < columns; c += width) {
      const BlockProduct<T> block = block_product_for<T>(columns - c);
      const T* right = b.data + c / width * b.panel_stride + k * width;
      const T* left = a.data + k / width * a.panel_stride;
      T* to = out.data + c / width * out.panel_stride;
      for (int64_t r = 0; r < rows; r += kBlockRows) {
        block(length, left + r * width, a.panel_stride, right, to + r * width, accumulate || k > 0);
      }
    }
  }
}

template <class T>
void multiply_transposed(int64_t rows, int64_t inner, int64_t columns, Panels<const T> a, Panels<const T> b,
                         Panels<T> out) {
  constexpr int64_t width = kWidth<T>;
  for (int64_t r0 = 0; r0 < rows; r0 += width) {
    const T* left = a.data + r0 / width * a.panel_stride;
    for (int64_t c = 0; c < columns; c += width) {
      const BlockProductTransposed<T> block = block_product_transposed_for<T>(columns - c);
      const T* right = b.data + c / width * b.panel_stride;
      T* to = out.data + c / width * out.panel_stride + r0 * width;
      for (int64_t r = 0; r < width && r0 + r < rows; r += kBlockRows) block(inner, left + r, right, to + r * width);
    }
  }
}

}  // namespace CSF_ISA
}  // namespace cosegflow

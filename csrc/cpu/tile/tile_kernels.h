// The arithmetic of the CPU kernels on one cache-sized tile, behind a table of functions for each instruction set.
//
// Matrices are kept as *panels* of `width` columns: element (r, c) lies at
//     data[(c / width) * panel_stride + r * width + c % width].
// A row of a panel is a few vector registers, so one layout serves every product of the library without repacking:
// as the right factor (rows are the summed index) and as the left one (its elements are broadcast one by one).
//   channel panels: rows are positions of an image, columns are channels
//   position panels: rows are channels, columns are positions
//   score tile: rows are positions of a, columns positions of b
// Positions are padded with zeros to a whole panel; data is aligned to 64 bytes.
#pragma once

#include <cstdint>

namespace cosegflow {

template <class T>
struct Panels {
  T* data = nullptr;
  int64_t panel_stride = 0;

  operator Panels<const T>() const { return {data, panel_stride}; }
};

// Online softmax over a tile of scores, whose value is a position (x, y). In base 2: exp(v) = 2^(v log2(e)).
template <class T>
struct SoftmaxTile {
  Panels<const T> scores;  // here and in GradientTile and PeakTile at any address
  int64_t rows = 0, columns = 0;
  T slope = 0;                    // logit = slope * score + log_weight
  const T* log_weight = nullptr;  // of each column, -inf in the padding; null: all 0 and no padding in the tile
  const T *x = nullptr, *y = nullptr;
  // Running state of each row: the target with the largest logit (weight -inf: none yet), and the sums of
  // e = 2^(logit - largest logit), of e x and of e y.
  T *peak_score = nullptr, *peak_weight = nullptr;
  double *sum = nullptr, *sum_x = nullptr, *sum_y = nullptr;
};

// The gradient of such a softmax: `gradient`, which may be the scores, gets the gradient to the scores s,
//   d_logit = 2^(slope s + log_weight - lse) (grad_x x + grad_y y + offset),   d_s = beta d_logit.
template <class T>
struct GradientTile {
  Panels<const T> scores;
  Panels<T> gradient;
  int64_t rows = 0, columns = 0;
  T slope = 0, beta = 0;
  const T* log_weight = nullptr;  // as in SoftmaxTile
  const T *x = nullptr, *y = nullptr;
  const T *lse = nullptr, *grad_x = nullptr, *grad_y = nullptr, *offset = nullptr;  // of each row; lse in base 2
  double* column_sum = nullptr;  // += the sum of d_logit over rows; null where not wanted
  double* beta_sum = nullptr;    // += the sum of d_logit * s
};

// The other direction of match_both: online softmax over the columns of a tile, whose value is the position of the row.
template <class T>
struct ColumnTile {
  Panels<const T> scores;
  int64_t rows = 0, columns = 0;
  T slope = 0;
  const T* log_weight = nullptr;                    // of each row; null: all 0
  const T *x = nullptr, *y = nullptr;               // of each row
  T *peak_score = nullptr, *peak_weight = nullptr;  // running state of each column, as of the rows in SoftmaxTile
  double *sum = nullptr, *sum_x = nullptr, *sum_y = nullptr;
};

// The positions of one image in a tile of match_both, as sources (lse in base 2, and the incoming gradients) and as
// targets (weight, place, and the sum of the gradient to their logits; null where not wanted). In the padding of a
// panel lse is +inf, log_weight -inf and the rest 0.
template <class T>
struct DirectionOfTile {
  const T *lse = nullptr, *grad_x = nullptr, *grad_y = nullptr, *offset = nullptr;
  const T *log_weight = nullptr, *x = nullptr, *y = nullptr;
  double* weight_sum = nullptr;
};

// The gradient of both softmaxes: scores are replaced by beta (d_logit of a's sources + d_logit of b's sources).
template <class T>
struct BothGradientTile {
  Panels<T> scores;
  int64_t rows = 0, columns = 0;
  T slope = 0, beta = 0;
  DirectionOfTile<T> a, b;     // the rows of the tile, and its columns
  double* beta_sum = nullptr;  // += the sum of both d_logit * s
};

// Online softmax over a tile of scores whose values are vectors, kept elsewhere: each score is replaced by its weight
// e = 2^(logit - largest logit of the row so far), and what was summed so far has to be multiplied by `keep`.
template <class T>
struct WeightsTile {
  Panels<T> scores;
  int64_t rows = 0, columns = 0;
  T slope = 0;
  const T* log_weight = nullptr;  // as in SoftmaxTile, like the running state of each row
  T *peak_score = nullptr, *peak_weight = nullptr;
  double* sum = nullptr;
  T* keep = nullptr;  // of each row: written
};

// The gradient of such a softmax. `products` holds the inner product of the row's incoming gradient and the column's
// value and is replaced by the probability p; scores s are replaced by the gradient to them,
//   p = 2^(slope s + log_weight - lse),   d_logit = p (product + offset),   d_s = beta d_logit.
template <class T>
struct TransferGradientTile {
  Panels<T> scores, products;
  int64_t rows = 0, columns = 0;
  T slope = 0, beta = 0;
  const T* log_weight = nullptr;
  const T *lse = nullptr, *offset = nullptr;          // of each row; lse in base 2
  double *column_sum = nullptr, *beta_sum = nullptr;  // as in GradientTile
};

// The largest logit of each row of a tile, beta s + ln(2) log_weight: for an answer, so NaN is passed over and of equal
// ones the first counts. The running state of a row (key -inf, column -1: none yet) is that of the columns before.
template <class T>
struct PeakTile {
  Panels<const T> scores;
  int64_t rows = 0, columns = 0, first = 0;  // first: the number that column 0 has in the answer
  T beta = 0;
  const T* log_weight = nullptr;  // as in SoftmaxTile, but null wherever all weights are 1
  T *key = nullptr, *score = nullptr;
  int64_t* column = nullptr;
};

// The window of the kernel soft argmax: scores s are replaced by k max(s, 0), with the Gaussian
// k = 2^(-rate ((x - center_x)^2 + (y - center_y)^2)). NaN stays.
template <class T>
struct WindowTile {
  Panels<T> scores;
  int64_t rows = 0, columns = 0;
  T rate = 0;
  const T *x = nullptr, *y = nullptr;
  const T *center_x = nullptr, *center_y = nullptr;  // of each row
  Panels<T> slope;  // gets the derivative, k where s > 0 and else 0, in the layout of the scores; null where not wanted
};

constexpr int64_t kRowBlock = 8;  // at most; where it is less, panel widths are multiples of that

template <class T>
struct TileKernels {
  int64_t width;  // columns of a panel
  // out (rows x columns) = a (rows x inner) b (inner x columns), added to what `out` holds if `accumulate`.
  // Rows of a and out are read and written up to a multiple of kRowBlock, columns of b and out up to a whole vector.
  void (*multiply)(int64_t rows, int64_t inner, int64_t columns, Panels<const T> a, Panels<const T> b, Panels<T> out,
                   bool accumulate);
  // out (rows x columns) += a^T b with a (inner x rows), b (inner x columns).
  void (*multiply_transposed)(int64_t rows, int64_t inner, int64_t columns, Panels<const T> a, Panels<const T> b,
                              Panels<T> out);
  // The same with a and b of bfloat16 pairs: each element is two neighbours of the summed index, in 32 bits. Each
  // result is multiplied by its row's and its column's factor. Null where the machine has no such instruction.
  void (*multiply_pairs)(int64_t rows, int64_t inner, int64_t columns, Panels<const T> a, Panels<const T> b,
                         const T* row_factor, const T* column_factor, Panels<T> out);
  void (*softmax)(const SoftmaxTile<T>&);
  void (*softmax_gradient)(const GradientTile<T>&);
  void (*softmax_columns)(const ColumnTile<T>&);
  void (*both_gradient)(const BothGradientTile<T>&);
  void (*softmax_weights)(const WeightsTile<T>&);
  void (*transfer_gradient)(const TransferGradientTile<T>&);
  void (*peaks)(const PeakTile<T>&);
  void (*window)(const WindowTile<T>&);
  // scores *= slope of such a tile: the way of a gradient back through the window.
  void (*window_gradient)(const WindowTile<T>&);
};

// The table for this machine, or for the lower instruction set that COSEGFLOW_CPU_ISA asks for (see isa.h).
template <class T>
const TileKernels<T>& tile_kernels();

// The widest panel of any table: bounds small arrays on the stack.
constexpr int64_t kMaxPanelWidth = 32;

// One table per file tile/kernels_<isa>.cpp.
extern const TileKernels<float> kScalarFloat, kAvx2Float, kAvx512Float, kAvx512Bf16Float;
extern const TileKernels<double> kScalarDouble, kAvx2Double, kAvx512Double;

}  // namespace cosegflow

// The arithmetic of local_correlation on the CPU, behind a table of functions for each instruction set.
//
// Features are packed as rows: row y holds its channels one after the other, each a run of pixels of x,
//     data[y * row_stride + c * pitch + x].
// Vectors run over x. A window is then `side` loads at neighbouring addresses, every lane of a product is used, and no
// sum runs across lanes. Loads need no alignment.
#pragma once

#include <cstdint>

namespace cosegflow {

// One row of targets against one or two rows of sources, which share its loads.
template <class T>
struct BandTask {
  int64_t channels = 0;
  int64_t width = 0;       // columns of the sources, a multiple of the vector
  int64_t shifts = 0;      // column x of a source meets columns x .. x + shifts - 1 of the targets
  const T* row = nullptr;  // targets, `row_pitch` from channel to channel
  int64_t row_pitch = 0;
  int64_t rows = 1;  // of sources: 1 or 2
  // correlate: weights[k][s][x] = sum_c sources[k][c][x] row[c][x + s]
  // gather:    sources[k][c][x] += sum_s weights[k][s][x] row[c][x + s]
  T* sources[2] = {};  // `source_pitch` from channel to channel
  int64_t source_pitch = 0;
  T* weights[2] = {};  // pitch `width`
};

// One pixel against its window of rows x columns pixels. Columns are handled up to a whole vector; what lies beyond
// `columns` is read but has no effect, NaN or not.
template <class T>
struct WindowTask {
  int64_t channels = 0;
  int64_t rows = 0, columns = 0;
  T* feature = nullptr;  // the pixel's, `feature_pitch` from channel to channel
  int64_t feature_pitch = 0;
  T* window = nullptr;  // its first pixel; `window_pitch` from channel to channel, `window_stride` from row to row
  int64_t window_pitch = 0, window_stride = 0;
  // products: weights[i][j] (+)= sum_c feature[c] window[c][i][j]
  // gather:   feature[c] += sum_ij weights[i][j] window[c][i][j]
  // scatter:  window[c][i][j] += weights[i][j] feature[c]
  T* weights = nullptr;  // pitch: columns up to a whole vector
  bool accumulate = false;
};

template <class T>
struct WindowKernels {
  int64_t lanes;  // of a vector
  void (*correlate_band)(const BandTask<T>&);
  void (*gather_band)(const BandTask<T>&);
  void (*window_products)(const WindowTask<T>&);
  void (*window_gather)(const WindowTask<T>&);
  void (*window_scatter)(const WindowTask<T>&);
};

// The table for this machine, chosen as the tile kernels are.
template <class T>
const WindowKernels<T>& window_kernels();

// One table per file window_kernels_<isa>.cpp.
extern const WindowKernels<float> kScalarWindowFloat, kAvx2WindowFloat, kAvx512WindowFloat;
extern const WindowKernels<double> kScalarWindowDouble, kAvx2WindowDouble, kAvx512WindowDouble;

}  // namespace cosegflow

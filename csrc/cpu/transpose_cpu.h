// to (columns x rows) = the transpose of from (rows x columns), for the small matrices of a panel.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace cosegflow {

template <class T>
inline void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {  // 4 x 4
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t j = 0; j < 4; ++j) to[j * to_stride + i] = from[i * from_stride + j];
  }
}

#if defined(__SSE2__)
inline void transpose_square(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  __m128 row[4];
  for (int64_t i = 0; i < 4; ++i) row[i] = _mm_loadu_ps(from + i * from_stride);
  _MM_TRANSPOSE4_PS(row[0], row[1], row[2], row[3]);
  for (int64_t i = 0; i < 4; ++i) _mm_storeu_ps(to + i * to_stride, row[i]);
}
#endif

template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride) {
  const int64_t even_rows = rows / 4 * 4, even_columns = columns / 4 * 4;
  for (int64_t i = 0; i < even_rows; i += 4) {
    for (int64_t j = 0; j < even_columns; j += 4) {
      transpose_square(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < even_rows ? even_columns : 0; j < columns; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}

}  // namespace cosegflow

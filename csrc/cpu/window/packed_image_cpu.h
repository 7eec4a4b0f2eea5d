// One image of features as the window kernels read it: rows of channels of pixels, with zeros to the left and right.
#pragma once

#include "common/arena.h"
#include "cosegflow/types.h"

namespace cosegflow {

template <class T>
struct PackedImage {
  int64_t channels = 0, height = 0, width = 0;
  int64_t left = 0;   // zeros before pixel 0 of every run of pixels
  int64_t pitch = 0;  // from channel to channel
  T* data = nullptr;
  double* inverse_norm = nullptr;  // of each pixel; null without normalization

  void layout(Arena& arena, bool normalize) {
    data = arena.take<T>(height * channels * pitch);
    if (normalize) inverse_norm = arena.take<double>(height * width);
  }
  int64_t row_stride() const { return channels * pitch; }
  T* row(int64_t y) const { return data + y * row_stride(); }  // channel 0, `left` before pixel 0

  // Row y of image b of `features`, each feature divided by max(its norm, 1e-12) where inverse_norm is there.
  void pack_row(const View4& features, int64_t b, int64_t y) const;

  // Writes row y of the gradient (B, C, H, W contiguous) from that of the packed features, grad[c * grad_pitch + x],
  // which is overwritten.
  void write_gradient_row(const View4& gradient, int64_t b, int64_t y, T* grad, int64_t grad_pitch) const;
};

}  // namespace cosegflow

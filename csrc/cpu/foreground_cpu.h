// The positions of an image that a mask allows, in raster order, and the weights and coordinates of targets.
#pragma once

#include <cstdint>

#include "common/arena.h"
#include "cosegflow/types.h"

namespace cosegflow {

// The weight of one mask element: 0 for NaN and negative, the largest finite value of the mask's dtype for +inf.
double mask_weight(const View3& mask, int64_t b, int64_t y, int64_t x);

// The allowed positions of one image.
struct Foreground {
  int64_t count = 0;
  int64_t total = 0;         // height * width
  int64_t* index = nullptr;  // (total): y * width + x of each allowed position, in raster order

  bool complete() const { return count == total; }

  void layout(Arena& arena, int64_t height, int64_t width);
  // Everything where mask.data is null, else where mask > 0.
  void select(const View3& mask, int64_t b, int64_t height, int64_t width);
};

// What the softmax needs of each target, in the order of its Foreground and padded to `capacity`.
template <class T>
struct Targets {
  Foreground foreground;
  bool weighted = false;         // some weight is not 1
  T* log_weight = nullptr;       // in base 2; -inf in the padding
  T *x = nullptr, *y = nullptr;  // relative to the centre of the image, which halves their rounding error
  double center_x = 0, center_y = 0;

  void layout(Arena& arena, int64_t height, int64_t width, int64_t capacity);
  void select(const View3& mask, int64_t b, int64_t height, int64_t width, int64_t capacity);

  // Image b of the gradient to the mask (contiguous): for the first `count` targets the gradient to the logits, summed
  // over rows, divided by the weight; 0 elsewhere.
  void write_gradient(const View3& mask, int64_t b, int64_t width, int64_t count, const double* logit_gradient,
                      T* grad) const;

  // The log weights for a tile of columns [begin, begin + columns), or null where the tile can do without.
  const T* tile_log_weight(int64_t begin, int64_t columns, int64_t panel_width) const {
    return weighted || columns % panel_width != 0 ? log_weight + begin : nullptr;
  }
};

}  // namespace cosegflow

// The gradients to two sets of features from tiles of the gradient to their products:
//   grad_a = dS b,   grad_b = dS^T a.
//
// A row of grad_a belongs to one tile of rows, hence to one slot. Every row contributes to all of grad_b: each slot
// has a sum of its own, and the sums are added in the order of the slots, so that no result depends on timing.
#pragma once

#include <algorithm>

#include "cpu/score_product_cpu.h"

namespace cosegflow {

template <class T>
class FeatureGradients {
 public:
  PackedFeatures<T> a, b;

  struct Wants {
    DType dtype;  // of the features
    bool scores;  // the products themselves are needed again
    bool grad_a, grad_b, normalize;
  };

  void layout(Arena& arena, int64_t positions_a, int64_t positions_b, int64_t channels, Wants wants, int64_t slots) {
    pairs_ = wants.scores && ScoreProduct<T>::in_pairs(wants.dtype);
    const bool scores = wants.scores && !pairs_;  // from the same panels
    const bool a_by_channel = scores || wants.grad_b || (wants.grad_a && wants.normalize);
    const bool b_by_channel = wants.grad_a || (wants.grad_b && wants.normalize);
    a.layout(arena, positions_a, channels, wants.normalize && a_by_channel, a_by_channel, false, slots);
    b.layout(arena, positions_b, channels, wants.normalize && (b_by_channel || scores), b_by_channel, scores, slots);
    if (pairs_) paired_.layout(arena, wants.dtype, positions_a, positions_b, channels, wants.normalize, slots);
    if (wants.grad_a) grad_a_ = arena.take<T>(channel_panels_size<T>(positions_a, channels));
    if (!wants.grad_b) return;
    part_stride_ = channel_panels_size<T>(positions_b, channels);
    grad_b_ = arena.take<T>(part_stride_ * slots);
    wants_grad_b_ = true;
  }

  // So many slots that their sums stay within kPartBytes in all.
  static int64_t limit_slots(int64_t slots, int64_t positions_b, int64_t channels) {
    const int64_t bytes = channel_panels_size<T>(positions_b, channels) * static_cast<int64_t>(sizeof(T));
    return std::clamp<int64_t>(kPartBytes / bytes, 1, slots);
  }

  // Params has the views fa and fb and the images' widths.
  template <class Params>
  void pack(const Params& p, int64_t image, const Foreground& foreground_a, const Foreground& foreground_b,
            const CpuRuntime& runtime) const {
    if (a.by_channel != nullptr) pack_features(p.fa, image, p.width_a, foreground_a, a, runtime);
    if (b.by_channel != nullptr || b.by_position != nullptr) {
      pack_features(p.fb, image, p.width_b, foreground_b, b, runtime);
    }
    if (pairs_) paired_.pack(p, image, foreground_a, foreground_b, runtime);
  }

  // The products themselves, as of ScoreProduct.
  void multiply(const TileKernels<T>& kernels, int64_t row, int64_t rows, int64_t column, int64_t columns,
                Panels<T> scores) const {
    if (pairs_) return paired_.multiply(kernels, row, rows, column, columns, scores);
    kernels.multiply(rows, a.channels, columns, a.channel_panels(row), b.position_panels(column), scores, false);
  }

  void begin_slot(int64_t slot) const {
    if (wants_grad_b_) std::fill_n(grad_b_ + slot * part_stride_, part_stride_, T(0));
  }

  // Adds the tile d_scores of rows [row, row + rows) and columns [column, column + columns). Tiles of one row come in
  // ascending order of columns, from column 0.
  void add(const TileKernels<T>& kernels, int64_t slot, int64_t row, int64_t rows, int64_t column, int64_t columns,
           Panels<const T> d_scores) const {
    const int64_t channels = a.channels, width = a.width;
    if (grad_a_ != nullptr) {
      const Panels<T> out = {grad_a_ + row * width, a.capacity * width};
      kernels.multiply(rows, columns, channels, d_scores, b.channel_panels(column), out, column > 0);
    }
    if (grad_b_ != nullptr) {
      const Panels<T> out = {grad_b_ + slot * part_stride_ + column * width, b.capacity * width};
      kernels.multiply_transposed(columns, rows, channels, d_scores, a.channel_panels(row), out);
    }
  }

  void write(const View4& grad_fa, const View4& grad_fb, int64_t image, const Foreground& foreground_a,
             const Foreground& foreground_b, int64_t parts, const CpuRuntime& runtime) const {
    if (grad_a_ != nullptr) unpack_gradient(grad_fa, image, foreground_a, a, grad_a_, 1, 0, runtime);
    if (grad_b_ != nullptr) unpack_gradient(grad_fb, image, foreground_b, b, grad_b_, parts, part_stride_, runtime);
  }

 private:
  static constexpr int64_t kPartBytes = 256 << 20;
  ScoreProduct<T> paired_;
  bool pairs_ = false;
  T *grad_a_ = nullptr, *grad_b_ = nullptr;
  int64_t part_stride_ = 0;
  bool wants_grad_b_ = false;
};

}  // namespace cosegflow

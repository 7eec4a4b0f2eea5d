// What match and soft_argmax share, backward: incoming gradients of the rows of a tile, and the sums over all rows that
// become the gradients to the mask and to beta.
#pragma once

#include <algorithm>

#include "common/round_up.h"
#include "cpu/softmax_rows_cpu.h"

namespace cosegflow {

// The incoming gradients of the rows of one tile, as the gradient kernel wants them.
template <class T>
struct RowGradients {
  T *lse, *grad_x, *grad_y, *offset;

  explicit RowGradients(Arena& arena)
      : lse(arena.take<T>(kTileRows)),
        grad_x(arena.take<T>(kTileRows)),
        grad_y(arena.take<T>(kTileRows)),
        offset(arena.take<T>(kTileRows)) {}

  // Row `row` of the tile is position `at` of a, whose incoming gradients may be absent.
  template <class Params>
  void read(const Params& p, int64_t b, int64_t row, int64_t at, const Targets<T>& targets) const {
    const int64_t total = p.height_a * p.width_a, y = at / p.width_a, x = at % p.width_a;
    const T* flow = static_cast<const T*>(p.flow.data) + 2 * b * total + at;
    const double expected_x = static_cast<double>(flow[0]) + (static_cast<double>(x) - targets.center_x);
    const double expected_y = static_cast<double>(flow[total]) + (static_cast<double>(y) - targets.center_y);
    T gx = 0, gy = 0, gl = 0;
    if (p.grad_flow.data != nullptr) {
      const int64_t* stride = p.grad_flow.stride;
      const T* from = static_cast<const T*>(p.grad_flow.data) + b * stride[0] + y * stride[2] + x * stride[3];
      gx = from[0];
      gy = from[stride[1]];
    }
    if (p.grad_lse.data != nullptr) {
      const int64_t* stride = p.grad_lse.stride;
      gl = static_cast<const T*>(p.grad_lse.data)[b * stride[0] + y * stride[1] + x * stride[2]];
    }
    lse[row] = to_base_2(static_cast<const T*>(p.lse.data)[b * total + at]);
    grad_x[row] = gx;
    grad_y[row] = gy;
    offset[row] = static_cast<T>(static_cast<double>(gl) - gx * expected_x - gy * expected_y);
  }

  void apply(const TileKernels<T>& kernels, Panels<const T> scores, Panels<T> gradient, int64_t rows, int64_t columns,
             int64_t first, const Targets<T>& targets, T beta, double* column_sum, double* beta_sum) const {
    GradientTile<T> tile;
    tile.scores = scores;
    tile.gradient = gradient;
    tile.rows = rows;
    tile.columns = columns;
    tile.slope = to_base_2(beta);
    tile.beta = beta;
    tile.log_weight = targets.tile_log_weight(first, columns, kernels.width);
    tile.x = targets.x + first;
    tile.y = targets.y + first;
    tile.lse = lse;
    tile.grad_x = grad_x;
    tile.grad_y = grad_y;
    tile.offset = offset;
    tile.column_sum = column_sum != nullptr ? column_sum + first : nullptr;
    tile.beta_sum = beta_sum;
    kernels.softmax_gradient(tile);
  }
};

// For each slot: the incoming gradients of its tile, and its own sums over rows, which `write` adds in the order of the
// slots.
template <class T>
class GradientSums {
 public:
  struct Slot {
    RowGradients<T> gradients;
    double *column_sum, *beta_sum;  // of the gradient to the logits; column_sum: null where not wanted

    void clear(int64_t capacity) const {
      if (column_sum != nullptr) std::fill_n(column_sum, capacity, 0.0);
      *beta_sum = 0;
    }
  };

  void layout(Arena& arena, int64_t slots, int64_t capacity, bool want_columns) {
    capacity_ = capacity;
    want_columns_ = want_columns;
    Arena one;
    carve(one);
    slot_bytes_ = round_up(static_cast<int64_t>(one.bytes()), Arena::kAlignment);
    memory_ = arena.take<char>(slots * slot_bytes_);
  }

  Slot slot(int64_t index) const {
    Arena arena(memory_ + index * slot_bytes_);
    return carve(arena);
  }

  // The gradients of image `image` from the sums of the first `slots` slots.
  template <class Params>
  void write(const Params& p, int64_t image, const Targets<T>& targets, int64_t slots) const {
    if (p.grad_beta.data != nullptr) {
      double total = 0;
      for (int64_t i = 0; i < slots; ++i) total += *slot(i).beta_sum;
      static_cast<T*>(p.grad_beta.data)[image] = static_cast<T>(total);
    }
    if (p.grad_mask_b.data == nullptr) return;
    double* total = slots > 0 ? slot(0).column_sum : nullptr;
    for (int64_t i = 1; i < slots; ++i) {
      const double* part = slot(i).column_sum;
      for (int64_t j = 0; j < targets.foreground.count; ++j) total[j] += part[j];
    }
    targets.write_gradient(p.mask_b, image, p.width_b, slots > 0 ? targets.foreground.count : 0, total,
                           static_cast<T*>(p.grad_mask_b.data));
  }

 private:
  Slot carve(Arena& arena) const {
    return {RowGradients<T>(arena), want_columns_ ? arena.take<double>(capacity_) : nullptr, arena.take<double>(1)};
  }

  char* memory_ = nullptr;
  int64_t slot_bytes_ = 0, capacity_ = 0;
  bool want_columns_ = false;
};

}  // namespace cosegflow

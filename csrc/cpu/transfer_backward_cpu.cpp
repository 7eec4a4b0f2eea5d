// transfer, backward: each tile of scores is computed again, and beside it the tile of <grad_out_i, values_j>; both are
// turned in place (transfer_kernel.h) into the gradient of the scores and the probabilities, and multiplied into the
// gradients of the features and of the values while they are in the cache. Nothing larger than a tile is stored.
#include "common/round_up.h"
#include "common/transfer_checks.h"

#include "cpu/feature_gradients_cpu.h"
#include "cpu/image_loop_cpu.h"
#include "cpu/softmax_gradients_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kTileColumnBytes = 1024;  // of one row of the tile

template <class T>
class TransferBackward {
 public:
  TransferBackward(const TransferParams& p, Arena& arena, int64_t slots) : p_(p), kernels_(tile_kernels<T>()) {
    const int64_t positions_a = p.height_a * p.width_a, positions_b = p.height_b * p.width_b;
    const bool want_a = p.grad_fa.data != nullptr, want_b = p.grad_fb.data != nullptr;
    want_values_ = p.grad_values.data != nullptr;
    slots_ = want_b ? FeatureGradients<T>::limit_slots(slots, positions_b, p.channels) : slots;
    if (want_values_) slots_ = FeatureGradients<T>::limit_slots(slots_, positions_b, p.value_channels);
    capacity_ = round_up(positions_b, kernels_.width);
    rows_.layout(arena, p.height_a, p.width_a);
    targets_.layout(arena, p.height_b, p.width_b, capacity_);
    features_.layout(arena, positions_a, positions_b, p.channels, {p.fa.dtype, true, want_a, want_b, p.normalize},
                     slots);
    values_.layout(arena, positions_b, p.value_channels, false, false, true, slots);
    grad_out_.layout(arena, positions_a, p.value_channels, false, true, false, slots);
    part_stride_ = channel_panels_size<T>(positions_b, p.value_channels);
    if (want_values_) grad_values_ = arena.take<T>(slots_ * part_stride_);
    tile_columns_ = std::max<int64_t>(1, kTileColumnBytes / (kernels_.width * sizeof(T))) * kernels_.width;
    sums_.layout(arena, slots_, capacity_, p.grad_mask_b.data != nullptr);
    tiles_ = arena.take<T>(2 * slots_ * kTileRows * tile_columns_);
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    rows_.select(p_.mask_a, image, p_.height_a, p_.width_a);
    targets_.select(p_.mask_b, image, p_.height_b, p_.width_b, capacity_);
    if (targets_.foreground.count == 0) rows_.count = 0;  // nothing to match with: every gradient is 0
    if (rows_.count == 0) targets_.foreground.count = 0;
    const int64_t slots = rows_.count > 0 ? std::min<int64_t>(slots_, thread_count(runtime)) : 0;
    if (slots > 0) {
      features_.pack(p_, image, rows_, targets_.foreground, runtime);
      pack_features(p_.values, image, p_.width_b, targets_.foreground, values_, runtime);
      pack_features(p_.grad_out, image, p_.width_a, rows_, grad_out_, runtime);
      parallel_slots(runtime, slots, [&](int64_t index) {
        const Slot slot = sums_.slot(index);
        slot.clear(capacity_);
        features_.begin_slot(index);
        if (want_values_) std::fill_n(grad_values_ + index * part_stride_, part_stride_, T(0));
        for_each_tile_of_slot(rows_.count, index, slots,
                              [&](int64_t first, int64_t rows) { run_rows(slot, index, image, first, rows); });
      });
    }
    features_.write(p_.grad_fa, p_.grad_fb, image, rows_, targets_.foreground, slots, runtime);
    if (want_values_) {
      unpack_gradient(p_.grad_values, image, targets_.foreground, values_, grad_values_, slots, part_stride_, runtime);
    }
    sums_.write(p_, image, targets_, slots);
  }

 private:
  using Slot = typename GradientSums<T>::Slot;

  // lse and offset = -<grad_out_i, out_i> of the rows of a tile.
  void read_rows(const RowGradients<T>& gradients, int64_t image, int64_t first, int64_t rows) const {
    const int64_t total = p_.height_a * p_.width_a, width = kernels_.width;
    const T* const out = static_cast<const T*>(p_.out.data) + image * p_.value_channels * total;
    const T* const lse = static_cast<const T*>(p_.lse.data) + image * total;
    double along[kTileRows] = {};
    for (int64_t v = 0; v < p_.value_channels; ++v) {
      const Panels<T> grad = grad_out_.channel_panels(first);
      const T* const from = grad.data + v / width * grad.panel_stride + v % width;
      for (int64_t row = 0; row < rows; ++row) {
        along[row] +=
            static_cast<double>(from[row * width]) * static_cast<double>(out[v * total + rows_.index[first + row]]);
      }
    }
    for (int64_t row = 0; row < rows; ++row) {
      gradients.lse[row] = to_base_2(lse[rows_.index[first + row]]);
      gradients.offset[row] = static_cast<T>(-along[row]);
    }
  }

  void run_rows(const Slot& slot, int64_t index, int64_t image, int64_t first, int64_t rows) const {
    const int64_t size = kTileRows * tile_columns_;
    TransferGradientTile<T> tile;
    tile.scores = {tiles_ + 2 * index * size, kTileRows * kernels_.width};
    tile.products = {tiles_ + (2 * index + 1) * size, kTileRows * kernels_.width};
    tile.rows = rows;
    tile.beta = value_at<T>(p_.beta, image);
    tile.slope = to_base_2(tile.beta);
    tile.lse = slot.gradients.lse;
    tile.offset = slot.gradients.offset;
    tile.beta_sum = slot.beta_sum;
    read_rows(slot.gradients, image, first, rows);
    for (int64_t c = 0; c < targets_.foreground.count; c += tile_columns_) {
      const int64_t columns = std::min(tile_columns_, targets_.foreground.count - c);
      features_.multiply(kernels_, first, rows, c, columns, tile.scores);
      kernels_.multiply(rows, p_.value_channels, columns, grad_out_.channel_panels(first), values_.position_panels(c),
                        tile.products, false);
      tile.columns = columns;
      tile.log_weight = targets_.tile_log_weight(c, columns, kernels_.width);
      tile.column_sum = slot.column_sum != nullptr ? slot.column_sum + c : nullptr;
      kernels_.transfer_gradient(tile);
      features_.add(kernels_, index, first, rows, c, columns, tile.scores);
      if (!want_values_) continue;
      const Panels<T> to = {grad_values_ + index * part_stride_ + c * kernels_.width, capacity_ * kernels_.width};
      kernels_.multiply_transposed(columns, rows, p_.value_channels, tile.products, grad_out_.channel_panels(first),
                                   to);
    }
  }

  const TransferParams& p_;
  const TileKernels<T>& kernels_;
  Foreground rows_;
  Targets<T> targets_;
  FeatureGradients<T> features_;
  PackedFeatures<T> values_, grad_out_;
  GradientSums<T> sums_;
  T *tiles_ = nullptr, *grad_values_ = nullptr;
  int64_t slots_ = 1, capacity_ = 0, tile_columns_ = 0, part_stride_ = 0;
  bool want_values_ = false;
};

}  // namespace

size_t transfer_backward_workspace_bytes_cpu(const TransferParams& p, const CpuRuntime& runtime) {
  if (!check_sizes(p).ok()) return 0;
  if (p.fa.dtype == DType::kFloat64) {
    return ImageLoop<TransferBackward<double>, TransferParams>(p, runtime).workspace_bytes();
  }
  return ImageLoop<TransferBackward<float>, TransferParams>(p, runtime).workspace_bytes();
}

Status transfer_backward_cpu(const TransferParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, transfer_backward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  if (p.fa.dtype == DType::kFloat64) {
    ImageLoop<TransferBackward<double>, TransferParams>(p, runtime).run(workspace);
  } else {
    ImageLoop<TransferBackward<float>, TransferParams>(p, runtime).run(workspace);
  }
  return {};
}

}  // namespace cosegflow

// match, backward: each tile of scores is computed again, turned into its gradient in place (softmax_kernel.h) and
// multiplied into the gradients of the features while it is in the cache. Nothing larger than a tile is stored.
#include "common/match_checks.h"
#include "common/round_up.h"

#include "cpu/feature_gradients_cpu.h"
#include "cpu/image_loop_cpu.h"
#include "cpu/softmax_gradients_cpu.h"
#include "cpu/softmax_window_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kTileColumnBytes = 1024;  // of one row of the tile

template <class T>
class MatchBackward {
 public:
  MatchBackward(const MatchParams& p, Arena& arena, int64_t slots) : p_(p), kernels_(tile_kernels<T>()) {
    const int64_t positions_a = p.height_a * p.width_a, positions_b = p.height_b * p.width_b;
    const bool want_a = p.grad_fa.data != nullptr, want_b = p.grad_fb.data != nullptr;
    slots_ = want_b ? FeatureGradients<T>::limit_slots(slots, positions_b, p.channels) : slots;
    capacity_ = round_up(positions_b, kernels_.width);
    rows_.layout(arena, p.height_a, p.width_a);
    targets_.layout(arena, p.height_b, p.width_b, capacity_);
    features_.layout(arena, positions_a, positions_b, p.channels, {p.fa.dtype, true, want_a, want_b, p.normalize},
                     slots);
    tile_columns_ = std::max<int64_t>(1, kTileColumnBytes / (kernels_.width * sizeof(T))) * kernels_.width;
    sums_.layout(arena, slots_, capacity_, p.grad_mask_b.data != nullptr);
    tiles_ = arena.take<T>(slots_ * kTileRows * tile_columns_);
    if (p.kernel_sigma > 0) {
      windows_bytes_ = Windows(nullptr, *this).bytes;
      windows_ = arena.take<char>(slots_ * windows_bytes_);
    }
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    rows_.select(p_.mask_a, image, p_.height_a, p_.width_a);
    targets_.select(p_.mask_b, image, p_.height_b, p_.width_b, capacity_);
    if (targets_.foreground.count == 0) rows_.count = 0;  // nothing to match with: every gradient is 0
    if (rows_.count == 0) targets_.foreground.count = 0;
    const int64_t slots = rows_.count > 0 ? std::min<int64_t>(slots_, thread_count(runtime)) : 0;
    if (slots > 0) {
      features_.pack(p_, image, rows_, targets_.foreground, runtime);
      parallel_slots(runtime, slots, [&](int64_t index) {
        const Slot slot = sums_.slot(index);
        slot.clear(capacity_);
        features_.begin_slot(index);
        for_each_tile_of_slot(rows_.count, index, slots,
                              [&](int64_t first, int64_t rows) { run_rows(slot, index, image, first, rows); });
      });
    }
    features_.write(p_.grad_fa, p_.grad_fb, image, rows_, targets_.foreground, slots, runtime);
    sums_.write(p_, image, targets_, slots);
  }

 private:
  using Slot = typename GradientSums<T>::Slot;

  // What a slot needs for windows.
  struct Windows {
    Arena arena;
    RowWindows<T> rows;
    Panels<T> slope;  // of a tile
    int64_t bytes;

    Windows(char* memory, const MatchBackward& work)
        : arena(memory),
          rows(arena, work.p_.kernel_sigma),
          slope{arena.take<T>(kTileRows * work.tile_columns_), kTileRows * work.kernels_.width},
          bytes(round_up(arena.bytes(), Arena::kAlignment)) {}
  };

  void run_rows(const Slot& slot, int64_t index, int64_t image, int64_t first, int64_t rows) const {
    const T beta = value_at<T>(p_.beta, image);
    const Panels<T> scores = {tiles_ + index * kTileRows * tile_columns_, kTileRows * kernels_.width};
    for (int64_t row = 0; row < rows; ++row) slot.gradients.read(p_, image, row, rows_.index[first + row], targets_);
    const bool windowed = p_.kernel_sigma > 0;
    const Windows windows(windowed ? windows_ + index * windows_bytes_ : nullptr, *this);
    for (int64_t row = 0; windowed && row < rows; ++row) {
      windows.rows.set(row, p_.index[image * rows_.total + rows_.index[first + row]], p_.width_b, targets_);
    }
    for (int64_t c = 0; c < targets_.foreground.count; c += tile_columns_) {
      const int64_t columns = std::min(tile_columns_, targets_.foreground.count - c);
      features_.multiply(kernels_, first, rows, c, columns, scores);
      if (windowed) windows.rows.apply(kernels_, scores, rows, columns, c, targets_, windows.slope);
      slot.gradients.apply(kernels_, scores, scores, rows, columns, c, targets_, beta, slot.column_sum, slot.beta_sum);
      if (windowed) RowWindows<T>::apply_gradient(kernels_, scores, rows, columns, windows.slope);
      features_.add(kernels_, index, first, rows, c, columns, scores);
    }
  }

  const MatchParams& p_;
  const TileKernels<T>& kernels_;
  Foreground rows_;
  Targets<T> targets_;
  FeatureGradients<T> features_;
  GradientSums<T> sums_;
  T* tiles_ = nullptr;
  char* windows_ = nullptr;
  int64_t slots_ = 1, capacity_ = 0, tile_columns_ = 0, windows_bytes_ = 0;
};

}  // namespace

size_t match_backward_workspace_bytes_cpu(const MatchParams& p, const CpuRuntime& runtime) {
  if (!check_sizes(p).ok()) return 0;
  if (p.fa.dtype == DType::kFloat64) return ImageLoop<MatchBackward<double>, MatchParams>(p, runtime).workspace_bytes();
  return ImageLoop<MatchBackward<float>, MatchParams>(p, runtime).workspace_bytes();
}

Status match_backward_cpu(const MatchParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, match_backward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  if (p.fa.dtype == DType::kFloat64) {
    ImageLoop<MatchBackward<double>, MatchParams>(p, runtime).run(workspace);
  } else {
    ImageLoop<MatchBackward<float>, MatchParams>(p, runtime).run(workspace);
  }
  return {};
}

}  // namespace cosegflow

// match_both, backward: each tile of scores is computed again, turned into the sum of the gradients of both softmaxes
// in place (softmax_both_kernel.h) and multiplied into the gradients of the features while it is in the cache: three
// products in all, where two calls of match need six.
#include "common/match_both_checks.h"
#include "common/match_directions.h"
#include "common/round_up.h"

#include "cpu/feature_gradients_cpu.h"
#include "cpu/image_loop_cpu.h"
#include "cpu/softmax_gradients_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kTileColumnBytes = 1024;  // of one row of the tile

// The positions of one image: what they are as targets, and their incoming gradients as sources.
template <class T>
struct Side {
  Targets<T> targets;
  RowGradients<T> gradients;     // of all positions, not of one tile
  double* weight_sum = nullptr;  // of each position; null where the mask's gradient is not wanted
  int64_t capacity = 0;

  explicit Side(Arena&& none = Arena()) : gradients(none) {}  // pointers come from `layout`

  void layout(Arena& arena, int64_t height, int64_t width, bool want_weight_sum) {
    capacity = round_up(height * width, tile_kernels<T>().width);
    targets.layout(arena, height, width, capacity);
    for (T** array : {&gradients.lse, &gradients.grad_x, &gradients.grad_y, &gradients.offset}) {
      *array = arena.take<T>(capacity);
    }
    if (want_weight_sum) weight_sum = arena.take<double>(capacity);
  }

  // `p`: from this image to the other, whose targets are `others`.
  void read(const MatchParams& p, int64_t image, const Targets<T>& others) const {
    const int64_t count = targets.foreground.count;
    for (int64_t i = 0; i < count; ++i) gradients.read(p, image, i, targets.foreground.index[i], others);
    std::fill(gradients.lse + count, gradients.lse + capacity, std::numeric_limits<T>::infinity());
    for (T* array : {gradients.grad_x, gradients.grad_y, gradients.offset})
      std::fill(array + count, array + capacity, 0);
    if (weight_sum != nullptr) std::fill_n(weight_sum, capacity, 0.0);
  }

  DirectionOfTile<T> from(int64_t first, double* sums) const {
    DirectionOfTile<T> tile;
    tile.lse = gradients.lse + first;
    tile.grad_x = gradients.grad_x + first;
    tile.grad_y = gradients.grad_y + first;
    tile.offset = gradients.offset + first;
    tile.log_weight = targets.log_weight + first;
    tile.x = targets.x + first;
    tile.y = targets.y + first;
    tile.weight_sum = sums == nullptr ? nullptr : sums + first;
    return tile;
  }
};

template <class T>
class MatchBothBackward {
 public:
  MatchBothBackward(const MatchBothParams& p, Arena& arena, int64_t slots)
      : p_(p), ab_(a_to_b(p)), ba_(b_to_a(p)), kernels_(tile_kernels<T>()) {
    const int64_t positions_a = p.height_a * p.width_a, positions_b = p.height_b * p.width_b;
    const bool want_a = p.grad_fa.data != nullptr, want_b = p.grad_fb.data != nullptr;
    slots_ = want_b ? FeatureGradients<T>::limit_slots(slots, positions_b, p.channels) : slots;
    a_.layout(arena, p.height_a, p.width_a, p.grad_mask_a.data != nullptr);
    b_.layout(arena, p.height_b, p.width_b, false);  // its sums are those of the slots
    features_.layout(arena, positions_a, positions_b, p.channels, {p.fa.dtype, true, want_a, want_b, p.normalize},
                     slots);
    tile_columns_ = std::max<int64_t>(1, kTileColumnBytes / (kernels_.width * sizeof(T))) * kernels_.width;
    sums_.layout(arena, slots_, b_.capacity, p.grad_mask_b.data != nullptr);
    tiles_ = arena.take<T>(slots_ * kTileRows * tile_columns_);
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    a_.targets.select(p_.mask_a, image, p_.height_a, p_.width_a, a_.capacity);
    b_.targets.select(p_.mask_b, image, p_.height_b, p_.width_b, b_.capacity);
    Foreground &rows = a_.targets.foreground, &columns = b_.targets.foreground;
    if (rows.count == 0 || columns.count == 0) rows.count = columns.count = 0;  // no matches: every gradient is 0
    const int64_t slots = rows.count > 0 ? std::min<int64_t>(slots_, thread_count(runtime)) : 0;
    if (slots > 0) {
      features_.pack(p_, image, rows, columns, runtime);
      a_.read(ab_, image, b_.targets);
      b_.read(ba_, image, a_.targets);
      parallel_slots(runtime, slots, [&](int64_t index) {
        const auto slot = sums_.slot(index);
        slot.clear(b_.capacity);
        features_.begin_slot(index);
        for_each_tile_of_slot(rows.count, index, slots, [&](int64_t first, int64_t count) {
          run_rows(slot.column_sum, slot.beta_sum, index, image, first, count);
        });
      });
    }
    features_.write(p_.grad_fa, p_.grad_fb, image, rows, columns, slots, runtime);
    sums_.write(ab_, image, b_.targets, slots);
    if (p_.grad_mask_a.data != nullptr) {
      a_.targets.write_gradient(p_.mask_a, image, p_.width_a, rows.count, a_.weight_sum,
                                static_cast<T*>(p_.grad_mask_a.data));
    }
  }

 private:
  void run_rows(double* column_sum, double* beta_sum, int64_t index, int64_t image, int64_t first, int64_t rows) const {
    BothGradientTile<T> tile;
    tile.scores = {tiles_ + index * kTileRows * tile_columns_, kTileRows * kernels_.width};
    tile.rows = rows;
    tile.beta = value_at<T>(p_.beta, image);
    tile.slope = to_base_2(tile.beta);
    tile.a = a_.from(first, a_.weight_sum);
    tile.beta_sum = beta_sum;
    for (int64_t c = 0; c < b_.targets.foreground.count; c += tile_columns_) {
      tile.columns = std::min(tile_columns_, b_.targets.foreground.count - c);
      tile.b = b_.from(c, column_sum);
      features_.multiply(kernels_, first, rows, c, tile.columns, tile.scores);
      kernels_.both_gradient(tile);
      features_.add(kernels_, index, first, rows, c, tile.columns, tile.scores);
    }
  }

  const MatchBothParams& p_;
  MatchParams ab_, ba_;
  const TileKernels<T>& kernels_;
  Side<T> a_, b_;
  FeatureGradients<T> features_;
  GradientSums<T> sums_;
  T* tiles_ = nullptr;
  int64_t slots_ = 1, tile_columns_ = 0;
};

template <class T>
using Backward = ImageLoop<MatchBothBackward<T>, MatchBothParams>;

}  // namespace

size_t match_both_backward_workspace_bytes_cpu(const MatchBothParams& p, const CpuRuntime& runtime) {
  if (!check_sizes(p).ok()) return 0;
  if (p.fa.dtype == DType::kFloat64) return Backward<double>(p, runtime).workspace_bytes();
  return Backward<float>(p, runtime).workspace_bytes();
}

Status match_both_backward_cpu(const MatchBothParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, match_both_backward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  if (p.fa.dtype == DType::kFloat64) {
    Backward<double>(p, runtime).run(workspace);
  } else {
    Backward<float>(p, runtime).run(workspace);
  }
  return {};
}

}  // namespace cosegflow

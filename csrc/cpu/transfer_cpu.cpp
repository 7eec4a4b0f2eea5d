// transfer, forward: tiles of scores become weights of an online softmax in place, and each tile of weights is
// multiplied with the values while it is in the cache. Tiles, slots and determinism are those of match_cpu.cpp.
#include "common/round_up.h"
#include "common/transfer_checks.h"

#include <atomic>

#include "cpu/image_loop_cpu.h"
#include "cpu/score_product_cpu.h"
#include "cpu/softmax_rows_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kTileColumnBytes = 2048;  // of one row of the tile

template <class T>
class TransferForward {
 public:
  TransferForward(const TransferParams& p, Arena& arena, int64_t slots) : p_(p), kernels_(tile_kernels<T>()) {
    const int64_t positions_a = p.height_a * p.width_a, positions_b = p.height_b * p.width_b;
    rows_.layout(arena, p.height_a, p.width_a);
    targets_.layout(arena, p.height_b, p.width_b, round_up(positions_b, kernels_.width));
    product_.layout(arena, p.fa.dtype, positions_a, positions_b, p.channels, p.normalize, slots);
    values_.layout(arena, positions_b, p.value_channels, false, true, false, slots);
    tile_columns_ = std::max<int64_t>(1, kTileColumnBytes / (kernels_.width * sizeof(T))) * kernels_.width;
    slot_bytes_ = Slot(*this, nullptr).bytes;
    slot_memory_ = arena.take<char>(slots * slot_bytes_);
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    const int64_t total = p_.height_a * p_.width_a;
    T* const out = static_cast<T*>(p_.out.data) + image * p_.value_channels * total;
    T* const lse = static_cast<T*>(p_.lse.data) + image * total;
    rows_.select(p_.mask_a, image, p_.height_a, p_.width_a);
    targets_.select(p_.mask_b, image, p_.height_b, p_.width_b, product_.b.capacity);
    const bool nothing = rows_.count == 0 || targets_.foreground.count == 0;
    if (nothing || !rows_.complete()) {
      std::fill_n(out, p_.value_channels * total, T(0));
      std::fill_n(lse, total, -std::numeric_limits<T>::infinity());
    }
    if (nothing) return;
    product_.pack(p_, image, rows_, targets_.foreground, runtime);
    pack_features(p_.values, image, p_.width_b, targets_.foreground, values_, runtime);

    const int64_t slots = thread_count(runtime);
    const int64_t tile_rows = rows_of_tile(rows_.count, 2 * slots);
    std::atomic<int64_t> next{0};
    parallel_slots(runtime, slots, [&](int64_t index) {
      const Slot slot(*this, slot_memory_ + index * slot_bytes_);
      for (int64_t first; (first = next.fetch_add(tile_rows)) < rows_.count;) {
        run_rows(slot, first, std::min(tile_rows, rows_.count - first), value_at<T>(p_.beta, image), out, lse);
      }
    });
  }

 private:
  struct Slot {  // what one slot needs for itself
    Arena arena;
    Panels<T> scores, sums;  // sums: of weight * value, rows x value channels
    RowStates<T> states;
    T* keep;
    int64_t bytes;

    Slot(const TransferForward& work, char* memory)
        : arena(memory),
          scores{arena.take<T>(kTileRows * work.tile_columns_), kTileRows * work.kernels_.width},
          sums{arena.take<T>(kTileRows * round_up(work.p_.value_channels, work.kernels_.width)),
               kTileRows * work.kernels_.width},
          states(arena),
          keep(arena.take<T>(kTileRows)),
          bytes(round_up(arena.bytes(), Arena::kAlignment)) {}
  };

  void run_rows(const Slot& slot, int64_t first, int64_t rows, T beta, T* out, T* lse) const {
    slot.states.clear(rows);
    WeightsTile<T> tile;
    tile.scores = slot.scores;
    tile.rows = rows;
    tile.slope = to_base_2(beta);
    tile.peak_score = slot.states.peak_score;
    tile.peak_weight = slot.states.peak_weight;
    tile.sum = slot.states.sum;
    tile.keep = slot.keep;
    for (int64_t c = 0; c < targets_.foreground.count; c += tile_columns_) {
      const int64_t columns = std::min(tile_columns_, targets_.foreground.count - c);
      product_.multiply(kernels_, first, rows, c, columns, slot.scores);
      tile.columns = columns;
      tile.log_weight = targets_.tile_log_weight(c, columns, kernels_.width);
      kernels_.softmax_weights(tile);
      if (c > 0) rescale(slot, rows);
      kernels_.multiply(rows, columns, p_.value_channels, slot.scores, values_.channel_panels(c), slot.sums, c > 0);
    }
    write(slot, first, rows, beta, out, lse);
  }

  void rescale(const Slot& slot, int64_t rows) const {
    const int64_t width = kernels_.width;
    for (int64_t row = 0; row < rows; ++row) {
      const T keep = slot.keep[row];
      if (keep == T(1)) continue;
      for (int64_t v = 0; v < p_.value_channels; v += width) {
        T* const sums = slot.sums.data + v / width * slot.sums.panel_stride + row * width;
        for (int64_t n = 0; n < width; ++n) sums[n] *= keep;
      }
    }
  }

  void write(const Slot& slot, int64_t first, int64_t rows, T beta, T* out, T* lse) const {
    const int64_t width = kernels_.width, total = p_.height_a * p_.width_a;
    T* const inverse = slot.keep;
    for (int64_t row = 0; row < rows; ++row) {
      const RowStates<T>& s = slot.states;
      // A sum below 1 holds no finite logit: such a row is NaN, as is one with a NaN in it.
      const double sum = s.sum[row] > 0 ? s.sum[row] : std::numeric_limits<double>::quiet_NaN();
      const double peak = static_cast<double>(s.peak_score[row]) * static_cast<double>(beta);
      inverse[row] = static_cast<T>(1.0 / sum);
      lse[rows_.index[first + row]] =
          static_cast<T>(peak + (static_cast<double>(s.peak_weight[row]) + std::log2(sum)) * kLn2);
    }
    for (int64_t v = 0; v < p_.value_channels; ++v) {
      const T* const sums = slot.sums.data + v / width * slot.sums.panel_stride + v % width;
      T* const to = out + v * total;
      for (int64_t row = 0; row < rows; ++row) to[rows_.index[first + row]] = sums[row * width] * inverse[row];
    }
  }

  const TransferParams& p_;
  const TileKernels<T>& kernels_;
  Foreground rows_;
  Targets<T> targets_;
  ScoreProduct<T> product_;
  PackedFeatures<T> values_;
  int64_t tile_columns_ = 0, slot_bytes_ = 0;
  char* slot_memory_ = nullptr;
};

}  // namespace

size_t transfer_forward_workspace_bytes_cpu(const TransferParams& p, const CpuRuntime& runtime) {
  if (!check_sizes(p).ok()) return 0;
  if (p.fa.dtype == DType::kFloat64) {
    return ImageLoop<TransferForward<double>, TransferParams>(p, runtime).workspace_bytes();
  }
  return ImageLoop<TransferForward<float>, TransferParams>(p, runtime).workspace_bytes();
}

Status transfer_forward_cpu(const TransferParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, transfer_forward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  if (p.fa.dtype == DType::kFloat64) {
    ImageLoop<TransferForward<double>, TransferParams>(p, runtime).run(workspace);
  } else {
    ImageLoop<TransferForward<float>, TransferParams>(p, runtime).run(workspace);
  }
  return {};
}

}  // namespace cosegflow

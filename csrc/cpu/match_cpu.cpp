// match, forward: tiles of scores, consumed by an online softmax while they are in the cache.
//
// A tile is kTileRows positions of a by some hundred positions of b. Slots draw tiles of rows from a counter; a row is
// finished by one slot in a fixed order of columns, so the result depends neither on timing nor on the thread count.
//
// With a window (kernel_sigma) the columns are walked twice: the most probable target of each row, then the softmax of
// the windowed scores. The scores of the rows are kept from the first walk to the second where they fit kKeptBytes,
// and computed again where they do not.
#include "common/match_checks.h"
#include "common/round_up.h"

#include <atomic>

#include "cpu/image_loop_cpu.h"
#include "cpu/score_product_cpu.h"
#include "cpu/softmax_rows_cpu.h"
#include "cpu/softmax_window_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kTileColumnBytes = 2048;  // of one row of the tile
constexpr int64_t kKeptBytes = 2 << 20;     // of a slot: about what a second product of 64 channels is slower to make

template <class T>
class MatchForward {
 public:
  MatchForward(const MatchParams& p, Arena& arena, int64_t slots) : p_(p), kernels_(tile_kernels<T>()) {
    const int64_t positions_a = p.height_a * p.width_a, positions_b = p.height_b * p.width_b;
    rows_.layout(arena, p.height_a, p.width_a);
    targets_.layout(arena, p.height_b, p.width_b, round_up(positions_b, kernels_.width));
    product_.layout(arena, p.fa.dtype, positions_a, positions_b, p.channels, p.normalize, slots);
    tile_columns_ = std::max<int64_t>(1, kTileColumnBytes / (kernels_.width * sizeof(T))) * kernels_.width;
    windowed_ = p.kernel_sigma > 0;
    const int64_t tiles = ceil_div(positions_b, tile_columns_), tile_bytes = kTileRows * tile_columns_ * sizeof(T);
    kept_tiles_ = windowed_ && tiles * tile_bytes <= kKeptBytes ? tiles : 1;
    slot_bytes_ = Slot(*this, nullptr).bytes;
    slot_memory_ = arena.take<char>(slots * slot_bytes_);
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    const int64_t total = p_.height_a * p_.width_a;
    const Outputs out = {{p_.flow, p_.lse, p_.confidence, image, total, p_.width_a}, {p_, image}};
    rows_.select(p_.mask_a, image, p_.height_a, p_.width_a);
    targets_.select(p_.mask_b, image, p_.height_b, p_.width_b, product_.b.capacity);
    const bool nothing = rows_.count == 0 || targets_.foreground.count == 0;
    if (nothing || !rows_.complete()) {
      out.matches.clear(0, total);
      out.peaks.clear(0, total);
    }
    if (nothing) return;
    product_.pack(p_, image, rows_, targets_.foreground, runtime);

    const int64_t slots = thread_count(runtime);
    const int64_t tile_rows = rows_of_tile(rows_.count, 2 * slots);
    std::atomic<int64_t> next{0};
    parallel_slots(runtime, slots, [&](int64_t index) {
      const Slot slot(*this, slot_memory_ + index * slot_bytes_);
      for (int64_t first; (first = next.fetch_add(tile_rows)) < rows_.count;) {
        run_rows(slot, first, std::min(tile_rows, rows_.count - first), value_at<T>(p_.beta, image), out);
      }
    });
  }

 private:
  struct Outputs {
    MatchOutputs<T> matches;
    PeakOutputs<T> peaks;
  };

  struct Slot {  // what one slot needs for itself
    Arena arena;
    int64_t tile_columns, kept;
    Panels<T> scores;
    RowStates<T> states;
    RowPeaks<T> peaks;
    RowWindows<T> windows;
    int64_t bytes;

    Slot(const MatchForward& work, char* memory)
        : arena(memory),
          tile_columns(work.tile_columns_),
          kept(work.kept_tiles_),
          scores{arena.take<T>(kept * kTileRows * tile_columns), kTileRows * work.kernels_.width},
          states(arena),
          peaks(arena),
          windows(arena, work.p_.kernel_sigma),
          bytes(round_up(arena.bytes(), Arena::kAlignment)) {}

    Panels<T> tile(int64_t column) const {
      return {kept > 1 ? scores.data + column * kTileRows : scores.data, scores.panel_stride};
    }
  };

  // Calls body(column, columns, scores) over tiles of `rows` rows; computes the scores first unless they are there.
  template <class Body>
  void for_each_tile(const Slot& slot, int64_t first, int64_t rows, bool computed, Body&& body) const {
    for (int64_t c = 0; c < targets_.foreground.count; c += tile_columns_) {
      const int64_t columns = std::min(tile_columns_, targets_.foreground.count - c);
      const Panels<T> scores = slot.tile(c);
      if (!computed) product_.multiply(kernels_, first, rows, c, columns, scores);
      body(c, columns, scores);
    }
  }

  void run_rows(const Slot& slot, int64_t first, int64_t rows, T beta, const Outputs& out) const {
    const T slope = to_base_2(beta);
    slot.states.clear(rows);
    slot.peaks.clear(rows);
    for_each_tile(slot, first, rows, false, [&](int64_t c, int64_t columns, Panels<T> scores) {
      if (out.peaks.wanted()) slot.peaks.update(kernels_, scores, rows, columns, c, targets_, beta);
      if (!windowed_) slot.states.update(kernels_, scores, rows, columns, c, targets_, slope);
    });
    for (int64_t row = 0; out.peaks.wanted() && row < rows; ++row) {
      const int64_t at = rows_.index[first + row];
      slot.peaks.write(out.peaks, row, at, targets_);
      slot.windows.set(row, out.peaks.index[at], p_.width_b, targets_);
    }
    if (windowed_) {
      const bool kept = targets_.foreground.count <= kept_tiles_ * tile_columns_;
      for_each_tile(slot, first, rows, kept, [&](int64_t c, int64_t columns, Panels<T> scores) {
        slot.windows.apply(kernels_, scores, rows, columns, c, targets_);
        slot.states.update(kernels_, scores, rows, columns, c, targets_, slope);
      });
    }
    for (int64_t row = 0; row < rows; ++row) {
      slot.states.write(out.matches, row, rows_.index[first + row], targets_, beta);
    }
  }

  const MatchParams& p_;
  const TileKernels<T>& kernels_;
  Foreground rows_;
  Targets<T> targets_;
  ScoreProduct<T> product_;
  bool windowed_ = false;
  int64_t tile_columns_ = 0, kept_tiles_ = 1, slot_bytes_ = 0;
  char* slot_memory_ = nullptr;
};

}  // namespace

size_t match_forward_workspace_bytes_cpu(const MatchParams& p, const CpuRuntime& runtime) {
  if (!check_sizes(p).ok()) return 0;
  if (p.fa.dtype == DType::kFloat64) return ImageLoop<MatchForward<double>, MatchParams>(p, runtime).workspace_bytes();
  return ImageLoop<MatchForward<float>, MatchParams>(p, runtime).workspace_bytes();
}

Status match_forward_cpu(const MatchParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, match_forward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  if (p.fa.dtype == DType::kFloat64) {
    ImageLoop<MatchForward<double>, MatchParams>(p, runtime).run(workspace);
  } else {
    ImageLoop<MatchForward<float>, MatchParams>(p, runtime).run(workspace);
  }
  return {};
}

}  // namespace cosegflow

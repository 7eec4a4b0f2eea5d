// match_both, forward: each tile of scores is consumed by two online softmaxes while it is in the cache, one over its
// rows and one over its columns.
//
// A tile is at most kTileRows positions of a by some hundred positions of b. Rows are cut into bands of a fixed number
// of tiles. One slot works through a band, finishes its rows, and leaves a state of every column for the band; at the
// end the states of a column are merged in the order of the bands. Bands depend on the sizes alone, so the result
// depends neither on timing nor on the number of threads.
#include "common/match_both_checks.h"
#include "common/round_up.h"

#include <atomic>
#include <cmath>

#include "cpu/image_loop_cpu.h"
#include "cpu/score_product_cpu.h"
#include "cpu/softmax_rows_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kTileColumnBytes = 2048;  // of one row of the tile
constexpr int64_t kBandBytes = 64 << 20;    // of all states of the columns, unless that leaves fewer bands than
constexpr int64_t kLeastBands = 8, kMostBands = 64;

// Running states of columns, as RowStates has them for rows.
template <class T>
struct ColumnStates {
  static constexpr int64_t kBytes = 2 * sizeof(T) + 3 * sizeof(double);
  T *peak_score = nullptr, *peak_weight = nullptr;
  double *sum = nullptr, *sum_x = nullptr, *sum_y = nullptr;

  void layout(Arena& arena, int64_t count) {
    peak_score = arena.take<T>(count), peak_weight = arena.take<T>(count);
    sum = arena.take<double>(count), sum_x = arena.take<double>(count), sum_y = arena.take<double>(count);
  }
  ColumnStates from(int64_t at) const { return {peak_score + at, peak_weight + at, sum + at, sum_x + at, sum_y + at}; }
  void clear(int64_t count) const {
    std::fill_n(peak_score, count, T(0));
    std::fill_n(peak_weight, count, -std::numeric_limits<T>::infinity());
    for (double* sums : {sum, sum_x, sum_y}) std::fill_n(sums, count, 0.0);
  }
};

template <class T>
class MatchBothForward {
 public:
  MatchBothForward(const MatchBothParams& p, Arena& arena, int64_t slots) : p_(p), kernels_(tile_kernels<T>()) {
    const int64_t positions_a = p.height_a * p.width_a, positions_b = p.height_b * p.width_b;
    sources_.layout(arena, p.height_a, p.width_a, round_up(positions_a, kernels_.width));
    targets_.layout(arena, p.height_b, p.width_b, round_up(positions_b, kernels_.width));
    product_.layout(arena, p.fa.dtype, positions_a, positions_b, p.channels, p.normalize, slots);
    tile_columns_ = std::max<int64_t>(1, kTileColumnBytes / (kernels_.width * sizeof(T))) * kernels_.width;
    most_bands_ = std::clamp(kBandBytes / (product_.b.capacity * ColumnStates<T>::kBytes), kLeastBands, kMostBands);
    most_bands_ = std::min(most_bands_, round_up(ceil_div(positions_a, kRowBlock), kLeastBands));
    columns_.layout(arena, most_bands_ * product_.b.capacity);
    slot_bytes_ = Slot(*this, nullptr).bytes;
    slot_memory_ = arena.take<char>(slots * slot_bytes_);
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    const int64_t total_a = p_.height_a * p_.width_a, total_b = p_.height_b * p_.width_b;
    const MatchOutputs<T> out_a(p_.ab.flow, p_.ab.lse, p_.ab.confidence, image, total_a, p_.width_a);
    const MatchOutputs<T> out_b(p_.ba.flow, p_.ba.lse, p_.ba.confidence, image, total_b, p_.width_b);
    sources_.select(p_.mask_a, image, p_.height_a, p_.width_a, product_.a.capacity);
    targets_.select(p_.mask_b, image, p_.height_b, p_.width_b, product_.b.capacity);
    const int64_t rows = sources_.foreground.count, columns = targets_.foreground.count;
    const bool nothing = rows == 0 || columns == 0;
    if (nothing || !sources_.foreground.complete()) out_a.clear(0, total_a);
    if (nothing || !targets_.foreground.complete()) out_b.clear(0, total_b);
    if (nothing) return;
    product_.pack(p_, image, sources_.foreground, targets_.foreground, runtime);

    const T beta = value_at<T>(p_.beta, image);
    const int64_t tile_rows = rows_of_tile(rows, kLeastBands), tiles = ceil_div(rows, tile_rows);
    const int64_t band_rows = ceil_div(tiles, std::min(tiles, most_bands_)) * tile_rows;
    const int64_t bands = ceil_div(rows, band_rows), slots = thread_count(runtime);
    std::atomic<int64_t> next_band{0}, next_column{0};
    parallel_slots(runtime, slots, [&](int64_t index) {
      const Slot slot(*this, slot_memory_ + index * slot_bytes_);
      for (int64_t band; (band = next_band.fetch_add(1)) < bands;) {
        const ColumnStates<T> states = columns_.from(band * product_.b.capacity);
        states.clear(product_.b.capacity);
        const int64_t end = std::min(rows, (band + 1) * band_rows);
        for (int64_t first = band * band_rows; first < end; first += tile_rows) {
          run_rows(slot, states, first, std::min(tile_rows, end - first), beta, out_a);
        }
      }
    });
    parallel_slots(runtime, slots, [&](int64_t index) {
      const Slot slot(*this, slot_memory_ + index * slot_bytes_);
      for (int64_t first; (first = next_column.fetch_add(kTileRows)) < columns;) {
        merge_columns(slot.states, first, std::min(kTileRows, columns - first), bands, beta, out_b);
      }
    });
  }

 private:
  struct Slot {  // what one slot needs for itself
    Arena arena;
    Panels<T> scores;
    RowStates<T> states;
    int64_t bytes;

    Slot(const MatchBothForward& work, char* memory)
        : arena(memory),
          scores{arena.take<T>(kTileRows * work.tile_columns_), kTileRows * work.kernels_.width},
          states(arena),
          bytes(round_up(arena.bytes(), Arena::kAlignment)) {}
  };

  void run_rows(const Slot& slot, const ColumnStates<T>& states, int64_t first, int64_t rows, T beta,
                const MatchOutputs<T>& out) const {
    const T slope = to_base_2(beta);
    slot.states.clear(rows);
    for (int64_t c = 0; c < targets_.foreground.count; c += tile_columns_) {
      const int64_t columns = std::min(tile_columns_, targets_.foreground.count - c);
      product_.multiply(kernels_, first, rows, c, columns, slot.scores);
      slot.states.update(kernels_, slot.scores, rows, columns, c, targets_, slope);
      update_columns(slot.scores, states.from(c), first, rows, columns, slope);
    }
    for (int64_t row = 0; row < rows; ++row) {
      slot.states.write(out, row, sources_.foreground.index[first + row], targets_, beta);
    }
  }

  void update_columns(Panels<const T> scores, const ColumnStates<T>& states, int64_t first, int64_t rows,
                      int64_t columns, T slope) const {
    ColumnTile<T> tile;
    tile.scores = scores;
    tile.rows = rows;
    tile.columns = columns;
    tile.slope = slope;
    tile.log_weight = sources_.weighted ? sources_.log_weight + first : nullptr;
    tile.x = sources_.x + first;
    tile.y = sources_.y + first;
    tile.peak_score = states.peak_score;
    tile.peak_weight = states.peak_weight;
    tile.sum = states.sum;
    tile.sum_x = states.sum_x;
    tile.sum_y = states.sum_y;
    kernels_.softmax_columns(tile);
  }

  // Columns [first, first + count): their states of all bands in order, and the outputs.
  void merge_columns(const RowStates<T>& all, int64_t first, int64_t count, int64_t bands, T beta,
                     const MatchOutputs<T>& out) const {
    const double slope = static_cast<double>(to_base_2(beta));
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    all.clear(count);
    for (int64_t band = 0; band < bands; ++band) {
      const ColumnStates<T> part = columns_.from(band * product_.b.capacity + first);
      for (int64_t i = 0; i < count; ++i) {
        double keep = 1, scale = 1;  // the factors on the sums so far, and on those of this band
        if (all.peak_weight[i] == -kInfinity || part.peak_weight[i] == -kInfinity) {
          if (all.peak_weight[i] == -kInfinity) {
            all.peak_score[i] = part.peak_score[i], all.peak_weight[i] = part.peak_weight[i];
          }
        } else {
          const double gain =
              (static_cast<double>(part.peak_score[i]) - static_cast<double>(all.peak_score[i])) * slope +
              (static_cast<double>(part.peak_weight[i]) - static_cast<double>(all.peak_weight[i]));
          if (gain > 0) {
            keep = std::exp2(-gain);
            all.peak_score[i] = part.peak_score[i], all.peak_weight[i] = part.peak_weight[i];
          } else if (gain < 0) {
            scale = std::exp2(gain);
          }
        }
        all.sum[i] = all.sum[i] * keep + part.sum[i] * scale;
        all.sum_x[i] = all.sum_x[i] * keep + part.sum_x[i] * scale;
        all.sum_y[i] = all.sum_y[i] * keep + part.sum_y[i] * scale;
      }
    }
    for (int64_t i = 0; i < count; ++i) all.write(out, i, targets_.foreground.index[first + i], sources_, beta);
  }

  const MatchBothParams& p_;
  const TileKernels<T>& kernels_;
  Targets<T> sources_, targets_;  // the positions of a, which are targets too, and those of b
  ScoreProduct<T> product_;
  ColumnStates<T> columns_;  // (bands, capacity of b)
  int64_t tile_columns_ = 0, most_bands_ = 0, slot_bytes_ = 0;
  char* slot_memory_ = nullptr;
};

template <class T>
using Forward = ImageLoop<MatchBothForward<T>, MatchBothParams>;

}  // namespace

size_t match_both_forward_workspace_bytes_cpu(const MatchBothParams& p, const CpuRuntime& runtime) {
  if (!check_sizes(p).ok()) return 0;
  if (p.fa.dtype == DType::kFloat64) return Forward<double>(p, runtime).workspace_bytes();
  return Forward<float>(p, runtime).workspace_bytes();
}

Status match_both_forward_cpu(const MatchBothParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, match_both_forward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  if (p.fa.dtype == DType::kFloat64) {
    Forward<double>(p, runtime).run(workspace);
  } else {
    Forward<float>(p, runtime).run(workspace);
  }
  return {};
}

}  // namespace cosegflow

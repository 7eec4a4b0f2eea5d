// What match and soft_argmax share, forward: the state of the rows of a tile, and the outputs from it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/arena.h"
#include "common/round_up.h"
#include "cosegflow/types.h"
#include "cpu/foreground_cpu.h"
#include "cpu/tile/tile_kernels.h"

namespace cosegflow {

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;
constexpr int64_t kTileRows = 128;  // at most

// Rows of each tile, so that `slots` slots get equal shares of `rows` rows.
inline int64_t rows_of_tile(int64_t rows, int64_t slots) {
  const int64_t tiles = round_up(ceil_div(rows, kTileRows), slots);
  return round_up(ceil_div(rows, tiles), kRowBlock);
}

// Calls body(first, rows) over the tiles of slot `index`: a run of rows as long as every other slot's.
template <class Body>
void for_each_tile_of_slot(int64_t rows, int64_t index, int64_t slots, Body&& body) {
  const int64_t share = round_up(ceil_div(rows, slots), kRowBlock), end = std::min(rows, (index + 1) * share);
  const int64_t tile_rows = rows_of_tile(share, 1);
  for (int64_t first = index * share; first < end; first += tile_rows) body(first, std::min(tile_rows, end - first));
}

// value log2(e), finite wherever the value is: beta, and a log-sum-exp.
template <class T>
T to_base_2(T value) {
  constexpr double largest = std::numeric_limits<T>::max();
  const double scaled = static_cast<double>(value) * kLog2E;
  return static_cast<T>(scaled > largest ? largest : scaled < -largest ? -largest : scaled);  // a NaN stays
}

template <class T>
T value_at(const View1& view, int64_t b) {
  return static_cast<const T*>(view.data)[b * view.stride[0]];
}

// Outputs of the forward for one image, contiguous.
template <class T>
struct MatchOutputs {
  T *flow_x, *flow_y, *lse, *confidence;
  int64_t width_a;

  MatchOutputs(const View4& flow, const View3& lse_view, const View3& confidence_view, int64_t b, int64_t total,
               int64_t image_width)
      : flow_x(static_cast<T*>(flow.data) + 2 * b * total),
        flow_y(flow_x + total),
        lse(static_cast<T*>(lse_view.data) + b * total),
        confidence(static_cast<T*>(confidence_view.data) + b * total),
        width_a(image_width) {}

  // What a position gets that has no allowed target.
  void clear(int64_t begin, int64_t end) const {
    std::fill(flow_x + begin, flow_x + end, T(0));
    std::fill(flow_y + begin, flow_y + end, T(0));
    std::fill(lse + begin, lse + end, -std::numeric_limits<T>::infinity());
    std::fill(confidence + begin, confidence + end, T(0));
  }
};

// Running state of the rows of one tile.
template <class T>
struct RowStates {
  T *peak_score, *peak_weight;
  double *sum, *sum_x, *sum_y;

  explicit RowStates(Arena& arena)
      : peak_score(arena.take<T>(kTileRows)),
        peak_weight(arena.take<T>(kTileRows)),
        sum(arena.take<double>(kTileRows)),
        sum_x(arena.take<double>(kTileRows)),
        sum_y(arena.take<double>(kTileRows)) {}

  void clear(int64_t rows) const {
    std::fill(peak_score, peak_score + rows, T(0));
    std::fill(peak_weight, peak_weight + rows, -std::numeric_limits<T>::infinity());
    for (double* sums : {sum, sum_x, sum_y}) std::fill(sums, sums + rows, 0.0);
  }

  void update(const TileKernels<T>& kernels, Panels<const T> scores, int64_t rows, int64_t columns, int64_t first,
              const Targets<T>& targets, T slope) const {
    SoftmaxTile<T> tile;
    tile.scores = scores;
    tile.rows = rows;
    tile.columns = columns;
    tile.slope = slope;
    tile.log_weight = targets.tile_log_weight(first, columns, kernels.width);
    tile.x = targets.x + first;
    tile.y = targets.y + first;
    tile.peak_score = peak_score;
    tile.peak_weight = peak_weight;
    tile.sum = sum;
    tile.sum_x = sum_x;
    tile.sum_y = sum_y;
    kernels.softmax(tile);
  }

  // The outputs of row `row` of the tile, which is position `at` of a.
  void write(const MatchOutputs<T>& out, int64_t row, int64_t at, const Targets<T>& targets, T beta) const {
    // A sum below 1 holds no finite logit: such a row is NaN, as is one with a NaN in it.
    const double total = sum[row] > 0 ? sum[row] : std::numeric_limits<double>::quiet_NaN();
    const double px = static_cast<double>(at % out.width_a), py = static_cast<double>(at / out.width_a);
    const double peak = static_cast<double>(peak_score[row]) * static_cast<double>(beta);
    out.flow_x[at] = static_cast<T>(sum_x[row] / total + (targets.center_x - px));
    out.flow_y[at] = static_cast<T>(sum_y[row] / total + (targets.center_y - py));
    out.lse[at] = static_cast<T>(peak + (static_cast<double>(peak_weight[row]) + std::log2(total)) * kLn2);
    out.confidence[at] = static_cast<T>(1.0 / total);
  }
};

}  // namespace cosegflow

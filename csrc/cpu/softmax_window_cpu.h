// What match and soft_argmax share for return_index and kernel_sigma: the most probable target of the rows of a tile,
// and the window around it.
#pragma once

#include <algorithm>
#include <limits>

#include "common/arena.h"
#include "cosegflow/types.h"
#include "cpu/foreground_cpu.h"
#include "cpu/softmax_rows_cpu.h"
#include "cpu/tile/tile_kernels.h"

namespace cosegflow {

// The most probable targets of one image, contiguous; `index` null where they are not wanted.
template <class T>
struct PeakOutputs {
  int64_t* index = nullptr;
  T* score = nullptr;

  template <class Params>
  PeakOutputs(const Params& p, int64_t image) {
    const int64_t total = p.height_a * p.width_a;
    if (p.index == nullptr) return;
    index = p.index + image * total;
    score = static_cast<T*>(p.score.data) + image * total;
  }

  bool wanted() const { return index != nullptr; }

  // What a position gets that has no allowed target.
  void clear(int64_t begin, int64_t end) const {
    if (!wanted()) return;
    std::fill(index + begin, index + end, int64_t{-1});
    std::fill(score + begin, score + end, -std::numeric_limits<T>::infinity());
  }
};

// The largest logit so far of the rows of one tile.
template <class T>
struct RowPeaks {
  T *key, *score;
  int64_t* column;  // number of the target in the foreground; -1: none

  explicit RowPeaks(Arena& arena)
      : key(arena.take<T>(kTileRows)), score(arena.take<T>(kTileRows)), column(arena.take<int64_t>(kTileRows)) {}

  void clear(int64_t rows) const {
    std::fill_n(key, rows, -std::numeric_limits<T>::infinity());
    std::fill_n(score, rows, -std::numeric_limits<T>::infinity());
    std::fill_n(column, rows, int64_t{-1});
  }

  void update(const TileKernels<T>& kernels, Panels<const T> scores, int64_t rows, int64_t columns, int64_t first,
              const Targets<T>& targets, T beta) const {
    PeakTile<T> tile;
    tile.scores = scores;
    tile.rows = rows;
    tile.columns = columns;
    tile.first = first;
    tile.beta = beta;
    tile.log_weight = targets.weighted ? targets.log_weight + first : nullptr;
    tile.key = key;
    tile.score = score;
    tile.column = column;
    kernels.peaks(tile);
  }

  void write(const PeakOutputs<T>& out, int64_t row, int64_t at, const Targets<T>& targets) const {
    out.index[at] = column[row] < 0 ? -1 : targets.foreground.index[column[row]];
    out.score[at] = score[row];
  }
};

// The windows of the rows of one tile.
template <class T>
struct RowWindows {
  T *center_x, *center_y;
  T rate;

  RowWindows(Arena& arena, double sigma)
      : center_x(arena.take<T>(kTileRows)), center_y(arena.take<T>(kTileRows)), rate(0) {
    if (sigma > 0) rate = static_cast<T>(std::min<double>(kLog2E / 2 / sigma / sigma, std::numeric_limits<T>::max()));
  }

  // Row `row` of the tile has its most probable target at `index` of b.
  void set(int64_t row, int64_t index, int64_t width_b, const Targets<T>& targets) const {
    index = std::max<int64_t>(index, 0);  // a row of NaN has none, and stays one
    center_x[row] = static_cast<T>(static_cast<double>(index % width_b) - targets.center_x);
    center_y[row] = static_cast<T>(static_cast<double>(index / width_b) - targets.center_y);
  }

  // Windows the scores; `slope` may be null.
  void apply(const TileKernels<T>& kernels, Panels<T> scores, int64_t rows, int64_t columns, int64_t first,
             const Targets<T>& targets, Panels<T> slope = {}) const {
    WindowTile<T> tile;
    tile.scores = scores;
    tile.rows = rows;
    tile.columns = columns;
    tile.rate = rate;
    tile.x = targets.x + first;
    tile.y = targets.y + first;
    tile.center_x = center_x;
    tile.center_y = center_y;
    tile.slope = slope;
    kernels.window(tile);
  }

  // Takes the gradient to windowed scores back to the scores.
  static void apply_gradient(const TileKernels<T>& kernels, Panels<T> gradient, int64_t rows, int64_t columns,
                             Panels<T> slope) {
    WindowTile<T> tile;
    tile.scores = gradient;
    tile.rows = rows;
    tile.columns = columns;
    tile.slope = slope;
    kernels.window_gradient(tile);
  }
};

}  // namespace cosegflow

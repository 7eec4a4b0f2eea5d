// What forward and backward of transfer share on Hopper, on the host: values as planes of pairs, and passes over the
// scores that sum 8 of them each (transfer_hopper_kernel.cuh). transfer_hopper_cuda.cu launches both.
#pragma once

#include <cstdint>

#include "common/arena.h"
#include "common/round_up.h"
#include "hopper/work_line.cuh"
#include "pack_tiles.cuh"
#include "transfer/transfer_hopper_kernel.cuh"

namespace cosegflow::transfer_cuda {

// The values of the allowed targets to planes, and zeros to `cleared` where mask_a excludes the source.
struct GatherArgs {
  View4 values;
  const int *index, *count;  // of compact targets: (B, Nb), (B)
  int64_t positions_b, pitch_b;
  int value_channels, width_b, batch;
  Place* planes;           // (ceil(V / 2), B, pitch_b), and zeros up to the end of the last tile
  int* largest = nullptr;  // (B), 0 before: bits of the largest |value|; null: not wanted

  float* cleared = nullptr;  // (B, V, Na); null: not wanted
  View3 mask_a;
  int64_t positions_a = 0;
  int width_a = 1;
};
Status launch_gather(const GatherArgs& args, Stream stream);

inline int64_t passes_of(int64_t values) { return ceil_div(values, kMostValues); }
inline int planes_of(int64_t values) { return values > 4 ? 4 : (values > 2 ? 2 : 1); }

// Rows are the pixels of `a`, columns those of `b`.
template <class T>
struct Passes {
  TileSide<T> a, b;
  const Scale* columns;  // (B, b.pitch): b.scale, or what takes its place
  const Place* planes;   // (ceil(V / 2), B, b.pitch)
  View1 beta;
  hopper::Plan plan;
  int64_t row_tiles;
  int* counters;   // counter_count(), 0 before
  float* partial;  // the states of one pass's fragments

  static int64_t counter_count(int64_t batch, int64_t positions_a, int64_t value_channels) {
    return passes_of(value_channels) * batch * ceil_div(positions_a, hopper::kRows) * 2;
  }
  // All but columns, planes, beta and counters.
  void take(Arena& arena, const TileSide<T>& rows_side, const TileSide<T>& columns_side, bool masked,
            int64_t value_channels, int multiprocessors) {
    a = rows_side, b = columns_side;
    row_tiles = ceil_div(a.positions, hopper::kRows);
    plan = hopper::plan(a.batch, row_tiles, b.positions, a.depth, masked, multiprocessors);
    partial = arena.take<float>(plan.fragments * a.batch * a.positions * (2 + 2 * planes_of(value_channels)));
  }
};

template <class T>
Status run_passes(const Passes<T>& passes, const Output& out, Stream stream);

}  // namespace cosegflow::transfer_cuda

// How the backward of a whole batch is cut on Hopper: what of ds exists at a time, and into how many partial sums its
// two products go. From the dense sizes; the counts of foreground pixels, which the host does not know, only make less
// of it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/chunk_bytes.h"
#include "hopper/gradient_product.cuh"

namespace cosegflow::hopper {

// What ds takes unless the caller or COSEGFLOW_CHUNK_MB says otherwise: two images of 64 x 64 pixels, which give both
// products 128 tiles at C = 256, about one for each of an H200's 132 multiprocessors, and about what its L2 holds.
constexpr size_t kDefaultChunkBytes = size_t{72} << 20;

// Neighbouring rows of ds of a power of two of columns would lie in the same places of the caches, 256 of them in a box
// of TMA.
constexpr int64_t kPitchPad = 64;

struct GradientPlan {
  int64_t images;          // at a time
  int64_t rows, chunks;    // of a, at a time; runs of rows in an image: several only where images is 1
  int64_t row_room;        // rows of ds of an image, a multiple of 256
  int64_t pitch;           // of a row of ds: whole tiles of 128 columns and kPitchPad
  int splits_a, splits_b;  // partial sums of out_a and of out_b
  bool parted_rows() const { return chunks > 1 && splits_a > 1; }
};

// The partial sums with which one block has least to do: its tiles' slabs of depth, and for each tile what storing it
// costs, about two. Of many channels and images there are tiles enough without any.
inline void choose_splits(GradientPlan& plan, int64_t nb, int64_t channels, int multiprocessors) {
  constexpr int64_t kLeast = 8, kStore = 2;  // slabs of a part, and what storing a tile costs
  const int64_t tiles_a = product_tiles(plan.images, plan.rows, channels);
  const int64_t tiles_b = product_tiles(plan.images, nb, channels);
  const int64_t slabs_a = ceil_div(nb, kDepth), slabs_b = ceil_div(plan.rows, kDepth);
  int64_t shortest = INT64_MAX;
  for (int a = 1; a <= 16; a *= 2) {
    for (int b = 1; b <= (plan.chunks > 1 ? 1 : 8); b *= 2) {
      if ((a > 1 && slabs_a < a * kLeast) || (b > 1 && slabs_b < b * kLeast)) continue;
      const int64_t units_a = tiles_a * a, units = units_a + tiles_b * b;
      const int64_t length_a = ceil_div(slabs_a, a) + kStore, length_b = ceil_div(slabs_b, b) + kStore;
      // Units are dealt in turn, those of out_a first: what the first block gets, and the first that gets one less of
      // a.
      int64_t longest = 0;
      for (int64_t block = 0; block < multiprocessors; block += units_a % multiprocessors + 1) {
        if (block >= units) break;
        const int64_t of_a = block < units_a ? ceil_div(units_a - block, multiprocessors) : 0;
        const int64_t all = ceil_div(units - block, multiprocessors);
        const int64_t work = of_a * length_a + (all - of_a) * length_b;
        longest = work > longest ? work : longest;
        if (block > 0) break;
      }
      const int64_t time = longest + (a - 1) + (b - 1);  // parts are read again
      if (time < shortest) shortest = time, plan.splits_a = a, plan.splits_b = b;
    }
  }
}

// asked: the most bytes that ds may take, 0 for the default; a run is of 256 rows at least.
inline GradientPlan gradient_plan(int64_t batch, int64_t na, int64_t nb, int64_t channels, size_t asked,
                                  int multiprocessors) {
  GradientPlan plan{};
  plan.pitch = round_up(nb, kCols) + kPitchPad;
  const int64_t room = round_up(na, kRows), row_bytes = plan.pitch * 2;
  const size_t bytes = chunk_bytes_of(asked);
  const int64_t fit = static_cast<int64_t>(bytes == 0 ? kDefaultChunkBytes : bytes) / row_bytes;
  const int64_t whole = fit / room;  // images
  if (whole > 0) {
    plan.images = whole < batch ? whole : batch;
    plan.rows = na, plan.row_room = room, plan.chunks = 1;
  } else {
    plan.images = 1;
    plan.rows = plan.row_room = fit < kRows ? kRows : fit / kRows * kRows;
    plan.chunks = ceil_div(na, plan.rows);
  }
  choose_splits(plan, nb, channels, multiprocessors);
  return plan;
}

}  // namespace cosegflow::hopper

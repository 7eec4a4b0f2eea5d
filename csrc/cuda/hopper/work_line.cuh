// Who computes what: all tiles of all images lie on one line, column tiles fastest, then row tiles, then images. The
// line is cut into runs, equally long for all, and dealt to the blocks in turn; so the blocks finish together whatever
// the counts of foreground pixels are, and no row tile has to be split beforehand.
//
// Where the rows of a strip stay in shared memory a block has one run. Where they are read again for every column tile
// (C > 256) runs are short, so that the blocks work on about one image at a time, which the second-level cache holds:
// one long run each would have 132 blocks on 132 row tiles, 66 MB at C = 1024.
//
// A run crosses row tiles: it is a sequence of strips, each a row tile against some of its column tiles. A row tile
// that several runs share is in fragments, numbered from its first columns on; who finishes last merges them in that
// order. The counts are on the device; every warp walks the line for itself, from the same numbers. Rejected: one block
// a row tile and split (264 blocks of unequal work on 132 multiprocessors), and an atomic queue (which blocks share a
// row tile would change from run to run).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/round_up.h"
#include "hopper/tile_shape.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::hopper {

// A row tile of an image against column tiles [first, end).
struct Strip {
  int image, row_tile;
  int rows;  // live rows of the tile, 1 to kRows
  int first, end;
  int fragment, fragments;
};

constexpr int kStreamedRun = 4;  // tiles of a run where rows are read again for every tile

class WorkLine {
 public:
  // All lanes of a warp together. `most_fragments` >= 2 bounds the fragments of a row tile; `slabs` of a row of
  // features. Places on the line are counted in 32 bits: fits_a_line().
  __device__ __forceinline__ WorkLine(const int* count_a, const int* count_b, int images, int most_fragments, int slabs)
      : count_a_(count_a), count_b_(count_b), images_(images) {
    const int lane = static_cast<int>(threadIdx.x) % 32, blocks = static_cast<int>(gridDim.x);
    int total = 0, widest = 1;
    for (int b = lane; b < images; b += 32) {
      total += tiles_of(b);
      if (count_a_[b] > 0) widest = max(widest, col_tiles(b));
    }
    total_ = warp_reduce_sum(total);
    widest = warp_reduce_max(widest);
    const int even = ceil_of(total_, blocks), turns = slabs <= kResidentSlabs ? 1 : max(1, ceil_of(even, kStreamedRun));
    run_ = max(max(ceil_of(even, turns), ceil_of(widest - 1, most_fragments - 1)), 1);
    number_ = static_cast<int>(blockIdx.x);
    at_ = number_ * run_;
    end_ = min(total_, at_ + run_);
    find_image(lane);
  }
  template <class Stream>
  explicit __device__ __forceinline__ WorkLine(const Stream& s)
      : WorkLine(s.count_a, s.count_b, s.images, s.most_fragments, s.slabs) {}

  // The next strip of this block; false at its end.
  __device__ __forceinline__ bool next(Strip& strip) {
    if (at_ >= end_ && !next_run()) return false;
    while (at_ - image_start_ >= tiles_of(image_)) image_start_ += tiles_of(image_), ++image_;
    const int cols = col_tiles(image_), local = at_ - image_start_;
    strip.image = image_;
    strip.row_tile = local / cols;
    strip.rows = min(kRows, count_a_[image_] - strip.row_tile * kRows);
    strip.first = local - strip.row_tile * cols;
    strip.end = min(cols, strip.first + (end_ - at_));
    const int start = at_ - strip.first, first_run = start / run_;
    strip.fragment = number_ - first_run;
    strip.fragments = (start + cols - 1) / run_ - first_run + 1;
    at_ += strip.end - strip.first;
    return true;
  }

 private:
  static __device__ __forceinline__ int ceil_of(int a, int b) { return (a + b - 1) / b; }
  // Rows without a target still get their result: one tile of excluded columns.
  __device__ __forceinline__ int col_tiles(int b) const { return max(1, ceil_of(count_b_[b], kCols)); }
  // None in an image without rows.
  __device__ __forceinline__ int tiles_of(int b) const { return ceil_of(count_a_[b], kRows) * col_tiles(b); }

  __device__ __forceinline__ bool next_run() {
    number_ += static_cast<int>(gridDim.x);
    at_ = number_ * run_;
    end_ = min(total_, at_ + run_);
    return at_ < end_;
  }

  // The image in which the first run starts, and where on the line that image starts.
  __device__ __forceinline__ void find_image(int lane) {
    image_ = 0, image_start_ = 0;
    if (at_ >= end_) return;
    for (int b0 = 0;; b0 += 32) {
      const int tiles = b0 + lane < images_ ? tiles_of(b0 + lane) : 0;
      int up_to = tiles;  // inclusive scan
#pragma unroll
      for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int below = __shfl_up_sync(0xffffffffu, up_to, lanes);
        if (lane >= lanes) up_to += below;
      }
      const unsigned beyond = __ballot_sync(0xffffffffu, image_start_ + up_to > at_);
      if (beyond != 0) {
        const int found = __ffs(static_cast<int>(beyond)) - 1;
        image_ = b0 + found;
        image_start_ += __shfl_sync(0xffffffffu, up_to - tiles, found);
        return;
      }
      image_start_ += __shfl_sync(0xffffffffu, up_to, 31);
    }
  }

  const int *count_a_, *count_b_;
  int images_;
  int run_, total_;          // tiles of a run, of the line
  int number_, at_, end_;    // the current run: its number, the next tile, its end
  int image_, image_start_;  // where `at_` lies, or before
};

// Whether the places on the line, and one run per block beyond its end, can be counted in 32 bits.
inline bool fits_a_line(int64_t images, int64_t pixels_a, int64_t pixels_b) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t tiles = ceil_div(pixels_a, kRows) * ceil_div(pixels_b, kCols);  // at most 2^47
  return images < kMost && tiles < kMost && images * tiles < kMost;
}

// How many fragments the host keeps room for: enough that runs may be as short as the device wants them, which it finds
// out from the counts; at least two, at most 16. Without a mask, and with rows that stay, that follows from the sizes.
inline int most_fragments(int64_t dense_row_tiles, int64_t blocks, bool masked, int slabs) {
  if (masked || slabs > kResidentSlabs) return 16;
  const int64_t wanted = ceil_div(2 * blocks, dense_row_tiles) + 1;
  return static_cast<int>(wanted < 2 ? 2 : (wanted > 16 ? 16 : wanted));
}

// What the host decides about a launch, from the dense sizes.
struct Plan {
  int blocks, slabs, fragments;
};
inline Plan plan(int64_t images, int64_t row_tiles, int64_t pixels_b, int64_t depth, bool masked, int multiprocessors) {
  const int64_t tiles = images * row_tiles * ceil_div(pixels_b, kCols);
  const int blocks = static_cast<int>(tiles < multiprocessors ? tiles : multiprocessors);
  const int slabs = static_cast<int>(ceil_div(depth, kDepth));
  return {blocks, slabs, most_fragments(images * row_tiles, blocks, masked, slabs)};
}

}  // namespace cosegflow::hopper

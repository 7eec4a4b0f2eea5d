// Who computes what: all tiles of all images lie on one line, column tiles fastest, then row tiles, then images, and
// every block takes a run of it, equally long for all. So the blocks finish together whatever the counts of foreground
// pixels are, and no row tile has to be split beforehand.
//
// A run crosses row tiles: it is a sequence of strips, each a row tile against some of its column tiles. A row tile
// that several blocks share is in fragments, numbered from its first columns on; who finishes last merges them in that
// order. The counts are on the device; every warp walks the line for itself, from the same numbers. Rejected: one block
// a row tile and split (264 blocks of unequal work on 132 multiprocessors), and an atomic queue (tiles of a row tile
// would be spread over all blocks, and each needs the rows again).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

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

class WorkLine {
 public:
  // All lanes of a warp together. `most_fragments` >= 2 bounds the fragments of a row tile.
  __device__ __forceinline__ WorkLine(const int* count_a, const int* count_b, int images, int most_fragments)
      : count_a_(count_a), count_b_(count_b), images_(images) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int64_t total = 0;
    int widest = 1;
    for (int b = lane; b < images; b += 32) {
      const int rows = row_tiles(b), cols = col_tiles(b);
      total += static_cast<int64_t>(rows) * cols;
      if (rows > 0) widest = max(widest, cols);
    }
    total = warp_reduce_sum(total);
    widest = warp_reduce_max(widest);
    const int64_t even = (total + gridDim.x - 1) / gridDim.x;
    const int64_t least = (widest - 1 + most_fragments - 2) / (most_fragments - 1);
    run_ = max(max(even, least), static_cast<int64_t>(1));
    at_ = static_cast<int64_t>(blockIdx.x) * run_;
    end_ = min(total, at_ + run_);
    find_image(lane);
  }

  // The next strip of this block's run; false at its end.
  __device__ __forceinline__ bool next(Strip& strip) {
    if (at_ >= end_) return false;
    const int cols = col_tiles(image_);
    const int64_t tiles = static_cast<int64_t>(row_tiles(image_)) * cols, local = at_ - image_start_;
    strip.image = image_;
    strip.row_tile = static_cast<int>(local / cols);
    strip.rows = min(kRows, count_a_[image_] - strip.row_tile * kRows);
    strip.first = static_cast<int>(local % cols);
    strip.end = static_cast<int>(min(static_cast<int64_t>(cols), strip.first + (end_ - at_)));
    const int64_t start = at_ - strip.first, first_block = start / run_;
    strip.fragment = static_cast<int>(blockIdx.x - first_block);
    strip.fragments = static_cast<int>((start + cols - 1) / run_ - first_block) + 1;
    at_ += strip.end - strip.first;
    if (at_ - image_start_ == tiles) {  // on to the next image that has rows
      image_start_ += tiles;
      do ++image_;
      while (image_ < images_ && count_a_[image_] == 0);
    }
    return true;
  }

 private:
  __device__ __forceinline__ int row_tiles(int b) const { return (count_a_[b] + kRows - 1) / kRows; }
  // Rows without a target still get their result: one tile of excluded columns.
  __device__ __forceinline__ int col_tiles(int b) const { return max(1, (count_b_[b] + kCols - 1) / kCols); }

  // The image in which the run starts, and where on the line that image starts.
  __device__ __forceinline__ void find_image(int lane) {
    image_ = 0, image_start_ = 0;
    if (at_ >= end_) return;
    for (int b0 = 0;; b0 += 32) {
      const int b = b0 + lane;
      const int64_t tiles = b < images_ ? static_cast<int64_t>(row_tiles(b)) * col_tiles(b) : 0;
      int64_t up_to = tiles;  // inclusive scan
#pragma unroll
      for (int lanes = 1; lanes < 32; lanes *= 2) {
        const int64_t below = __shfl_up_sync(0xffffffffu, static_cast<long long>(up_to), lanes);
        if (lane >= lanes) up_to += below;
      }
      const unsigned beyond = __ballot_sync(0xffffffffu, image_start_ + up_to > at_);
      if (beyond != 0) {
        const int found = __ffs(static_cast<int>(beyond)) - 1;
        image_ = b0 + found;
        image_start_ += __shfl_sync(0xffffffffu, static_cast<long long>(up_to - tiles), found);
        return;
      }
      image_start_ += __shfl_sync(0xffffffffu, static_cast<long long>(up_to), 31);
    }
  }

  const int *count_a_, *count_b_;
  int images_;
  int image_;
  int64_t run_, at_, end_, image_start_;
};

// How many fragments the host keeps room for: enough that a run may be as short as half of an even share of a dense
// problem, at least two, at most 16.
inline int most_fragments(int64_t dense_row_tiles, int64_t blocks) {
  const int64_t wanted = (2 * blocks + dense_row_tiles - 1) / (dense_row_tiles < 1 ? 1 : dense_row_tiles) + 1;
  return static_cast<int>(wanted < 2 ? 2 : (wanted > 16 ? 16 : wanted));
}

}  // namespace cosegflow::hopper

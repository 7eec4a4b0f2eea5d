// How warp's launches are cut, and when its fast kernels serve.
#pragma once

#include "common/log.h"
#include "common/warp_checks.h"
#include "warp/warp_tiles.cuh"

namespace cosegflow::warp_cuda {

constexpr int64_t kMostBlocks = INT32_MAX, kMostRuns = 65535;
constexpr int kBlocksPerMultiprocessor = 6;  // at least, where there is work enough

// Whether x and the flow have offsets of 32 bits within a plane, and the tiles of all images fit a grid. With
// anything larger or stranger the simple kernels work, at their own speed, and where they are asked for.
inline bool fast_sizes(const WarpParams& p) {
  if (p.simple) return false;
  const bool small = bounded_product(INT32_MAX, p.height, p.width) <= INT32_MAX &&
                     bounded_product(INT32_MAX, p.batch, p.out_height, p.out_width) <= INT32_MAX &&
                     p.channels <= kMostRuns * 4;
  return small && short_offsets(p.x, 1, p.height, p.width) && short_offsets(p.flow, 1, p.out_height, p.out_width);
}

// A tile has a pixel at least, so where all pixels fit 31 bits the blocks do.
inline unsigned blocks_of(const TileGrid& grid, int64_t batch) { return static_cast<unsigned>(grid.per_image * batch); }

// Tiles of 16 x 16 pixels, or flatter ones where those would leave multiprocessors without work.
inline TileGrid channels_grid(int64_t batch, int64_t height, int64_t width) {
  int rows = 16;
  TileGrid grid = tile_grid(height, width, rows, kPieceWidth);
  while (rows > 2 && grid.per_image * batch < int64_t{kBlocksPerMultiprocessor} * multiprocessors()) {
    grid = tile_grid(height, width, rows /= 2, kPieceWidth);
  }
  return grid;
}

// Channels of a block over planes: up to `most`, or fewer, down to `least`, where there are few tiles; about as many in
// each block, in multiples of `unit` where there are so many.
inline int channels_of_block(const TileGrid& grid, int64_t batch, int64_t channels, int64_t most, int64_t least,
                             int64_t unit) {
  const int64_t wanted = int64_t{kBlocksPerMultiprocessor} * multiprocessors(), tiles = grid.per_image * batch;
  while (most > least && tiles * ((channels + most - 1) / most) < wanted) most /= 2;
  if (unit > most) unit = most;
  const int64_t runs = (channels + most - 1) / most;
  const int64_t run = (channels + runs - 1) / runs;
  return static_cast<int>((run + unit - 1) / unit * unit);
}

// What COSEGFLOW_LOG says of warp and of cycle_error.
inline void log_tiles(const char* operation, bool simple, bool fast) {
  const char* const why =
      simple ? "the simple kernels were asked for" : "offsets within a plane need more than 31 bits";
  log_path(operation, fast ? "tiles" : "simple kernels", fast ? nullptr : why);
}

// What the files of warp have for each other. The params have been checked.
Status warp_forward_simple(const WarpParams& p, Stream stream);
Status warp_flow_gradient_simple(const WarpParams& p, Stream stream);
Status warp_x_gradient_simple(const WarpParams& p, Stream stream);

// Both gradients at once, for few channels.
bool warp_scatters(const WarpParams& p);
Status warp_backward_scatter(const WarpParams& p, Stream stream);

// By a gather: whether it serves, and what it needs.
bool warp_gathers(const WarpParams& p);
size_t warp_gather_bytes(const WarpParams& p);
Status warp_x_gradient_gather(const WarpParams& p, void* workspace, Stream stream);

}  // namespace cosegflow::warp_cuda

// Launches of a gather over planes: the map's and its own. cycle_error gathers so too.
#pragma once

#include "warp/warp_gather_kernels.cuh"
#include "warp/warp_launch.cuh"

namespace cosegflow::warp_cuda {

// Whether the gradient to x can be gathered; whatever the strides and the type of grad_x then are, they serve.
inline bool gather_fits(const WarpParams& p) {
  return fast_sizes(p) && warp_map_fits(p) && short_offsets(p.grad_out, 1, p.out_height, p.out_width) &&
         short_offsets(p.grad_x, 1, p.height, p.width) && p.batch * p.height * p.width <= kMostBlocks;
}

template <class T>
Status gather_planes(const WarpParams& p, const WarpMap<accumulate_t<T>>& map, Stream stream) {
  const TileGrid grid = tile_grid(p.height, p.width, kRows, kRowWidth);
  const int run = channels_of_block(grid, p.batch, p.channels, 32, 4, kGatherChannels<T>);
  const dim3 blocks(blocks_of(grid, p.batch), static_cast<unsigned>((p.channels + run - 1) / run));
  return launch(&warp_gather_planes_kernel<T>, blocks, dim3(kThreads), 0, stream, p, grid, map, run);
}

}  // namespace cosegflow::warp_cuda

// warp's forward on CUDA: which kernel, and its launch.
#include "common/dispatch.h"
#include "common/warp_checks.h"
#include "warp/warp_forward_kernels.cuh"
#include "warp/warp_forward_window_kernel.cuh"
#include "warp/warp_launch.cuh"

namespace cosegflow {
namespace {

using namespace warp_cuda;

// Whether x is of halves that can be loaded four at a time, from eight planes at a time.
bool window_serves(const WarpParams& p) {
  const auto fours = [](int64_t n) { return n % 4 == 0; };
  return half_type(p.x.dtype) && p.mode == WarpMode::kBilinear && p.channels % kWindowChannels == 0 &&
         p.x.stride[3] == 1 && fours(p.width) && fours(p.x.stride[0]) && fours(p.x.stride[1]) && fours(p.x.stride[2]) &&
         reinterpret_cast<uintptr_t>(p.x.data) % 8 == 0;
}

}  // namespace

Status warp_forward_cuda(const WarpParams& p, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  const bool fast = fast_sizes(p) && short_offsets(p.out, 1, p.out_height, p.out_width);
  log_tiles("warp", p.simple, fast);
  if (!fast) return warp_forward_simple(p, stream);
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    if (whole_vectors(p.x, p.channels) && whole_vectors(p.out, p.channels) &&
        short_offsets(p.x, p.channels, p.height, p.width) &&
        short_offsets(p.out, p.channels, p.out_height, p.out_width)) {
      const TileGrid grid = channels_grid(p.batch, p.out_height, p.out_width);
      return launch(&warp_forward_channels_kernel<T>, dim3(blocks_of(grid, p.batch)), dim3(kThreads), 0, stream, p,
                    grid);
    }
    if (p.channels <= kFewChannels) {
      const TileGrid grid = tile_grid(p.out_height, p.out_width, kFewHeight, kRowWidth);
      return launch(&warp_forward_few_kernel<T>, dim3(blocks_of(grid, p.batch)), dim3(kThreads), 0, stream, p, grid);
    }
    if constexpr (sizeof(T) == 2) {
      if (window_serves(p)) {
        const TileGrid grid = tile_grid(p.out_height, p.out_width, kWindowTileHeight, kRowWidth);
        const int run = channels_of_block(grid, p.batch, p.channels, 64, kWindowChannels, kWindowChannels);
        const dim3 blocks(blocks_of(grid, p.batch), static_cast<unsigned>((p.channels + run - 1) / run));
        return launch(&warp_forward_window_kernel<T>, blocks, dim3(kThreads), 0, stream, p, grid, run);
      }
    }
    const TileGrid grid = tile_grid(p.out_height, p.out_width, kRows, kRowWidth);
    const int run = channels_of_block(grid, p.batch, p.channels, 64, kChannelsInFlight<T>, kChannelsInFlight<T>);
    const dim3 blocks(blocks_of(grid, p.batch), static_cast<unsigned>((p.channels + run - 1) / run));
    return launch(&warp_forward_planes_kernel<T>, blocks, dim3(kThreads), 0, stream, p, grid, run);
  });
}

}  // namespace cosegflow

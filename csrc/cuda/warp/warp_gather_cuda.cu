// warp's gradient to x by a gather: workspace and launches.
#include "common/dispatch.h"
#include "warp/warp_gather_launch.cuh"

namespace cosegflow::warp_cuda {
namespace {

template <class A>
size_t map_bytes(const WarpParams& p) {
  Arena arena;
  warp_map<A>(p, arena);
  return arena.bytes();
}

template <class T>
Status gather(const WarpParams& p, const WarpMap<accumulate_t<T>>& map, Stream stream) {
  if (whole_vectors(p.grad_out, p.channels) && whole_vectors(p.grad_x, p.channels) &&
      short_offsets(p.grad_out, p.channels, p.out_height, p.out_width) &&
      short_offsets(p.grad_x, p.channels, p.height, p.width)) {
    const TileGrid grid = channels_grid(p.batch, p.height, p.width);
    return launch(&warp_gather_channels_kernel<T>, dim3(blocks_of(grid, p.batch)), dim3(kThreads), 0, stream, p, grid,
                  map);
  }
  return gather_planes<T>(p, map, stream);
}

}  // namespace

bool warp_gathers(const WarpParams& p) { return gather_fits(p); }

size_t warp_gather_bytes(const WarpParams& p) {
  return p.x.dtype == DType::kFloat64 ? map_bytes<double>(p) : map_bytes<float>(p);
}

Status warp_x_gradient_gather(const WarpParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    Arena arena(workspace);
    const WarpMap<A> map = warp_map<A>(p, arena);
    if (Status s = build_warp_map(p, map, stream); !s.ok()) return s;
    return gather<T>(p, map, stream);
  });
}

}  // namespace cosegflow::warp_cuda

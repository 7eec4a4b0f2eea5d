// warp's backward on CUDA: which kernels, and the launches of those for the gradient to the flow.
#include "common/dispatch.h"
#include "common/warp_checks.h"
#include "warp/warp_flow_gradient_kernels.cuh"
#include "warp/warp_launch.cuh"

namespace cosegflow {
namespace {

using namespace warp_cuda;

Status flow_gradient(const WarpParams& p, Stream stream) {
  if (!fast_sizes(p) || !short_offsets(p.grad_out, 1, p.out_height, p.out_width)) {
    return warp_flow_gradient_simple(p, stream);
  }
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    if (whole_vectors(p.x, p.channels) && whole_vectors(p.grad_out, p.channels) &&
        short_offsets(p.x, p.channels, p.height, p.width) &&
        short_offsets(p.grad_out, p.channels, p.out_height, p.out_width)) {
      const TileGrid grid = channels_grid(p.batch, p.out_height, p.out_width);
      const int64_t vectors = p.channels / kVector<T>;
      int lanes = 1;
      while (lanes < 32 && lanes < vectors) lanes *= 2;
      return launch(&warp_flow_gradient_channels_kernel<T>, dim3(blocks_of(grid, p.batch)), dim3(kThreads), 0, stream,
                    p, grid, lanes);
    }
    const TileGrid grid = tile_grid(p.out_height, p.out_width, kRows, kRowWidth);
    return launch(&warp_flow_gradient_planes_kernel<T>, dim3(blocks_of(grid, p.batch)), dim3(kThreads), 0, stream, p,
                  grid);
  });
}

}  // namespace

size_t warp_backward_workspace_bytes_cuda(const WarpParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0 || p.grad_x.data == nullptr) return 0;
  return warp_scatters(p) || !warp_gathers(p) ? 0 : warp_gather_bytes(p);
}

bool warp_grad_x_of_any_kind_cuda(const WarpParams& p) {
  return check_sizes(p).ok() && p.batch > 0 && (warp_scatters(p) || warp_gathers(p));
}

Status warp_backward_cuda(const WarpParams& p, void* workspace, Stream stream) {
  if (Status s = check_backward(p, warp_grad_x_of_any_kind_cuda(p)); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, warp_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  if (p.grad_x.data != nullptr && warp_scatters(p)) return warp_backward_scatter(p, stream);
  if (p.grad_flow.data != nullptr) {
    if (Status s = flow_gradient(p, stream); !s.ok()) return s;
  }
  if (p.grad_x.data == nullptr) return {};
  return warp_gathers(p) ? warp_x_gradient_gather(p, workspace, stream) : warp_x_gradient_simple(p, stream);
}

}  // namespace cosegflow

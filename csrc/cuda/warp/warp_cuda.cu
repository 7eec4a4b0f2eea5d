// warp on CUDA: launches. The kernels are in warp_kernels.cuh.
#include "common/dispatch.h"
#include "common/warp_checks.h"
#include "warp/warp_kernels.cuh"

namespace cosegflow {
namespace {

using namespace warp_cuda;

Status grid_over_pixels(const WarpParams& p, bool channel_runs, dim3& grid) {
  const int64_t tiles = (p.out_height * p.out_width + kThreads - 1) / kThreads;
  const int64_t runs = channel_runs ? (p.channels + kChannels - 1) / kChannels : 1;
  if (tiles * p.batch > INT32_MAX || runs > 65535) return Status{"warp: too many pixels or channels for one launch"};
  grid = dim3(static_cast<unsigned>(tiles * p.batch), static_cast<unsigned>(runs));
  return {};
}

}  // namespace

Status warp_forward_cuda(const WarpParams& p, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  dim3 grid;
  if (Status s = grid_over_pixels(p, true, grid); !s.ok()) return s;
  return dispatch_floating(p.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(&warp_forward_kernel<T>, grid, dim3(kThreads), 0, stream, p);
  });
}

Status warp_backward_cuda(const WarpParams& p, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    dim3 grid;
    if (p.grad_flow.data != nullptr) {
      if (Status s = grid_over_pixels(p, false, grid); !s.ok()) return s;
      if (Status s = launch(&warp_backward_flow_kernel<T>, grid, dim3(kThreads), 0, stream, p); !s.ok()) return s;
    }
    if (p.grad_x.data == nullptr) return {};
    const int64_t planes = p.batch * p.channels;
    const size_t bytes = static_cast<size_t>(planes * p.height * p.width * element_size(p.grad_x.dtype));
    if (Status s = memset_async(p.grad_x.data, 0, bytes, stream); !s.ok()) return s;
    if (p.deterministic) {
      if (planes > INT32_MAX) return Status{"warp: too many channels for one launch"};
      const dim3 plane_grid(static_cast<unsigned>((planes + kThreads - 1) / kThreads));
      return launch(&warp_backward_x_deterministic_kernel<T>, plane_grid, dim3(kThreads), 0, stream, p);
    }
    if (Status s = grid_over_pixels(p, true, grid); !s.ok()) return s;
    return launch(&warp_backward_x_atomic_kernel<T>, grid, dim3(kThreads), 0, stream, p);
  });
}

}  // namespace cosegflow

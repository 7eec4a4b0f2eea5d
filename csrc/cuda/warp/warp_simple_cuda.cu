// warp's simple kernels: launches.
#include "common/dispatch.h"
#include "warp/warp_launch.cuh"
#include "warp/warp_simple_kernels.cuh"

namespace cosegflow::warp_cuda {
namespace {

using namespace warp_simple;

Status grid_over_pixels(const WarpParams& p, bool channel_runs, dim3& grid) {
  const int64_t tiles = (p.out_height * p.out_width + warp_simple::kThreads - 1) / warp_simple::kThreads;
  const int64_t runs = channel_runs ? (p.channels + kChannels - 1) / kChannels : 1;
  if (tiles * p.batch > INT32_MAX || runs > 65535) return Status{"warp: too many pixels or channels for one launch"};
  grid = dim3(static_cast<unsigned>(tiles * p.batch), static_cast<unsigned>(runs));
  return {};
}

}  // namespace

Status warp_forward_simple(const WarpParams& p, Stream stream) {
  dim3 grid;
  if (Status s = grid_over_pixels(p, true, grid); !s.ok()) return s;
  return dispatch_floating(p.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(&warp_simple_forward_kernel<T>, grid, dim3(warp_simple::kThreads), 0, stream, p);
  });
}

Status warp_flow_gradient_simple(const WarpParams& p, Stream stream) {
  dim3 grid;
  if (Status s = grid_over_pixels(p, false, grid); !s.ok()) return s;
  return dispatch_floating(p.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(&warp_simple_flow_gradient_kernel<T>, grid, dim3(warp_simple::kThreads), 0, stream, p);
  });
}

Status warp_x_gradient_simple(const WarpParams& p, Stream stream) {
  const int64_t planes = p.batch * p.channels;
  const size_t bytes = static_cast<size_t>(planes * p.height * p.width * element_size(p.grad_x.dtype));
  if (Status s = memset_async(p.grad_x.data, 0, bytes, stream); !s.ok()) return s;
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    const dim3 threads(warp_simple::kThreads);
    if (p.deterministic) {
      if (planes > INT32_MAX) return Status{"warp: too many channels for one launch"};
      const dim3 grid(static_cast<unsigned>((planes + warp_simple::kThreads - 1) / warp_simple::kThreads));
      return launch(&warp_simple_deterministic_kernel<T>, grid, threads, 0, stream, p);
    }
    dim3 grid;
    if (Status s = grid_over_pixels(p, true, grid); !s.ok()) return s;
    return launch(&warp_simple_atomic_kernel<T>, grid, threads, 0, stream, p);
  });
}

}  // namespace cosegflow::warp_cuda

// cycle_error on CUDA: launches. The kernels are in cycle_error_kernels.cuh.
#include "common/cycle_error_checks.h"
#include "common/dispatch.h"
#include "cycle_error/cycle_error_kernels.cuh"

namespace cosegflow {
namespace {

using namespace cycle_cuda;

Status grid_over_pixels(const CycleErrorParams& p, dim3& grid) {
  const int64_t tiles = (p.height_a * p.width_a + kThreads - 1) / kThreads;
  if (tiles * p.batch > INT32_MAX) return Status{"cycle_error: too many pixels for one launch"};
  grid = dim3(static_cast<unsigned>(tiles * p.batch));
  return {};
}

}  // namespace

Status cycle_error_forward_cuda(const CycleErrorParams& p, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  dim3 grid;
  if (Status s = grid_over_pixels(p, grid); !s.ok()) return s;
  return dispatch_floating(p.flow_ab.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return launch(&cycle_error_forward_kernel<T>, grid, dim3(kThreads), 0, stream, p);
  });
}

Status cycle_error_backward_cuda(const CycleErrorParams& p, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  dim3 grid;
  if (Status s = grid_over_pixels(p, grid); !s.ok()) return s;
  return dispatch_floating(p.flow_ab.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    const bool wants_ba = p.grad_ba.data != nullptr;
    if (wants_ba) {
      const size_t bytes = static_cast<size_t>(p.batch * 2 * p.height_b * p.width_b * element_size(p.grad_ba.dtype));
      if (Status s = memset_async(p.grad_ba.data, 0, bytes, stream); !s.ok()) return s;
    }
    const bool scatter = wants_ba && !p.deterministic;
    if (p.grad_ab.data != nullptr || scatter) {
      Status s = launch(&cycle_error_backward_kernel<T>, grid, dim3(kThreads), 0, stream, p, scatter);
      if (!s.ok()) return s;
    }
    if (!wants_ba || scatter) return {};
    const dim3 planes(static_cast<unsigned>((2 * p.batch + kThreads - 1) / kThreads));
    return launch(&cycle_error_scatter_deterministic_kernel<T>, planes, dim3(kThreads), 0, stream, p);
  });
}

}  // namespace cosegflow

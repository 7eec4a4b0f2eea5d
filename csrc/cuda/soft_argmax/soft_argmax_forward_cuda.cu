// soft_argmax forward on CUDA: workspace, dispatch and launches. The kernels are in soft_argmax_forward_kernels.cuh.
#include "soft_argmax/soft_argmax_forward_kernels.cuh"

namespace cosegflow {
namespace {

using namespace soft_argmax_cuda;

struct Workspace {
  void* log_weight;  // (B, N) of the accumulate type; null without a mask
  size_t bytes;
  Workspace(const SoftArgmaxParams& p, void* base) {
    Arena arena(base);
    const int64_t bytes_each = element_size(accumulate_type(p.dtype));
    log_weight = p.mask_b.data == nullptr ? nullptr : arena.take<char>(p.batch * targets(p) * bytes_each);
    bytes = arena.bytes();
  }
};

template <class T, int kRowThreads>
Status launch_fast(const SoftArgmaxParams& p, const accumulate_t<T>* log_weight, Stream stream) {
  dim3 grid;
  if (Status s = grid_of(ceil_div(p.batch * sources(p), 256 / kRowThreads), grid); !s.ok()) return s;
  const bool aligned = aligned_rows(p.corr, targets(p) * static_cast<int64_t>(sizeof(T)));
  const auto run = [&](auto kernel) { return launch(kernel, grid, dim3(256), 0, stream, p, log_weight); };
  if (p.index != nullptr) {
    return aligned ? run(&soft_argmax_forward_kernel<T, kRowThreads, true, true>)
                   : run(&soft_argmax_forward_kernel<T, kRowThreads, false, true>);
  }
  return aligned ? run(&soft_argmax_forward_kernel<T, kRowThreads, true, false>)
                 : run(&soft_argmax_forward_kernel<T, kRowThreads, false, false>);
}

template <class T>
Status forward(const SoftArgmaxParams& p, accumulate_t<T>* log_weight, Stream stream) {
  if (log_weight != nullptr) {
    if (Status s = launch_weights(p, log_weight, stream); !s.ok()) return s;
  }
  const int64_t rows = p.batch * sources(p), n = targets(p);
  if (p.simple) {
    dim3 grid;
    if (Status s = grid_of(ceil_div(rows, 256), grid); !s.ok()) return s;
    return launch(&soft_argmax_forward_simple_kernel<T>, grid, dim3(256), 0, stream, p, log_weight);
  }
  // A block per row where rows are long, or where a warp per row would leave most of the GPU idle.
  const bool block_per_row = n >= 8192 || (n >= 1024 && rows < 4096);
  return block_per_row ? launch_fast<T, 256>(p, log_weight, stream) : launch_fast<T, 32>(p, log_weight, stream);
}

}  // namespace

size_t soft_argmax_forward_workspace_bytes_cuda(const SoftArgmaxParams& p) {
  return !check_sizes(p).ok() || p.batch == 0 ? 0 : Workspace(p, nullptr).bytes;
}

Status soft_argmax_forward_cuda(const SoftArgmaxParams& p, void* workspace, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, soft_argmax_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  log_kernels(p, "soft_argmax");
  return dispatch_floating(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return forward<T>(p, static_cast<accumulate_t<T>*>(Workspace(p, workspace).log_weight), stream);
  });
}

}  // namespace cosegflow

// soft_argmax backward on CUDA: workspace, dispatch and launches. The kernels are in soft_argmax_backward_kernels.cuh.
#include <algorithm>

#include "soft_argmax/soft_argmax_backward_kernels.cuh"

namespace cosegflow {
namespace {

using namespace soft_argmax_cuda;

// Targets per block: 16 bytes a thread where rows are aligned, else 4 elements.
int64_t run_length(const SoftArgmaxParams& p, bool aligned) {
  return kBackwardThreads * (aligned ? 16 / element_size(p.dtype) : 4);
}

bool aligned(const SoftArgmaxParams& p) {
  const int64_t row_bytes = targets(p) * element_size(p.dtype);
  return aligned_rows(p.corr, row_bytes) && aligned_rows(p.grad_corr, row_bytes);
}

template <class Acc>
struct Workspace {
  Acc* log_weight;
  BackwardSums<Acc> sums;
  size_t bytes;
  Workspace(const SoftArgmaxParams& p, void* base) {
    Arena arena(base);
    const int64_t m = sources(p), n = targets(p);
    // At most 256 chunks, so that the sums of the mask stay small beside the volume.
    sums.rows_per_chunk = p.simple ? m : ceil_div(ceil_div(m, 256), kRowsAtOnce) * kRowsAtOnce;
    sums.chunks = ceil_div(m, sums.rows_per_chunk);
    sums.beta_parts = p.simple ? m : sums.chunks * ceil_div(n, run_length(p, aligned(p)));
    log_weight = p.mask_b.data == nullptr ? nullptr : arena.take<Acc>(p.batch * n);
    sums.mask = p.grad_mask_b.data != nullptr ? arena.take<Acc>(p.batch * sums.chunks * n) : nullptr;
    // Sized for either way of dealing out targets: the size must not depend on how pointers are aligned.
    const int64_t most_parts =
        p.simple ? m : sums.chunks * ceil_div(n, std::min(run_length(p, true), run_length(p, false)));
    sums.beta = p.grad_beta.data != nullptr ? arena.take<Acc>(p.batch * most_parts) : nullptr;
    bytes = arena.bytes();
  }
};

template <class T>
Status launch_fast(const SoftArgmaxParams& p, const Workspace<accumulate_t<T>>& w, Stream stream) {
  const bool vectors = aligned(p);
  dim3 grid;
  const int64_t runs = ceil_div(targets(p), run_length(p, vectors));
  if (Status s = grid_of(p.batch * w.sums.chunks * runs, grid); !s.ok()) return s;
  const auto run = [&](auto kernel) {
    return launch(kernel, grid, dim3(kBackwardThreads), 0, stream, p, w.log_weight, w.sums);
  };
  if (p.kernel_sigma > 0) {
    return vectors ? run(&soft_argmax_backward_kernel<T, true, true>)
                   : run(&soft_argmax_backward_kernel<T, false, true>);
  }
  return vectors ? run(&soft_argmax_backward_kernel<T, true, false>)
                 : run(&soft_argmax_backward_kernel<T, false, false>);
}

template <class T>
Status launch_simple(const SoftArgmaxParams& p, const Workspace<accumulate_t<T>>& w, Stream stream) {
  dim3 grid;
  if (w.sums.mask != nullptr) {
    if (Status s = grid_of(ceil_div(p.batch * targets(p), 256), grid); !s.ok()) return s;
    const Status s = launch(&soft_argmax_mask_simple_kernel<T>, grid, dim3(256), 0, stream, p, w.log_weight, w.sums);
    if (!s.ok()) return s;
  }
  if (Status s = grid_of(ceil_div(p.batch * sources(p), 256), grid); !s.ok()) return s;
  return launch(&soft_argmax_backward_simple_kernel<T>, grid, dim3(256), 0, stream, p, w.log_weight, w.sums);
}

template <class T>
Status backward(const SoftArgmaxParams& p, void* base, Stream stream) {
  using Acc = accumulate_t<T>;
  const Workspace<Acc> w(p, base);
  dim3 grid;
  if (w.log_weight != nullptr) {
    if (Status s = launch_weights(p, w.log_weight, stream); !s.ok()) return s;
  }
  if (Status s = p.simple ? launch_simple<T>(p, w, stream) : launch_fast<T>(p, w, stream); !s.ok()) return s;
  if (w.sums.mask != nullptr) {
    if (Status s = grid_of(ceil_div(p.batch * targets(p), 256), grid); !s.ok()) return s;
    const Status s = launch(&soft_argmax_mask_gradient_kernel<Acc>, grid, dim3(256), 0, stream, p, w.sums);
    if (!s.ok()) return s;
  }
  if (w.sums.beta == nullptr) return {};
  if (Status s = grid_of(p.batch, grid); !s.ok()) return s;
  return launch(&soft_argmax_beta_gradient_kernel<Acc>, grid, dim3(256), 0, stream, p, w.sums);
}

}  // namespace

size_t soft_argmax_backward_workspace_bytes_cuda(const SoftArgmaxParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  return p.dtype == DType::kFloat64 ? Workspace<double>(p, nullptr).bytes : Workspace<float>(p, nullptr).bytes;
}

Status soft_argmax_backward_cuda(const SoftArgmaxParams& p, void* workspace, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, soft_argmax_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  if (p.grad_corr == nullptr && p.grad_mask_b.data == nullptr && p.grad_beta.data == nullptr) return {};
  log_kernels(p, "soft_argmax backward");
  return dispatch_floating(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return backward<T>(p, workspace, stream);
  });
}

}  // namespace cosegflow

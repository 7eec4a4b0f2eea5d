// soft_argmax forward on CUDA: dispatch and launches. The kernels are in soft_argmax_forward_kernels.cuh; those with a
// window are launched in soft_argmax_window_cuda.cu.
#include "soft_argmax/soft_argmax_forward_kernels.cuh"
#include "soft_argmax/soft_argmax_launch.cuh"
#include "soft_argmax/soft_argmax_targets.cuh"

namespace cosegflow {
namespace {

using namespace soft_argmax_cuda;

template <class T>
Status launch_plain(const SoftArgmaxParams& p, const Targets<accumulate_t<T>>& targets, Stream stream) {
  constexpr int kItems = Pack<T>::kItems;
  const int64_t rows = p.batch * sources(p), words = soft_argmax_cuda::targets(p) / kItems;
  const RowPlan plan = plan_of<T>(p, team_shift(rows, words, 2 * kGroup<T>));
  dim3 grid;
  if (Status s = grid_of_teams(rows, plan.team_shift, grid); !s.ok()) return s;
  return with_places<T>(targets.slots != nullptr, plan, [&](auto masked, auto places) {
    return launch(&soft_argmax_forward_kernel<T, masked.value, places.value>, grid, dim3(kRowThreads), 0, stream, p,
                  targets, plan);
  });
}

template <class T>
Status launch_any_row(const SoftArgmaxParams& p, const accumulate_t<T>* log_weight, Stream stream) {
  const int64_t rows = p.batch * sources(p);
  const int shift = team_shift(rows, targets(p) / 4, 4);
  dim3 grid;
  if (Status s = grid_of_teams(rows, shift, grid); !s.ok()) return s;
  const auto run = [&](auto kernel) {
    return launch(kernel, grid, dim3(kRowThreads), 0, stream, p, log_weight, shift);
  };
  return p.index != nullptr ? run(&soft_argmax_any_row_kernel<T, true>) : run(&soft_argmax_any_row_kernel<T, false>);
}

template <class T>
Status forward(const SoftArgmaxParams& p, const ForwardWorkspace<accumulate_t<T>>& w, Stream stream) {
  using Acc = accumulate_t<T>;
  const int64_t rows = p.batch * sources(p), n = targets(p);
  const bool words =
      aligned_rows(p.corr, n * static_cast<int64_t>(sizeof(T))) && n <= INT32_MAX && rows <= INT32_MAX - kRowWarps;
  if (words && !p.simple) {
    dim3 grid;
    if (w.log_weight != nullptr) {
      if (Status s = grid_of(p.batch, grid); !s.ok()) return s;
      const Status s = launch(&soft_argmax_targets_kernel<Acc, Pack<T>::kItems>, grid, dim3(kTargetThreads), 0, stream,
                              p, w.targets);
      if (!s.ok()) return s;
    }
    return p.kernel_sigma > 0 ? launch_windowed<T>(p, w.targets, stream) : launch_plain<T>(p, w.targets, stream);
  }
  if (w.log_weight != nullptr) {
    if (Status s = launch_weights(p, w.log_weight, stream); !s.ok()) return s;
  }
  if (!p.simple) return launch_any_row<T>(p, w.log_weight, stream);
  dim3 grid;
  if (Status s = grid_of(ceil_div(rows, 256), grid); !s.ok()) return s;
  return launch(&soft_argmax_forward_simple_kernel<T>, grid, dim3(256), 0, stream, p, w.log_weight);
}

}  // namespace

size_t soft_argmax_forward_workspace_bytes_cuda(const SoftArgmaxParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  return p.dtype == DType::kFloat64 ? ForwardWorkspace<double>(p, nullptr).bytes
                                    : ForwardWorkspace<float>(p, nullptr).bytes;
}

Status soft_argmax_forward_cuda(const SoftArgmaxParams& p, void* workspace, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, soft_argmax_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  log_kernels(p, "soft_argmax");
  return dispatch_floating(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return forward<T>(p, ForwardWorkspace<accumulate_t<T>>(p, workspace), stream);
  });
}

}  // namespace cosegflow

// torch.ops.cosegflow.correlation and its backward.
#include <tuple>

#include "cosegflow/correlation.h"
#include "torch/execution.h"

namespace cosegflow::binding {
namespace {

using OptionalTensor = std::optional<Tensor>;

struct Forward {
  static size_t bytes_cpu(const CorrelationParams& p, const CpuRuntime& r) {
    return correlation_forward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const CorrelationParams& p, void* w, const CpuRuntime& r) {
    return correlation_forward_cpu(p, w, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const CorrelationParams& p) { return correlation_forward_workspace_bytes_cuda(p); }
  static Status run_cuda(const CorrelationParams& p, void* w, Stream s) { return correlation_forward_cuda(p, w, s); }
#endif
};

struct Backward {
  static size_t bytes_cpu(const CorrelationParams& p, const CpuRuntime& r) {
    return correlation_backward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const CorrelationParams& p, void* w, const CpuRuntime& r) {
    return correlation_backward_cpu(p, w, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const CorrelationParams& p) { return correlation_backward_workspace_bytes_cuda(p); }
  static Status run_cuda(const CorrelationParams& p, void* w, Stream s) { return correlation_backward_cuda(p, w, s); }
#endif
};

CorrelationParams params_of(const Tensor& fa, const Tensor& fb, bool normalize, bool relu, bool simple) {
  require_pair(fa, fb);
  CorrelationParams p;
  p.batch = fa.size(0), p.channels = fa.size(1);
  p.height_a = fa.size(2), p.width_a = fa.size(3), p.height_b = fb.size(2), p.width_b = fb.size(3);
  p.normalize = normalize, p.relu = relu, p.simple = simple;
  p.fa = view<4>(fa, "fa"), p.fb = view<4>(fb, "fb");
  return p;
}

std::vector<int64_t> volume_sizes(const CorrelationParams& p) {
  return {p.batch, p.height_a, p.width_a, p.height_b, p.width_b};
}

Tensor correlation(Tensor fa, Tensor fb, bool normalize, bool relu, bool simple, int64_t precision, bool portable) {
  CorrelationParams p = params_of(fa, fb, normalize, relu, simple);
  p.precision = precision_of(precision), p.portable = portable;
  Tensor corr = empty(fa, volume_sizes(p), p.fa.dtype);
  p.corr = corr.data_ptr();
  if (p.batch > 0) execute<Forward>(fa, p);
  return corr;
}

std::tuple<Tensor, Tensor> correlation_backward(Tensor grad_corr, Tensor fa, Tensor fb, OptionalTensor corr,
                                                bool normalize, bool relu, bool simple, bool need_fa, bool need_fb,
                                                bool portable) {
  CorrelationParams p = params_of(fa, fb, normalize, relu, simple);
  p.portable = portable;
  require(!relu || corr.has_value(), "the backward of relu=True needs corr");
  for (const OptionalTensor& volume : {OptionalTensor(grad_corr), corr}) {
    if (!volume.has_value()) continue;
    require_same_device(*volume, fa);
    require(volume->scalar_type() == fa.scalar_type() && sizes_of(*volume) == volume_sizes(p),
            "corr and grad_corr need the shape and the dtype of the volume");
  }
  grad_corr = torch::stable::contiguous(grad_corr);
  if (relu) {
    corr = torch::stable::contiguous(*corr);
    p.corr = corr->data_ptr();
  }
  p.grad_corr = grad_corr.data_ptr();
  Tensor grad_fa = need_fa ? empty(fa, sizes_of(fa), p.fa.dtype) : nothing(fa, p.fa.dtype);
  Tensor grad_fb = need_fb ? empty(fb, sizes_of(fb), p.fb.dtype) : nothing(fb, p.fb.dtype);
  if (need_fa) p.grad_fa = view<4>(grad_fa);
  if (need_fb) p.grad_fb = view<4>(grad_fb);
  if (p.batch > 0) execute<Backward>(fa, p);
  return {grad_fa, grad_fb};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cosegflow, m) {
  m.def(
      "correlation(Tensor fa, Tensor fb, bool normalize=False, bool relu=False, bool simple=False, int precision=0, "
      "bool portable=False) -> Tensor");
  m.def(
      "correlation_backward(Tensor grad_corr, Tensor fa, Tensor fb, Tensor? corr, bool normalize, bool relu, "
      "bool simple, bool need_fa, bool need_fb, bool portable=False) -> (Tensor grad_fa, Tensor grad_fb)");
}

STABLE_TORCH_LIBRARY_IMPL(cosegflow, CPU, m) {
  m.impl("correlation", TORCH_BOX(&correlation));
  m.impl("correlation_backward", TORCH_BOX(&correlation_backward));
}

#if defined(COSEGFLOW_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(cosegflow, CUDA, m) {
  m.impl("correlation", TORCH_BOX(&correlation));
  m.impl("correlation_backward", TORCH_BOX(&correlation_backward));
}
#endif

}  // namespace cosegflow::binding

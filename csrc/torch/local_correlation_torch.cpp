// torch.ops.cosegflow.local_correlation and its backward.
#include <tuple>

#include "cosegflow/local_correlation.h"
#include "torch/execution.h"

namespace cosegflow::binding {
namespace {

using OptionalTensor = std::optional<Tensor>;

struct Forward {
  static size_t bytes_cpu(const LocalCorrelationParams& p, const CpuRuntime& r) {
    return local_correlation_forward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const LocalCorrelationParams& p, void* w, const CpuRuntime& r) {
    return local_correlation_forward_cpu(p, w, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const LocalCorrelationParams& p) {
    return local_correlation_forward_workspace_bytes_cuda(p);
  }
  static Status run_cuda(const LocalCorrelationParams& p, void* w, Stream s) {
    return local_correlation_forward_cuda(p, w, s);
  }
#endif
};

struct Backward {
  static size_t bytes_cpu(const LocalCorrelationParams& p, const CpuRuntime& r) {
    return local_correlation_backward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const LocalCorrelationParams& p, void* w, const CpuRuntime& r) {
    return local_correlation_backward_cpu(p, w, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const LocalCorrelationParams& p) {
    return local_correlation_backward_workspace_bytes_cuda(p);
  }
  static Status run_cuda(const LocalCorrelationParams& p, void* w, Stream s) {
    return local_correlation_backward_cuda(p, w, s);
  }
#endif
};

LocalCorrelationParams params_of(const Tensor& fa, const Tensor& fb, const OptionalTensor& flow, int64_t radius,
                                 bool normalize) {
  require_pair(fa, fb);
  require(radius >= 0 && radius <= LocalCorrelationParams::kMaxRadius, "radius needs to be in 0 .. 16383");
  for (int64_t d = 2; d < 4; ++d) {
    require(fa.size(d) <= INT32_MAX / 2 && fb.size(d) <= INT32_MAX / 2, "fa or fb has too many rows or columns");
  }
  LocalCorrelationParams p;
  p.batch = fa.size(0), p.channels = fa.size(1);
  p.height_a = fa.size(2), p.width_a = fa.size(3), p.height_b = fb.size(2), p.width_b = fb.size(3);
  p.radius = radius, p.normalize = normalize;
  p.fa = view<4>(fa, "fa"), p.fb = view<4>(fb, "fb"), p.flow = view<4>(flow, "flow");
  if (flow.has_value()) {
    require_same_device(*flow, fa);
    require(sizes_of(*flow) == std::vector<int64_t>({p.batch, 2, p.height_a, p.width_a}),
            "flow needs to be (B, 2, Ha, Wa)");
    require(p.flow.dtype == accumulate_type(p.fa.dtype), "flow needs to be float64 for float64 features, else float32");
  }
  return p;
}

std::vector<int64_t> out_sizes(const LocalCorrelationParams& p) {
  return {p.batch, p.side() * p.side(), p.height_a, p.width_a};
}

Tensor local_correlation(Tensor fa, Tensor fb, OptionalTensor flow, int64_t radius, bool normalize, bool simple) {
  LocalCorrelationParams p = params_of(fa, fb, flow, radius, normalize);
  p.simple = simple;
  Tensor out = empty(fa, out_sizes(p), p.fa.dtype);
  p.out = out.data_ptr();
  if (p.batch > 0) execute<Forward>(fa, p);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> local_correlation_backward(Tensor grad_out, Tensor fa, Tensor fb,
                                                              OptionalTensor flow, int64_t radius, bool normalize,
                                                              bool deterministic, bool need_fa, bool need_fb,
                                                              bool need_flow, bool simple) {
  LocalCorrelationParams p = params_of(fa, fb, flow, radius, normalize);
  p.deterministic = deterministic, p.simple = simple;
  require(!need_flow || flow.has_value(), "need_flow needs flow");
  p.grad_out = grad_view<4>(grad_out, "grad_out", fa, out_sizes(p), p.fa.dtype);
  const DType accumulate = accumulate_type(p.fa.dtype);
  Tensor grad_fa = need_fa ? empty(fa, sizes_of(fa), p.fa.dtype) : nothing(fa, p.fa.dtype);
  Tensor grad_fb = need_fb ? empty(fb, sizes_of(fb), p.fb.dtype) : nothing(fb, p.fb.dtype);
  Tensor grad_flow = need_flow ? empty(fa, sizes_of(*flow), accumulate) : nothing(fa, accumulate);
  if (need_fa) p.grad_fa = view<4>(grad_fa);
  if (need_fb) p.grad_fb = view<4>(grad_fb);
  if (need_flow) p.grad_flow = view<4>(grad_flow);
  if (p.batch > 0 && (need_fa || need_fb || need_flow)) execute<Backward>(fa, p);
  return {grad_fa, grad_fb, grad_flow};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cosegflow, m) {
  m.def(
      "local_correlation(Tensor fa, Tensor fb, Tensor? flow, int radius, bool normalize=False, bool simple=False) "
      "-> Tensor");
  m.def(
      "local_correlation_backward(Tensor grad_out, Tensor fa, Tensor fb, Tensor? flow, int radius, bool normalize, "
      "bool deterministic, bool need_fa, bool need_fb, bool need_flow, bool simple=False) -> (Tensor grad_fa, "
      "Tensor grad_fb, Tensor grad_flow)");
}

STABLE_TORCH_LIBRARY_IMPL(cosegflow, CPU, m) {
  m.impl("local_correlation", TORCH_BOX(&local_correlation));
  m.impl("local_correlation_backward", TORCH_BOX(&local_correlation_backward));
}

#if defined(COSEGFLOW_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(cosegflow, CUDA, m) {
  m.impl("local_correlation", TORCH_BOX(&local_correlation));
  m.impl("local_correlation_backward", TORCH_BOX(&local_correlation_backward));
}
#endif

}  // namespace cosegflow::binding

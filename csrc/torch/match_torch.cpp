// torch.ops.cosegflow.match and its backward.
#include <tuple>

#include "cosegflow/match.h"
#include "torch/execution.h"

namespace cosegflow::binding {
namespace {

using OptionalTensor = std::optional<Tensor>;

struct Forward {
  static size_t bytes_cpu(const MatchParams& p, const CpuRuntime& r) { return match_forward_workspace_bytes_cpu(p, r); }
  static Status run_cpu(const MatchParams& p, void* w, const CpuRuntime& r) { return match_forward_cpu(p, w, r); }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const MatchParams& p) { return match_forward_workspace_bytes_cuda(p); }
  static Status run_cuda(const MatchParams& p, void* w, Stream stream) { return match_forward_cuda(p, w, stream); }
#endif
};

struct Backward {
  static size_t bytes_cpu(const MatchParams& p, const CpuRuntime& r) {
    return match_backward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const MatchParams& p, void* w, const CpuRuntime& r) { return match_backward_cpu(p, w, r); }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const MatchParams& p) { return match_backward_workspace_bytes_cuda(p); }
  static Status run_cuda(const MatchParams& p, void* w, Stream stream) { return match_backward_cuda(p, w, stream); }
#endif
};

MatchParams params_of(const Tensor& fa, const Tensor& fb, const OptionalTensor& mask_a, const OptionalTensor& mask_b,
                      const Tensor& beta, bool normalize, bool simple) {
  MatchParams p;
  require_pair(fa, fb);
  p.batch = fa.size(0), p.channels = fa.size(1);
  p.height_a = fa.size(2), p.width_a = fa.size(3), p.height_b = fb.size(2), p.width_b = fb.size(3);
  p.normalize = normalize, p.simple = simple;
  p.fa = view<4>(fa, "fa"), p.fb = view<4>(fb, "fb");
  p.mask_a = mask_view(mask_a, "mask_a", fa, p.height_a, p.width_a);
  p.mask_b = mask_view(mask_b, "mask_b", fa, p.height_b, p.width_b);
  require_same_device(beta, fa);
  p.beta = beta_view(beta, p.batch, accumulate_type(p.fa.dtype));
  return p;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> match(Tensor fa, Tensor fb, OptionalTensor mask_a,
                                                         OptionalTensor mask_b, Tensor beta, bool normalize,
                                                         bool simple, double kernel_sigma, bool return_index,
                                                         int64_t precision, bool portable) {
  MatchParams p = params_of(fa, fb, mask_a, mask_b, beta, normalize, simple);
  p.precision = precision_of(precision), p.portable = portable;
  const DType accumulate = accumulate_type(p.fa.dtype);
  Tensor flow = empty(fa, {p.batch, 2, p.height_a, p.width_a}, accumulate);
  Tensor lse = empty(fa, {p.batch, p.height_a, p.width_a}, accumulate);
  Tensor confidence = empty(fa, {p.batch, p.height_a, p.width_a}, accumulate);
  p.flow = view<4>(flow), p.lse = view<3>(lse), p.confidence = view<3>(confidence);
  const PeakTensors peaks = peak_tensors(fa, p, accumulate, kernel_sigma, return_index);
  if (p.batch > 0) execute<Forward>(fa, p);
  return {flow, lse, confidence, peaks.index, peaks.score};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> match_backward(OptionalTensor grad_flow, OptionalTensor grad_lse, Tensor fa,
                                                          Tensor fb, OptionalTensor mask_a, OptionalTensor mask_b,
                                                          Tensor beta, Tensor flow, Tensor lse, bool normalize,
                                                          bool simple, bool need_fa, bool need_fb, bool need_mask_b,
                                                          bool need_beta, OptionalTensor index, double kernel_sigma,
                                                          bool portable) {
  MatchParams p = params_of(fa, fb, mask_a, mask_b, beta, normalize, simple);
  p.portable = portable;
  const DType accumulate = accumulate_type(p.fa.dtype);
  flow = torch::stable::contiguous(flow), lse = torch::stable::contiguous(lse);
  require_flow_and_lse(flow, lse, fa, p.batch, p.height_a, p.width_a, accumulate);
  p.flow = view<4>(flow), p.lse = view<3>(lse);
  take_index(fa, p, index, kernel_sigma);
  p.grad_flow = grad_view<4>(grad_flow, "grad_flow", fa, {p.batch, 2, p.height_a, p.width_a}, accumulate);
  p.grad_lse = grad_view<3>(grad_lse, "grad_lse", fa, {p.batch, p.height_a, p.width_a}, accumulate);
  require(!need_mask_b || mask_b.has_value(), "there is no mask_b to give a gradient for");
  Tensor grad_fa = need_fa ? empty(fa, sizes_of(fa), p.fa.dtype) : nothing(fa, p.fa.dtype);
  Tensor grad_fb = need_fb ? empty(fb, sizes_of(fb), p.fb.dtype) : nothing(fb, p.fb.dtype);
  const DType mask_type = need_mask_b ? p.mask_b.dtype : accumulate;
  Tensor grad_mask_b = need_mask_b ? empty(fa, {p.batch, p.height_b, p.width_b}, accumulate) : nothing(fa, mask_type);
  Tensor grad_beta = need_beta ? empty(fa, {p.batch}, accumulate) : nothing(fa, accumulate);
  if (need_fa) p.grad_fa = view<4>(grad_fa);
  if (need_fb) p.grad_fb = view<4>(grad_fb);
  if (need_mask_b) p.grad_mask_b = view<3>(grad_mask_b);
  if (need_beta) p.grad_beta = view<1>(grad_beta);
  if (p.batch > 0) execute<Backward>(fa, p);
  return {grad_fa, grad_fb, converted(grad_mask_b, mask_type), grad_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cosegflow, m) {
  m.def(
      "match(Tensor fa, Tensor fb, Tensor? mask_a, Tensor? mask_b, Tensor beta, bool normalize=True, "
      "bool simple=False, float kernel_sigma=0.0, bool return_index=False, int precision=0, bool portable=False) -> "
      "(Tensor flow, Tensor lse, Tensor confidence, Tensor index, Tensor score)");
  m.def(
      "match_backward(Tensor? grad_flow, Tensor? grad_lse, Tensor fa, Tensor fb, Tensor? mask_a, Tensor? mask_b, "
      "Tensor beta, Tensor flow, Tensor lse, bool normalize, bool simple, bool need_fa, bool need_fb, "
      "bool need_mask_b, bool need_beta, Tensor? index=None, float kernel_sigma=0.0, bool portable=False) -> (Tensor "
      "grad_fa, Tensor grad_fb, Tensor grad_mask_b, Tensor grad_beta)");
}

STABLE_TORCH_LIBRARY_IMPL(cosegflow, CPU, m) {
  m.impl("match", TORCH_BOX(&match));
  m.impl("match_backward", TORCH_BOX(&match_backward));
}

#if defined(COSEGFLOW_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(cosegflow, CUDA, m) {
  m.impl("match", TORCH_BOX(&match));
  m.impl("match_backward", TORCH_BOX(&match_backward));
}
#endif

}  // namespace cosegflow::binding

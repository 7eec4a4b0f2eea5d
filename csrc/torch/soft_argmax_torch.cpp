// torch.ops.cosegflow.soft_argmax and its backward.
#include <tuple>

#include "cosegflow/soft_argmax.h"
#include "torch/execution.h"

namespace cosegflow::binding {
namespace {

using OptionalTensor = std::optional<Tensor>;

struct Forward {
  static size_t bytes_cpu(const SoftArgmaxParams& p, const CpuRuntime& r) {
    return soft_argmax_forward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const SoftArgmaxParams& p, void* w, const CpuRuntime& r) {
    return soft_argmax_forward_cpu(p, w, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const SoftArgmaxParams& p) { return soft_argmax_forward_workspace_bytes_cuda(p); }
  static Status run_cuda(const SoftArgmaxParams& p, void* w, Stream s) { return soft_argmax_forward_cuda(p, w, s); }
#endif
};

struct Backward {
  static size_t bytes_cpu(const SoftArgmaxParams& p, const CpuRuntime& r) {
    return soft_argmax_backward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const SoftArgmaxParams& p, void* w, const CpuRuntime& r) {
    return soft_argmax_backward_cpu(p, w, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const SoftArgmaxParams& p) { return soft_argmax_backward_workspace_bytes_cuda(p); }
  static Status run_cuda(const SoftArgmaxParams& p, void* w, Stream s) { return soft_argmax_backward_cuda(p, w, s); }
#endif
};

SoftArgmaxParams params_of(const Tensor& corr, const OptionalTensor& mask_b, const Tensor& beta, bool simple) {
  require(corr.dim() == 5, "corr needs to be (B, Ha, Wa, Hb, Wb)");
  for (int64_t d = 1; d < 5; ++d) require(corr.size(d) > 0, "corr needs at least one source and one target");
  SoftArgmaxParams p;
  p.batch = corr.size(0);
  p.height_a = corr.size(1), p.width_a = corr.size(2), p.height_b = corr.size(3), p.width_b = corr.size(4);
  p.simple = simple;
  p.dtype = dtype_of(corr, "corr");
  p.corr = corr.data_ptr();
  p.mask_b = mask_view(mask_b, "mask_b", corr, p.height_b, p.width_b);
  require_same_device(beta, corr);
  p.beta = beta_view(beta, p.batch, accumulate_type(p.dtype));
  return p;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> soft_argmax(Tensor corr, OptionalTensor mask_b, Tensor beta,
                                                               bool simple, double kernel_sigma, bool return_index) {
  corr = torch::stable::contiguous(corr);
  SoftArgmaxParams p = params_of(corr, mask_b, beta, simple);
  const DType accumulate = accumulate_type(p.dtype);
  Tensor flow = empty(corr, {p.batch, 2, p.height_a, p.width_a}, accumulate);
  Tensor lse = empty(corr, {p.batch, p.height_a, p.width_a}, accumulate);
  Tensor confidence = empty(corr, {p.batch, p.height_a, p.width_a}, accumulate);
  p.flow = view<4>(flow), p.lse = view<3>(lse), p.confidence = view<3>(confidence);
  const PeakTensors peaks = peak_tensors(corr, p, accumulate, kernel_sigma, return_index);
  if (p.batch > 0) execute<Forward>(corr, p);
  return {flow, lse, confidence, peaks.index, peaks.score};
}

std::tuple<Tensor, Tensor, Tensor> soft_argmax_backward(OptionalTensor grad_flow, OptionalTensor grad_lse, Tensor corr,
                                                        OptionalTensor mask_b, Tensor beta, Tensor flow, Tensor lse,
                                                        bool simple, bool need_corr, bool need_mask_b, bool need_beta,
                                                        OptionalTensor index, double kernel_sigma) {
  corr = torch::stable::contiguous(corr);
  SoftArgmaxParams p = params_of(corr, mask_b, beta, simple);
  const DType accumulate = accumulate_type(p.dtype);
  flow = torch::stable::contiguous(flow), lse = torch::stable::contiguous(lse);
  require_flow_and_lse(flow, lse, corr, p.batch, p.height_a, p.width_a, accumulate);
  p.flow = view<4>(flow), p.lse = view<3>(lse);
  take_index(corr, p, index, kernel_sigma);
  p.grad_flow = grad_view<4>(grad_flow, "grad_flow", corr, {p.batch, 2, p.height_a, p.width_a}, accumulate);
  p.grad_lse = grad_view<3>(grad_lse, "grad_lse", corr, {p.batch, p.height_a, p.width_a}, accumulate);
  require(!need_mask_b || mask_b.has_value(), "there is no mask_b to give a gradient for");
  Tensor grad_corr = need_corr ? empty(corr, sizes_of(corr), p.dtype) : nothing(corr, p.dtype);
  const DType mask_type = need_mask_b ? p.mask_b.dtype : accumulate;
  Tensor grad_mask_b =
      need_mask_b ? empty(corr, {p.batch, p.height_b, p.width_b}, accumulate) : nothing(corr, mask_type);
  Tensor grad_beta = need_beta ? empty(corr, {p.batch}, accumulate) : nothing(corr, accumulate);
  if (need_corr) p.grad_corr = grad_corr.data_ptr();
  if (need_mask_b) p.grad_mask_b = view<3>(grad_mask_b);
  if (need_beta) p.grad_beta = view<1>(grad_beta);
  if (p.batch > 0) execute<Backward>(corr, p);
  return {grad_corr, converted(grad_mask_b, mask_type), grad_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cosegflow, m) {
  m.def(
      "soft_argmax(Tensor corr, Tensor? mask_b, Tensor beta, bool simple=False, float kernel_sigma=0.0, "
      "bool return_index=False) -> (Tensor flow, Tensor lse, Tensor confidence, Tensor index, Tensor score)");
  m.def(
      "soft_argmax_backward(Tensor? grad_flow, Tensor? grad_lse, Tensor corr, Tensor? mask_b, Tensor beta, "
      "Tensor flow, Tensor lse, bool simple, bool need_corr, bool need_mask_b, bool need_beta, "
      "Tensor? index=None, float kernel_sigma=0.0) -> "
      "(Tensor grad_corr, Tensor grad_mask_b, Tensor grad_beta)");
}

STABLE_TORCH_LIBRARY_IMPL(cosegflow, CPU, m) {
  m.impl("soft_argmax", TORCH_BOX(&soft_argmax));
  m.impl("soft_argmax_backward", TORCH_BOX(&soft_argmax_backward));
}

#if defined(COSEGFLOW_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(cosegflow, CUDA, m) {
  m.impl("soft_argmax", TORCH_BOX(&soft_argmax));
  m.impl("soft_argmax_backward", TORCH_BOX(&soft_argmax_backward));
}
#endif

}  // namespace cosegflow::binding

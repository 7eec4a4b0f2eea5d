// torch.ops.cosegflow.match_both and its backward.
#include <tuple>

#include "cosegflow/match_both.h"
#include "torch/execution.h"

namespace cosegflow::binding {
namespace {

using OptionalTensor = std::optional<Tensor>;

struct Forward {
  static size_t bytes_cpu(const MatchBothParams& p, const CpuRuntime& r) {
    return match_both_forward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const MatchBothParams& p, void* w, const CpuRuntime& r) {
    return match_both_forward_cpu(p, w, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const MatchBothParams& p) { return match_both_forward_workspace_bytes_cuda(p); }
  static Status run_cuda(const MatchBothParams& p, void* w, Stream s) { return match_both_forward_cuda(p, w, s); }
#endif
};

struct Backward {
  static size_t bytes_cpu(const MatchBothParams& p, const CpuRuntime& r) {
    return match_both_backward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const MatchBothParams& p, void* w, const CpuRuntime& r) {
    return match_both_backward_cpu(p, w, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const MatchBothParams& p) { return match_both_backward_workspace_bytes_cuda(p); }
  static Status run_cuda(const MatchBothParams& p, void* w, Stream s) { return match_both_backward_cuda(p, w, s); }
#endif
};

MatchBothParams params_of(const Tensor& fa, const Tensor& fb, const OptionalTensor& mask_a,
                          const OptionalTensor& mask_b, const Tensor& beta, bool normalize, bool simple) {
  MatchBothParams p;
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

using Matches = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Matches match_both(Tensor fa, Tensor fb, OptionalTensor mask_a, OptionalTensor mask_b, Tensor beta, bool normalize,
                   bool simple, int64_t precision, bool portable) {
  MatchBothParams p = params_of(fa, fb, mask_a, mask_b, beta, normalize, simple);
  p.precision = precision_of(precision), p.portable = portable;
  const DType accumulate = accumulate_type(p.fa.dtype);
  const auto outputs = [&](MatchDirection& direction, int64_t height, int64_t width) {
    Tensor flow = empty(fa, {p.batch, 2, height, width}, accumulate);
    Tensor lse = empty(fa, {p.batch, height, width}, accumulate);
    Tensor confidence = empty(fa, {p.batch, height, width}, accumulate);
    direction.flow = view<4>(flow), direction.lse = view<3>(lse), direction.confidence = view<3>(confidence);
    return std::make_tuple(flow, lse, confidence);
  };
  const auto ab = outputs(p.ab, p.height_a, p.width_a), ba = outputs(p.ba, p.height_b, p.width_b);
  if (p.batch > 0) execute<Forward>(fa, p);
  return std::tuple_cat(ab, ba);
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients match_both_backward(OptionalTensor grad_flow_ab, OptionalTensor grad_lse_ab, OptionalTensor grad_flow_ba,
                              OptionalTensor grad_lse_ba, Tensor fa, Tensor fb, OptionalTensor mask_a,
                              OptionalTensor mask_b, Tensor beta, Tensor flow_ab, Tensor lse_ab, Tensor flow_ba,
                              Tensor lse_ba, bool normalize, bool simple, bool need_fa, bool need_fb, bool need_mask_a,
                              bool need_mask_b, bool need_beta, bool portable) {
  MatchBothParams p = params_of(fa, fb, mask_a, mask_b, beta, normalize, simple);
  p.portable = portable;
  const DType accumulate = accumulate_type(p.fa.dtype);
  const auto read = [&](MatchDirection& direction, Tensor& flow, Tensor& lse, const OptionalTensor& grad_flow,
                        const OptionalTensor& grad_lse, int64_t height, int64_t width) {
    flow = torch::stable::contiguous(flow), lse = torch::stable::contiguous(lse);
    require_flow_and_lse(flow, lse, fa, p.batch, height, width, accumulate);
    direction.flow = view<4>(flow), direction.lse = view<3>(lse);
    direction.grad_flow = grad_view<4>(grad_flow, "grad_flow", fa, {p.batch, 2, height, width}, accumulate);
    direction.grad_lse = grad_view<3>(grad_lse, "grad_lse", fa, {p.batch, height, width}, accumulate);
  };
  read(p.ab, flow_ab, lse_ab, grad_flow_ab, grad_lse_ab, p.height_a, p.width_a);
  read(p.ba, flow_ba, lse_ba, grad_flow_ba, grad_lse_ba, p.height_b, p.width_b);
  require(!need_mask_a || mask_a.has_value(), "there is no mask_a to give a gradient for");
  require(!need_mask_b || mask_b.has_value(), "there is no mask_b to give a gradient for");
  Tensor grad_fa = need_fa ? empty(fa, sizes_of(fa), p.fa.dtype) : nothing(fa, p.fa.dtype);
  Tensor grad_fb = need_fb ? empty(fb, sizes_of(fb), p.fb.dtype) : nothing(fb, p.fb.dtype);
  const DType type_a = need_mask_a ? p.mask_a.dtype : accumulate, type_b = need_mask_b ? p.mask_b.dtype : accumulate;
  Tensor grad_mask_a = need_mask_a ? empty(fa, {p.batch, p.height_a, p.width_a}, accumulate) : nothing(fa, type_a);
  Tensor grad_mask_b = need_mask_b ? empty(fa, {p.batch, p.height_b, p.width_b}, accumulate) : nothing(fa, type_b);
  Tensor grad_beta = need_beta ? empty(fa, {p.batch}, accumulate) : nothing(fa, accumulate);
  if (need_fa) p.grad_fa = view<4>(grad_fa);
  if (need_fb) p.grad_fb = view<4>(grad_fb);
  if (need_mask_a) p.grad_mask_a = view<3>(grad_mask_a);
  if (need_mask_b) p.grad_mask_b = view<3>(grad_mask_b);
  if (need_beta) p.grad_beta = view<1>(grad_beta);
  if (p.batch > 0) execute<Backward>(fa, p);
  return {grad_fa, grad_fb, converted(grad_mask_a, type_a), converted(grad_mask_b, type_b), grad_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cosegflow, m) {
  m.def(
      "match_both(Tensor fa, Tensor fb, Tensor? mask_a, Tensor? mask_b, Tensor beta, bool normalize=True, "
      "bool simple=False, int precision=0, bool portable=False) -> (Tensor flow_ab, Tensor lse_ab, Tensor "
      "confidence_ab, Tensor flow_ba, Tensor lse_ba, "
      "Tensor confidence_ba)");
  m.def(
      "match_both_backward(Tensor? grad_flow_ab, Tensor? grad_lse_ab, Tensor? grad_flow_ba, Tensor? grad_lse_ba, "
      "Tensor fa, Tensor fb, Tensor? mask_a, Tensor? mask_b, Tensor beta, Tensor flow_ab, Tensor lse_ab, "
      "Tensor flow_ba, Tensor lse_ba, bool normalize, bool simple, bool need_fa, bool need_fb, bool need_mask_a, "
      "bool need_mask_b, bool need_beta, bool portable=False) -> (Tensor grad_fa, Tensor grad_fb, Tensor grad_mask_a, "
      "Tensor grad_mask_b, Tensor grad_beta)");
}

STABLE_TORCH_LIBRARY_IMPL(cosegflow, CPU, m) {
  m.impl("match_both", TORCH_BOX(&match_both));
  m.impl("match_both_backward", TORCH_BOX(&match_both_backward));
}

#if defined(COSEGFLOW_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(cosegflow, CUDA, m) {
  m.impl("match_both", TORCH_BOX(&match_both));
  m.impl("match_both_backward", TORCH_BOX(&match_both_backward));
}
#endif

}  // namespace cosegflow::binding

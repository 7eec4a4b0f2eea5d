// torch.ops.cosegflow.transfer and its backward.
#include "cosegflow/transfer.h"

#include <tuple>

#include "torch/execution.h"

namespace cosegflow::binding {
namespace {

using OptionalTensor = std::optional<Tensor>;

struct Forward {
  static size_t bytes_cpu(const TransferParams& p, const CpuRuntime& r) {
    return transfer_forward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const TransferParams& p, void* w, const CpuRuntime& r) { return transfer_forward_cpu(p, w, r); }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const TransferParams& p) { return transfer_forward_workspace_bytes_cuda(p); }
  static Status run_cuda(const TransferParams& p, void* w, Stream stream) {
    return transfer_forward_cuda(p, w, stream);
  }
#endif
};

struct Backward {
  static size_t bytes_cpu(const TransferParams& p, const CpuRuntime& r) {
    return transfer_backward_workspace_bytes_cpu(p, r);
  }
  static Status run_cpu(const TransferParams& p, void* w, const CpuRuntime& r) {
    return transfer_backward_cpu(p, w, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const TransferParams& p) { return transfer_backward_workspace_bytes_cuda(p); }
  static Status run_cuda(const TransferParams& p, void* w, Stream stream) {
    return transfer_backward_cuda(p, w, stream);
  }
#endif
};

TransferParams params_of(const Tensor& fa, const Tensor& fb, const Tensor& values, const OptionalTensor& mask_a,
                         const OptionalTensor& mask_b, const Tensor& beta, bool normalize, bool simple) {
  TransferParams p;
  require_pair(fa, fb);
  require(values.dim() == 4 && values.size(0) == fb.size(0) && values.size(2) == fb.size(2) &&
              values.size(3) == fb.size(3) && values.size(1) > 0,
          "values need to be (B, V, Hb, Wb), of fb's batch and image size");
  require_same_device(values, fa);
  p.batch = fa.size(0), p.channels = fa.size(1), p.value_channels = values.size(1);
  p.height_a = fa.size(2), p.width_a = fa.size(3), p.height_b = fb.size(2), p.width_b = fb.size(3);
  p.normalize = normalize, p.simple = simple;
  p.fa = view<4>(fa, "fa"), p.fb = view<4>(fb, "fb"), p.values = view<4>(values, "values");
  p.mask_a = mask_view(mask_a, "mask_a", fa, p.height_a, p.width_a);
  p.mask_b = mask_view(mask_b, "mask_b", fa, p.height_b, p.width_b);
  require_same_device(beta, fa);
  p.beta = beta_view(beta, p.batch, accumulate_type(p.fa.dtype));
  return p;
}

std::tuple<Tensor, Tensor> transfer(Tensor fa, Tensor fb, Tensor values, OptionalTensor mask_a, OptionalTensor mask_b,
                                    Tensor beta, bool normalize, bool simple, int64_t precision, bool portable) {
  TransferParams p = params_of(fa, fb, values, mask_a, mask_b, beta, normalize, simple);
  p.precision = precision_of(precision), p.portable = portable;
  const DType accumulate = accumulate_type(p.fa.dtype);
  Tensor out = empty(fa, {p.batch, p.value_channels, p.height_a, p.width_a}, accumulate);
  Tensor lse = empty(fa, {p.batch, p.height_a, p.width_a}, accumulate);
  p.out = view<4>(out), p.lse = view<3>(lse);
  if (p.batch > 0) execute<Forward>(fa, p);
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> transfer_backward(Tensor grad_out, Tensor fa, Tensor fb,
                                                                     Tensor values, OptionalTensor mask_a,
                                                                     OptionalTensor mask_b, Tensor beta, Tensor out,
                                                                     Tensor lse, bool normalize, bool simple,
                                                                     bool need_fa, bool need_fb, bool need_values,
                                                                     bool need_mask_b, bool need_beta, bool portable) {
  TransferParams p = params_of(fa, fb, values, mask_a, mask_b, beta, normalize, simple);
  p.portable = portable;
  const DType accumulate = accumulate_type(p.fa.dtype);
  const std::vector<int64_t> out_sizes = {p.batch, p.value_channels, p.height_a, p.width_a};
  out = torch::stable::contiguous(out), lse = torch::stable::contiguous(lse);
  require_same_device(out, fa);
  require_same_device(lse, fa);
  require(dtype_of(out, "out") == accumulate && sizes_of(out) == out_sizes,
          "out needs to be the output of the forward");
  require(dtype_of(lse, "lse") == accumulate && sizes_of(lse) == std::vector<int64_t>({p.batch, p.height_a, p.width_a}),
          "lse needs to be the output of the forward");
  p.out = view<4>(out), p.lse = view<3>(lse);
  p.grad_out = grad_view<4>(std::optional<Tensor>(grad_out), "grad_out", fa, out_sizes, accumulate);
  require(!need_mask_b || mask_b.has_value(), "there is no mask_b to give a gradient for");
  Tensor grad_fa = need_fa ? empty(fa, sizes_of(fa), p.fa.dtype) : nothing(fa, p.fa.dtype);
  Tensor grad_fb = need_fb ? empty(fb, sizes_of(fb), p.fb.dtype) : nothing(fb, p.fb.dtype);
  Tensor grad_values = need_values ? empty(values, sizes_of(values), p.values.dtype) : nothing(values, p.values.dtype);
  const DType mask_type = need_mask_b ? p.mask_b.dtype : accumulate;
  Tensor grad_mask_b = need_mask_b ? empty(fa, {p.batch, p.height_b, p.width_b}, accumulate) : nothing(fa, mask_type);
  Tensor grad_beta = need_beta ? empty(fa, {p.batch}, accumulate) : nothing(fa, accumulate);
  if (need_fa) p.grad_fa = view<4>(grad_fa);
  if (need_fb) p.grad_fb = view<4>(grad_fb);
  if (need_values) p.grad_values = view<4>(grad_values);
  if (need_mask_b) p.grad_mask_b = view<3>(grad_mask_b);
  if (need_beta) p.grad_beta = view<1>(grad_beta);
  if (p.batch > 0) execute<Backward>(fa, p);
  return {grad_fa, grad_fb, grad_values, converted(grad_mask_b, mask_type), grad_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cosegflow, m) {
  m.def(
      "transfer(Tensor fa, Tensor fb, Tensor values, Tensor? mask_a, Tensor? mask_b, Tensor beta, "
      "bool normalize=True, bool simple=False, int precision=0, bool portable=False) -> (Tensor out, Tensor lse)");
  m.def(
      "transfer_backward(Tensor grad_out, Tensor fa, Tensor fb, Tensor values, Tensor? mask_a, Tensor? mask_b, "
      "Tensor beta, Tensor out, Tensor lse, bool normalize, bool simple, bool need_fa, bool need_fb, "
      "bool need_values, bool need_mask_b, bool need_beta, bool portable=False) -> (Tensor grad_fa, Tensor grad_fb, "
      "Tensor grad_values, Tensor grad_mask_b, Tensor grad_beta)");
}

STABLE_TORCH_LIBRARY_IMPL(cosegflow, CPU, m) {
  m.impl("transfer", TORCH_BOX(&transfer));
  m.impl("transfer_backward", TORCH_BOX(&transfer_backward));
}

#if defined(COSEGFLOW_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(cosegflow, CUDA, m) {
  m.impl("transfer", TORCH_BOX(&transfer));
  m.impl("transfer_backward", TORCH_BOX(&transfer_backward));
}
#endif

}  // namespace cosegflow::binding

// torch.ops.cosegflow.cycle_error and its backward.
#include <tuple>

#include "cosegflow/cycle_error.h"
#include "torch/execution.h"

namespace cosegflow::binding {
namespace {

struct Forward {
  static size_t bytes_cpu(const CycleErrorParams&, const CpuRuntime&) { return 0; }
  static Status run_cpu(const CycleErrorParams& p, void*, const CpuRuntime& r) { return cycle_error_forward_cpu(p, r); }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const CycleErrorParams&) { return 0; }
  static Status run_cuda(const CycleErrorParams& p, void*, Stream stream) {
    return cycle_error_forward_cuda(p, stream);
  }
#endif
};

struct Backward {
  static size_t bytes_cpu(const CycleErrorParams&, const CpuRuntime&) { return 0; }
  static Status run_cpu(const CycleErrorParams& p, void*, const CpuRuntime& r) {
    return cycle_error_backward_cpu(p, r);
  }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const CycleErrorParams& p) { return cycle_error_backward_workspace_bytes_cuda(p); }
  static Status run_cuda(const CycleErrorParams& p, void* w, Stream stream) {
    return cycle_error_backward_cuda(p, w, stream);
  }
#endif
};

CycleErrorParams params_of(const Tensor& flow_ab, const Tensor& flow_ba) {
  require(flow_ab.dim() == 4 && flow_ab.size(1) == 2, "flow_ab needs to be (B, 2, Ha, Wa)");
  require(flow_ba.dim() == 4 && flow_ba.size(1) == 2, "flow_ba needs to be (B, 2, Hb, Wb)");
  require(flow_ab.size(0) == flow_ba.size(0), "the flows differ in batch size");
  for (int64_t d = 2; d < 4; ++d) require(flow_ab.size(d) > 0 && flow_ba.size(d) > 0, "a flow has no pixel");
  require(flow_ba.size(2) < INT32_MAX - 8 && flow_ba.size(3) < INT32_MAX - 8, "flow_ba has too many rows or columns");
  require(flow_ab.scalar_type() == flow_ba.scalar_type(), "the flows need one dtype");
  require_same_device(flow_ba, flow_ab);
  CycleErrorParams p;
  p.batch = flow_ab.size(0), p.height_a = flow_ab.size(2), p.width_a = flow_ab.size(3);
  p.height_b = flow_ba.size(2), p.width_b = flow_ba.size(3);
  p.flow_ab = view<4>(flow_ab, "flow_ab");
  p.flow_ba = view<4>(flow_ba, "flow_ba");
  require(p.flow_ab.dtype != DType::kBool, "the flows need a floating dtype");
  return p;
}

std::tuple<Tensor, Tensor> cycle_error(Tensor flow_ab, Tensor flow_ba, bool simple) {
  CycleErrorParams p = params_of(flow_ab, flow_ba);
  p.simple = simple;
  Tensor error = empty(flow_ab, {p.batch, p.height_a, p.width_a}, accumulate_type(p.flow_ab.dtype));
  Tensor valid = empty(flow_ab, {p.batch, p.height_a, p.width_a}, DType::kBool);
  p.error = view<3>(error);
  p.valid = view<3>(valid);
  if (p.batch > 0) execute<Forward>(flow_ab, p);
  return {error, valid};
}

std::tuple<Tensor, Tensor> cycle_error_backward(Tensor grad_error, Tensor flow_ab, Tensor flow_ba, bool need_ab,
                                                bool need_ba, bool deterministic, bool simple) {
  CycleErrorParams p = params_of(flow_ab, flow_ba);
  p.deterministic = deterministic, p.simple = simple;
  const DType dtype = p.flow_ab.dtype, accumulate = accumulate_type(dtype);
  p.grad_error = grad_view<3>(grad_error, "grad_error", flow_ab, {p.batch, p.height_a, p.width_a}, accumulate);
  Tensor grad_ab = need_ab ? empty(flow_ab, sizes_of(flow_ab), accumulate) : nothing(flow_ab, dtype);
  Tensor grad_ba = need_ba ? empty(flow_ba, sizes_of(flow_ba), accumulate) : nothing(flow_ba, dtype);
  if (need_ab) p.grad_ab = view<4>(grad_ab);
  if (need_ba) p.grad_ba = view<4>(grad_ba);
  if (p.batch > 0) execute<Backward>(flow_ab, p);
  return {converted(grad_ab, dtype), converted(grad_ba, dtype)};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cosegflow, m) {
  m.def("cycle_error(Tensor flow_ab, Tensor flow_ba, bool simple=False) -> (Tensor error, Tensor valid)");
  m.def(
      "cycle_error_backward(Tensor grad_error, Tensor flow_ab, Tensor flow_ba, bool need_ab, bool need_ba, "
      "bool deterministic, bool simple=False) -> (Tensor grad_ab, Tensor grad_ba)");
}

STABLE_TORCH_LIBRARY_IMPL(cosegflow, CPU, m) {
  m.impl("cycle_error", TORCH_BOX(&cycle_error));
  m.impl("cycle_error_backward", TORCH_BOX(&cycle_error_backward));
}

#if defined(COSEGFLOW_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(cosegflow, CUDA, m) {
  m.impl("cycle_error", TORCH_BOX(&cycle_error));
  m.impl("cycle_error_backward", TORCH_BOX(&cycle_error_backward));
}
#endif

}  // namespace cosegflow::binding

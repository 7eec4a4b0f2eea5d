// torch.ops.cosegflow.warp and its backward.
#include <initializer_list>
#include <string>
#include <tuple>

#include "cosegflow/warp.h"
#include "torch/execution.h"

namespace cosegflow::binding {
namespace {

struct Forward {
  static size_t bytes_cpu(const WarpParams&, const CpuRuntime&) { return 0; }
  static Status run_cpu(const WarpParams& p, void*, const CpuRuntime& runtime) { return warp_forward_cpu(p, runtime); }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const WarpParams&) { return 0; }
  static Status run_cuda(const WarpParams& p, void*, Stream stream) { return warp_forward_cuda(p, stream); }
#endif
};

struct Backward {
  static size_t bytes_cpu(const WarpParams&, const CpuRuntime&) { return 0; }
  static Status run_cpu(const WarpParams& p, void*, const CpuRuntime& runtime) { return warp_backward_cpu(p, runtime); }
#if defined(COSEGFLOW_WITH_CUDA)
  static size_t bytes_cuda(const WarpParams& p) { return warp_backward_workspace_bytes_cuda(p); }
  static Status run_cuda(const WarpParams& p, void* w, Stream stream) { return warp_backward_cuda(p, w, stream); }
#endif
};

WarpParams params_of(const Tensor& x, const Tensor& flow, const std::string& mode, const std::string& padding) {
  require(x.dim() == 4, "x needs to be (B, C, H, W)");
  require(flow.dim() == 4 && flow.size(0) == x.size(0) && flow.size(1) == 2, "flow needs to be (B, 2, Ho, Wo)");
  require(x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, "x needs at least one channel and one pixel");
  require(flow.size(2) > 0 && flow.size(3) > 0, "flow needs at least one pixel");
  require(x.size(2) < INT32_MAX - 8 && x.size(3) < INT32_MAX - 8, "x has too many rows or columns");
  require_same_device(flow, x);
  require(mode == "bilinear" || mode == "nearest", "mode needs to be 'bilinear' or 'nearest'");
  require(padding == "zeros" || padding == "border", "padding needs to be 'zeros' or 'border'");
  WarpParams p;
  p.batch = x.size(0), p.channels = x.size(1), p.height = x.size(2), p.width = x.size(3);
  p.out_height = flow.size(2), p.out_width = flow.size(3);
  p.mode = mode == "nearest" ? WarpMode::kNearest : WarpMode::kBilinear;
  p.padding = padding == "border" ? WarpPadding::kBorder : WarpPadding::kZeros;
  p.x = view<4>(x, "x");
  p.flow = view<4>(flow, "flow");
  require(p.flow.dtype == accumulate_type(p.x.dtype), "flow needs to be float64 for a float64 x, else float32");
  return p;
}

// Contiguous in the order of strides in which dimensions are named, from the fastest; those of size 1 do not matter.
bool contiguous_in(const Tensor& x, std::initializer_list<int64_t> dimensions) {
  int64_t expected = 1;
  for (const int64_t d : dimensions) {
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return true;
}

// On CUDA what belongs to x has its layout: channels last where x is that and not contiguous. cosegflow/ops/warp.py
// promises the same.
bool channels_last(const Tensor& x) {
  return x.is_cuda() && contiguous_in(x, {1, 3, 2, 0}) && !contiguous_in(x, {3, 2, 1, 0});
}

Tensor empty_like_x(const Tensor& x, int64_t height, int64_t width, DType dtype) {
  if (!channels_last(x)) return empty(x, {x.size(0), x.size(1), height, width}, dtype);
  const Tensor pixels = empty(x, {x.size(0), height, width, x.size(1)}, dtype);
  return torch::stable::transpose(torch::stable::transpose(pixels, 1, 3), 2, 3);
}

std::tuple<Tensor, Tensor> warp(Tensor x, Tensor flow, std::string mode, std::string padding, bool simple) {
  WarpParams p = params_of(x, flow, mode, padding);
  p.simple = simple;
  Tensor out = empty_like_x(x, p.out_height, p.out_width, p.x.dtype);
  Tensor valid = empty(x, {p.batch, p.out_height, p.out_width}, DType::kBool);
  p.out = view<4>(out);
  p.valid = view<3>(valid);
  if (p.batch > 0) execute<Forward>(x, p);
  return {out, valid};
}

// Whether the kernels write p.grad_x as it is.
bool takes_grad_x(const WarpParams& p, const Tensor& x) {
#if defined(COSEGFLOW_WITH_CUDA)
  if (x.is_cuda() && warp_grad_x_of_any_kind_cuda(p)) return true;
#endif
  return p.grad_x.dtype == accumulate_type(p.x.dtype) && !channels_last(x);
}

std::tuple<Tensor, Tensor> warp_backward(Tensor grad_out, Tensor x, Tensor flow, std::string mode, std::string padding,
                                         bool need_x, bool need_flow, bool deterministic, bool simple) {
  WarpParams p = params_of(x, flow, mode, padding);
  p.simple = simple;
  p.deterministic = deterministic;
  require_same_device(grad_out, x);
  p.grad_out = view<4>(grad_out, "grad_out");
  require(p.grad_out.dtype == p.x.dtype && grad_out.size(0) == p.batch && grad_out.size(1) == p.channels &&
              grad_out.size(2) == p.out_height && grad_out.size(3) == p.out_width,
          "grad_out needs the shape and the dtype of the output");
  const DType accumulate = accumulate_type(p.x.dtype);
  Tensor grad_x = need_x ? empty_like_x(x, p.height, p.width, p.x.dtype) : nothing(x, p.x.dtype);
  Tensor grad_flow = need_flow ? empty(x, {p.batch, 2, p.out_height, p.out_width}, accumulate) : nothing(x, accumulate);
  if (need_flow) p.grad_flow = view<4>(grad_flow);
  if (p.batch == 0) return {grad_x, grad_flow};
  if (!need_x) {
    execute<Backward>(x, p);
    return {grad_x, grad_flow};
  }
  p.grad_x = view<4>(grad_x);
  if (takes_grad_x(p, x)) {
    execute<Backward>(x, p);
    return {grad_x, grad_flow};
  }
  // Contiguous sums of the accumulate type, then the type and layout that were asked for.
  const Tensor sums = empty(x, {p.batch, p.channels, p.height, p.width}, accumulate);
  p.grad_x = view<4>(sums);
  execute<Backward>(x, p);
  return {torch::stable::copy_(grad_x, sums), grad_flow};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(cosegflow, m) {
  m.def(
      "warp(Tensor x, Tensor flow, str mode=\"bilinear\", str padding=\"zeros\", bool simple=False) -> (Tensor out, "
      "Tensor valid)");
  m.def(
      "warp_backward(Tensor grad_out, Tensor x, Tensor flow, str mode, str padding, bool need_x, bool need_flow, "
      "bool deterministic, bool simple=False) -> (Tensor grad_x, Tensor grad_flow)");
}

STABLE_TORCH_LIBRARY_IMPL(cosegflow, CPU, m) {
  m.impl("warp", TORCH_BOX(&warp));
  m.impl("warp_backward", TORCH_BOX(&warp_backward));
}

#if defined(COSEGFLOW_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(cosegflow, CUDA, m) {
  m.impl("warp", TORCH_BOX(&warp));
  m.impl("warp_backward", TORCH_BOX(&warp_backward));
}
#endif

}  // namespace cosegflow::binding

// warp: samples an image or feature map at p + flow(p). See docs/ops/warp.md for the formula and its gradients.
#pragma once

#include "cosegflow/types.h"

namespace cosegflow {

enum class WarpMode : int32_t { kBilinear, kNearest };  // kNearest: halves round to even, no gradient to the flow
enum class WarpPadding : int32_t { kZeros, kBorder };   // outside x: 0, or the nearest pixel of x

struct WarpParams {
  int64_t batch = 0, channels = 0;        // B, C
  int64_t height = 0, width = 0;          // H, W, of x
  int64_t out_height = 0, out_width = 0;  // Ho, Wo, of flow and out
  WarpMode mode = WarpMode::kBilinear;
  WarpPadding padding = WarpPadding::kZeros;
  bool simple = false;         // CUDA: the plainly right kernels instead of the fast ones
  bool deterministic = false;  // backward on CUDA: bit-equal from run to run, slower

  View4 x;     // (B, C, H, W), any floating type
  View4 flow;  // (B, 2, Ho, Wo), accumulate_type(x), pixels: x to the right, y down; non-finite counts as outside

  // forward
  View4 out;    // (B, C, Ho, Wo), the type of x
  View3 valid;  // (B, Ho, Wo) bool: p + flow(p) is within x; optional

  // backward
  View4 grad_out;   // (B, C, Ho, Wo), the type of x
  View4 grad_x;     // (B, C, H, W) contiguous, accumulate_type(x); overwritten; null where not wanted; see below
  View4 grad_flow;  // (B, 2, Ho, Wo), the type of flow; overwritten; null where not wanted
};

// forward: x, flow -> out, valid. backward: x, flow, grad_out -> grad_x, grad_flow. On the CPU no workspace is needed,
// nor is one on CUDA for the forward.
COSEGFLOW_API Status warp_forward_cpu(const WarpParams&, const CpuRuntime&);
COSEGFLOW_API Status warp_backward_cpu(const WarpParams&, const CpuRuntime&);

COSEGFLOW_API Status warp_forward_cuda(const WarpParams&, Stream);
COSEGFLOW_API size_t warp_backward_workspace_bytes_cuda(const WarpParams&);
COSEGFLOW_API Status warp_backward_cuda(const WarpParams&, void* workspace, Stream);
// Whether grad_x may also have the type of x, and any strides under which its elements are distinct. Asks about sizes,
// and strides of x, flow, grad_out and grad_x.
COSEGFLOW_API bool warp_grad_x_of_any_kind_cuda(const WarpParams&);

}  // namespace cosegflow

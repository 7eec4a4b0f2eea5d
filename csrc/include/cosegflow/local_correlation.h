// local_correlation: inner products of each feature with a window of features around its match. See
// docs/ops/local_correlation.md for the formula and its gradients.
#pragma once

#include "cosegflow/types.h"

namespace cosegflow {

struct LocalCorrelationParams {
  int64_t batch = 0, channels = 0;    // B, C
  int64_t height_a = 0, width_a = 0;  // Ha, Wa, of fa
  int64_t height_b = 0, width_b = 0;  // Hb, Wb, of fb
  int64_t radius = 0;          // of the window, in pixels, 0 to kMaxRadius; the output has (2 radius + 1)^2 planes
  bool normalize = false;      // divide each feature by max(its L2 norm over C, 1e-12)
  bool simple = false;         // CUDA: the plainly right kernels instead of the fast ones
  bool deterministic = false;  // backward on CUDA with flow: bit-equal from run to run, slower

  static constexpr int64_t kMaxRadius = 16383;
  constexpr int64_t side() const { return 2 * radius + 1; }  // of the window, in pixels

  View4 fa, fb;  // (B, C, H, W), one floating type
  View4 flow;    // (B, 2, Ha, Wa), accumulate_type(fa), pixels; non-finite counts as outside; null: 0 everywhere

  // forward: (B, (2 radius + 1)^2, Ha, Wa) contiguous, the type of fa; planes row by row from offset (-r, -r) to (r, r)
  void* out = nullptr;

  // backward
  View4 grad_out;          // like out, any strides
  View4 grad_fa, grad_fb;  // contiguous, the type of fa; overwritten; null where not wanted
  View4 grad_flow;         // (B, 2, Ha, Wa) contiguous, the type of flow; overwritten; null where not wanted
};

// forward: fa, fb, flow -> out. backward: fa, fb, flow, grad_out -> grad_fa, grad_fb, grad_flow.
COSEGFLOW_API size_t local_correlation_forward_workspace_bytes_cpu(const LocalCorrelationParams&, const CpuRuntime&);
COSEGFLOW_API size_t local_correlation_backward_workspace_bytes_cpu(const LocalCorrelationParams&, const CpuRuntime&);
COSEGFLOW_API Status local_correlation_forward_cpu(const LocalCorrelationParams&, void* workspace, const CpuRuntime&);
COSEGFLOW_API Status local_correlation_backward_cpu(const LocalCorrelationParams&, void* workspace, const CpuRuntime&);

COSEGFLOW_API size_t local_correlation_forward_workspace_bytes_cuda(const LocalCorrelationParams&);
COSEGFLOW_API size_t local_correlation_backward_workspace_bytes_cuda(const LocalCorrelationParams&);
COSEGFLOW_API Status local_correlation_forward_cuda(const LocalCorrelationParams&, void* workspace, Stream);
COSEGFLOW_API Status local_correlation_backward_cuda(const LocalCorrelationParams&, void* workspace, Stream);

}  // namespace cosegflow

// correlation: the 4D volume of inner products of all pairs of features, corr[b,i,j,k,l] = <fa[b,:,i,j], fb[b,:,k,l]>.
// See docs/ops/correlation.md.
#pragma once

#include "cosegflow/types.h"

namespace cosegflow {

struct CorrelationParams {
  int64_t batch = 0, channels = 0;    // B, C
  int64_t height_a = 0, width_a = 0;  // Ha, Wa, of fa
  int64_t height_b = 0, width_b = 0;  // Hb, Wb, of fb
  bool normalize = false;             // divide each feature by max(its L2 norm over C, 1e-12)
  bool relu = false;                  // clip at 0
  bool simple = false;                // CUDA: the plainly right kernels instead of the fast ones
  bool portable = false;   // CUDA: of the fast kernels those that run on every architecture, not this one's own
  size_t chunk_bytes = 0;  // CUDA, backward: about how much of the gated volume's gradient exists at a time; 0: default
  // CUDA, float32: how the forward's products are rounded on the way to float32 sums.
  Precision precision = Precision::kHighest;

  View4 fa, fb;  // (B, C, H, W), one floating type

  // (B, Ha*Wa, Hb*Wb) contiguous, the type of fa; written by the forward, read by the backward where relu is set.
  void* corr = nullptr;

  const void* grad_corr = nullptr;  // backward: contiguous, like corr
  View4 grad_fa, grad_fb;           // backward: contiguous, the type of fa, overwritten; null where not wanted
};

// forward: fa, fb -> corr. backward: fa, fb, grad_corr (and corr where relu is set) -> grad_fa, grad_fb.
COSEGFLOW_API size_t correlation_forward_workspace_bytes_cpu(const CorrelationParams&, const CpuRuntime&);
COSEGFLOW_API size_t correlation_backward_workspace_bytes_cpu(const CorrelationParams&, const CpuRuntime&);
COSEGFLOW_API Status correlation_forward_cpu(const CorrelationParams&, void* workspace, const CpuRuntime&);
COSEGFLOW_API Status correlation_backward_cpu(const CorrelationParams&, void* workspace, const CpuRuntime&);

COSEGFLOW_API size_t correlation_forward_workspace_bytes_cuda(const CorrelationParams&);
COSEGFLOW_API size_t correlation_backward_workspace_bytes_cuda(const CorrelationParams&);
COSEGFLOW_API Status correlation_forward_cuda(const CorrelationParams&, void* workspace, Stream);
COSEGFLOW_API Status correlation_backward_cuda(const CorrelationParams&, void* workspace, Stream);

}  // namespace cosegflow

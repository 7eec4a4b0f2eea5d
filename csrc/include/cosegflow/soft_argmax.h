// soft_argmax: mask-aware soft argmax over the last two dimensions of a 4D volume. See docs/ops/soft_argmax.md.
#pragma once

#include "cosegflow/types.h"

namespace cosegflow {

struct SoftArgmaxParams {
  int64_t batch = 0;
  int64_t height_a = 0, width_a = 0, height_b = 0, width_b = 0;
  bool simple = false;  // CUDA: the plainly right kernels instead of the fast ones

  DType dtype = DType::kFloat32;  // of corr and grad_corr
  const void* corr = nullptr;     // (B, Ha*Wa, Hb*Wb) contiguous; entries of excluded targets are never read
  View3 mask_b;                   // floating (any) or bool; optional
  View1 beta;                     // (B), accumulate_type(corr); stride 0 broadcasts one value

  // Forward outputs, contiguous, accumulate_type(corr). The backward reads flow and lse.
  View4 flow;
  View3 lse, confidence;

  // The most probable target, and a window around it: as in match.h.
  int64_t* index = nullptr;
  View3 score;
  double kernel_sigma = 0;

  // Backward: incoming gradients, accumulate_type(corr), any strides, null where there is none.
  View4 grad_flow;
  View3 grad_lse;
  // Backward outputs, contiguous, overwritten, null where not wanted. Excluded positions get 0.
  void* grad_corr = nullptr;  // like corr
  View3 grad_mask_b;          // accumulate_type(corr)
  View1 grad_beta;            // (B), accumulate_type(corr): one value per image
};

COSEGFLOW_API size_t soft_argmax_forward_workspace_bytes_cpu(const SoftArgmaxParams&, const CpuRuntime&);
COSEGFLOW_API size_t soft_argmax_backward_workspace_bytes_cpu(const SoftArgmaxParams&, const CpuRuntime&);
COSEGFLOW_API Status soft_argmax_forward_cpu(const SoftArgmaxParams&, void* workspace, const CpuRuntime&);
COSEGFLOW_API Status soft_argmax_backward_cpu(const SoftArgmaxParams&, void* workspace, const CpuRuntime&);

COSEGFLOW_API size_t soft_argmax_forward_workspace_bytes_cuda(const SoftArgmaxParams&);
COSEGFLOW_API size_t soft_argmax_backward_workspace_bytes_cuda(const SoftArgmaxParams&);
COSEGFLOW_API Status soft_argmax_forward_cuda(const SoftArgmaxParams&, void* workspace, Stream);
COSEGFLOW_API Status soft_argmax_backward_cuda(const SoftArgmaxParams&, void* workspace, Stream);

}  // namespace cosegflow

// soft_argmax: mask-aware soft argmax over the last two dimensions of a 4D volume. See docs/ops/soft_argmax.md.
#pragma once

#include "cosegflow/types.h"

namespace cosegflow {

struct SoftArgmaxParams {
  int64_t batch = 0;                  // B
  int64_t height_a = 0, width_a = 0;  // Ha, Wa: sources
  int64_t height_b = 0, width_b = 0;  // Hb, Wb: targets
  bool simple = false;                // CUDA: the plainly right kernels instead of the fast ones

  DType dtype = DType::kFloat32;  // of corr and grad_corr
  const void* corr = nullptr;     // (B, Ha*Wa, Hb*Wb) contiguous; entries of excluded targets are never read
  View3 mask_b;                   // (B, Hb, Wb), floating (any) or bool; optional; weights below 0 and NaN count as 0
  View1 beta;                     // (B), accumulate_type(corr), the inverse temperature; stride 0 broadcasts one value

  // Forward outputs, contiguous, accumulate_type(corr). The backward reads flow and lse.
  View4 flow;        // (B, 2, Ha, Wa), pixels: x to the right, y down; where nothing is allowed 0
  View3 lse;         // (B, Ha, Wa): log sum_j m_j exp(beta s_ij); where nothing is allowed -inf
  View3 confidence;  // (B, Ha, Wa): the largest p_ij, in [0, 1]; where nothing is allowed 0

  // The most probable target, and a window around it: as in match.h.
  int64_t* index = nullptr;  // (B, Ha, Wa) contiguous
  View3 score;               // (B, Ha, Wa) contiguous, accumulate_type(corr)
  double kernel_sigma = 0;   // pixels; 0: no window

  // Backward: incoming gradients, accumulate_type(corr), any strides, null where there is none.
  View4 grad_flow;  // (B, 2, Ha, Wa)
  View3 grad_lse;   // (B, Ha, Wa)
  // Backward outputs, contiguous, overwritten, null where not wanted. Excluded positions get 0.
  void* grad_corr = nullptr;  // like corr
  View3 grad_mask_b;          // (B, Hb, Wb), accumulate_type(corr)
  View1 grad_beta;            // (B), accumulate_type(corr): one value per image
};

// forward: corr, mask_b, beta -> flow, lse, confidence, index, score. backward: all inputs of the forward, its flow and
// lse (and index, with a window), grad_flow, grad_lse -> grad_corr, grad_mask_b, grad_beta.
COSEGFLOW_API size_t soft_argmax_forward_workspace_bytes_cpu(const SoftArgmaxParams&, const CpuRuntime&);
COSEGFLOW_API size_t soft_argmax_backward_workspace_bytes_cpu(const SoftArgmaxParams&, const CpuRuntime&);
COSEGFLOW_API Status soft_argmax_forward_cpu(const SoftArgmaxParams&, void* workspace, const CpuRuntime&);
COSEGFLOW_API Status soft_argmax_backward_cpu(const SoftArgmaxParams&, void* workspace, const CpuRuntime&);

COSEGFLOW_API size_t soft_argmax_forward_workspace_bytes_cuda(const SoftArgmaxParams&);
COSEGFLOW_API size_t soft_argmax_backward_workspace_bytes_cuda(const SoftArgmaxParams&);
COSEGFLOW_API Status soft_argmax_forward_cuda(const SoftArgmaxParams&, void* workspace, Stream);
COSEGFLOW_API Status soft_argmax_backward_cuda(const SoftArgmaxParams&, void* workspace, Stream);

}  // namespace cosegflow

// match: correlation and mask-aware soft argmax in one pass; the 4D volume is never stored, forward or backward.
// Formulas, degenerate cases and gradients: docs/ops/match.md.
#pragma once

#include "cosegflow/types.h"

namespace cosegflow {

struct MatchParams {
  int64_t batch = 0, channels = 0;    // B, C
  int64_t height_a = 0, width_a = 0;  // Ha, Wa, of fa
  int64_t height_b = 0, width_b = 0;  // Hb, Wb, of fb
  bool normalize = true;              // divide each feature by max(its L2 norm over C, 1e-12)
  bool simple = false;                // CUDA: the plainly right kernels instead of the fast ones
  bool portable = false;  // CUDA: of the fast kernels those that run on every architecture, not this one's own
  // CUDA, float32: how products are rounded on the way to float32 sums.
  Precision precision = Precision::kHighest;
  // Backward: the most bytes that the chunk of recomputed scores may take (0: a default).
  size_t chunk_bytes = 0;

  View4 fa, fb;          // (B, C, H, W), one floating type
  View3 mask_a, mask_b;  // (B, Ha, Wa), (B, Hb, Wb), floating (any) or bool; optional. mask_a gates (> 0), mask_b
                         // weighs; weights below 0 and NaN count as 0
  View1 beta;            // (B), accumulate_type(fa), the inverse temperature; stride 0 broadcasts one value

  // Forward outputs, contiguous, accumulate_type(fa). The backward reads flow and lse.
  View4 flow;        // (B, 2, Ha, Wa), pixels: x to the right, y down; where nothing is allowed 0
  View3 lse;         // (B, Ha, Wa): log sum_j m_j exp(beta s_ij); where nothing is allowed -inf
  View3 confidence;  // (B, Ha, Wa): the largest p_ij, in [0, 1]; where nothing is allowed 0

  // The most probable target of each source: forward outputs, contiguous; both null where not wanted.
  int64_t* index = nullptr;  // (B, Ha, Wa): y * Wb + x, the lowest on ties; -1 where nothing is allowed
  View3 score;  // (B, Ha, Wa), accumulate_type(fa): its score, before beta and mask; where nothing is allowed -inf
  // Standard deviation in pixels of the window of SFNet's kernel soft argmax around `index`; 0: no window. With a
  // window index and score are needed, and the backward reads index.
  double kernel_sigma = 0;

  // Backward: incoming gradients, accumulate_type(fa), any strides, null where there is none.
  View4 grad_flow;  // (B, 2, Ha, Wa)
  View3 grad_lse;   // (B, Ha, Wa)
  // Backward outputs, contiguous, overwritten, null where not wanted. Excluded positions get 0.
  View4 grad_fa, grad_fb;  // (B, C, H, W), the type of fa
  View3 grad_mask_b;       // (B, Hb, Wb), accumulate_type(fa)
  View1 grad_beta;         // (B), accumulate_type(fa): one value per image
};

// forward: fa, fb, masks, beta -> flow, lse, confidence, index, score. backward: all inputs of the forward, its flow
// and lse (and index, with a window), grad_flow, grad_lse -> grad_fa, grad_fb, grad_mask_b, grad_beta.
COSEGFLOW_API size_t match_forward_workspace_bytes_cpu(const MatchParams&, const CpuRuntime&);
COSEGFLOW_API size_t match_backward_workspace_bytes_cpu(const MatchParams&, const CpuRuntime&);
COSEGFLOW_API Status match_forward_cpu(const MatchParams&, void* workspace, const CpuRuntime&);
COSEGFLOW_API Status match_backward_cpu(const MatchParams&, void* workspace, const CpuRuntime&);

COSEGFLOW_API size_t match_forward_workspace_bytes_cuda(const MatchParams&);
COSEGFLOW_API size_t match_backward_workspace_bytes_cuda(const MatchParams&);
COSEGFLOW_API Status match_forward_cuda(const MatchParams&, void* workspace, Stream);
COSEGFLOW_API Status match_backward_cuda(const MatchParams&, void* workspace, Stream);

}  // namespace cosegflow

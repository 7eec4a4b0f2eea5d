// match_both: match from a to b and from b to a out of one product. Each tile of scores is computed once and serves
// both directions, forward and backward. Formulas and limits: docs/ops/match_both.md.
#pragma once

#include "cosegflow/types.h"

namespace cosegflow {

// What belongs to one direction; sources have H x W pixels.
struct MatchDirection {
  // Forward outputs, contiguous, accumulate_type(fa). The backward reads flow and lse.
  View4 flow;        // (B, 2, H, W), pixels: x to the right, y down; where nothing is allowed 0
  View3 lse;         // (B, H, W): log sum_j m_j exp(beta s_ij); where nothing is allowed -inf
  View3 confidence;  // (B, H, W): the largest p_ij, in [0, 1]; where nothing is allowed 0
  // Backward: incoming gradients, accumulate_type(fa), any strides, null where there is none.
  View4 grad_flow;  // (B, 2, H, W)
  View3 grad_lse;   // (B, H, W)
};

struct MatchBothParams {
  int64_t batch = 0, channels = 0;    // B, C
  int64_t height_a = 0, width_a = 0;  // Ha, Wa, of fa
  int64_t height_b = 0, width_b = 0;  // Hb, Wb, of fb
  bool normalize = true;              // divide each feature by max(its L2 norm over C, 1e-12)
  bool simple = false;                // CUDA: the plainly right kernels, one direction after the other
  bool portable = false;  // CUDA: of the fast kernels those that run on every architecture, not this one's own
  // CUDA, float32: how products are rounded on the way to float32 sums.
  Precision precision = Precision::kHighest;
  // The most bytes that a chunk of intermediate results may take (0: a default). CUDA only.
  size_t chunk_bytes = 0;

  View4 fa, fb;          // (B, C, H, W), one floating type
  View3 mask_a, mask_b;  // (B, Ha, Wa), (B, Hb, Wb), floating (any) or bool; optional. Each gates its pixels as sources
                         // (> 0) and weighs them as targets; weights below 0 and NaN count as 0
  View1 beta;            // (B), accumulate_type(fa), the inverse temperature; stride 0 broadcasts one value

  MatchDirection ab, ba;  // sources in a, and sources in b

  // Backward outputs, contiguous, overwritten, null where not wanted. Excluded positions get 0.
  View4 grad_fa, grad_fb;          // (B, C, H, W), the type of fa
  View3 grad_mask_a, grad_mask_b;  // (B, Ha, Wa), (B, Hb, Wb), accumulate_type(fa)
  View1 grad_beta;                 // (B), accumulate_type(fa): one value per image
};

// forward: fa, fb, masks, beta -> flow, lse and confidence of ab and ba. backward: all inputs of the forward, flow and
// lse of both directions, their grad_flow and grad_lse -> grad_fa, grad_fb, grad_mask_a, grad_mask_b, grad_beta.
COSEGFLOW_API size_t match_both_forward_workspace_bytes_cpu(const MatchBothParams&, const CpuRuntime&);
COSEGFLOW_API size_t match_both_backward_workspace_bytes_cpu(const MatchBothParams&, const CpuRuntime&);
COSEGFLOW_API Status match_both_forward_cpu(const MatchBothParams&, void* workspace, const CpuRuntime&);
COSEGFLOW_API Status match_both_backward_cpu(const MatchBothParams&, void* workspace, const CpuRuntime&);

COSEGFLOW_API size_t match_both_forward_workspace_bytes_cuda(const MatchBothParams&);
COSEGFLOW_API size_t match_both_backward_workspace_bytes_cuda(const MatchBothParams&);
COSEGFLOW_API Status match_both_forward_cuda(const MatchBothParams&, void* workspace, Stream);
COSEGFLOW_API Status match_both_backward_cuda(const MatchBothParams&, void* workspace, Stream);

}  // namespace cosegflow

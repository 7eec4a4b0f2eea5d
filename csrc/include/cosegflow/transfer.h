// transfer: soft label transfer, out[b,v,i] = sum_j p_ij values[b,v,j] with the weights p of match; the 4D volume is
// never stored, forward or backward. Formulas, degenerate cases and gradients: docs/ops/transfer.md.
#pragma once

#include "cosegflow/types.h"

namespace cosegflow {

struct TransferParams {
  int64_t batch = 0, channels = 0;    // B, C
  int64_t value_channels = 0;         // V
  int64_t height_a = 0, width_a = 0;  // Ha, Wa, of fa
  int64_t height_b = 0, width_b = 0;  // Hb, Wb, of fb
  bool normalize = true;              // divide each feature by max(its L2 norm over C, 1e-12)
  bool simple = false;                // CUDA: the plainly right kernels instead of the fast ones
  bool portable = false;  // CUDA: of the fast kernels those that run on every architecture, not this one's own
  // CUDA, float32: how products are rounded on the way to float32 sums.
  Precision precision = Precision::kHighest;
  // CUDA: the most bytes that a chunk of recomputed probabilities may take (0: a default).
  size_t chunk_bytes = 0;

  View4 fa, fb;          // (B, C, H, W), one floating type
  View4 values;          // (B, V, Hb, Wb), floating; accumulate_type(values) must be accumulate_type(fa)
  View3 mask_a, mask_b;  // (B, Ha, Wa), (B, Hb, Wb), floating (any) or bool; optional. mask_a gates (> 0), mask_b
                         // weighs; weights below 0 and NaN count as 0
  View1 beta;            // (B), accumulate_type(fa), the inverse temperature; stride 0 broadcasts one value

  // Forward outputs, contiguous, accumulate_type(fa): where nothing is allowed 0 and -inf. The backward reads both.
  View4 out;  // (B, V, Ha, Wa)
  View3 lse;  // (B, Ha, Wa): log sum_j m_j exp(beta s_ij)

  // Backward: the incoming gradient, accumulate_type(fa), any strides.
  View4 grad_out;  // (B, V, Ha, Wa)
  // Backward outputs, contiguous, overwritten, null where not wanted. Excluded positions get 0.
  View4 grad_fa, grad_fb;  // (B, C, H, W), the type of fa
  View4 grad_values;       // (B, V, Hb, Wb), the type of values
  View3 grad_mask_b;       // (B, Hb, Wb), accumulate_type(fa)
  View1 grad_beta;         // (B), accumulate_type(fa): one value per image
};

// forward: fa, fb, values, masks, beta -> out, lse. backward: all inputs of the forward, its out and lse, grad_out ->
// grad_fa, grad_fb, grad_values, grad_mask_b, grad_beta.
COSEGFLOW_API size_t transfer_forward_workspace_bytes_cpu(const TransferParams&, const CpuRuntime&);
COSEGFLOW_API size_t transfer_backward_workspace_bytes_cpu(const TransferParams&, const CpuRuntime&);
COSEGFLOW_API Status transfer_forward_cpu(const TransferParams&, void* workspace, const CpuRuntime&);
COSEGFLOW_API Status transfer_backward_cpu(const TransferParams&, void* workspace, const CpuRuntime&);

COSEGFLOW_API size_t transfer_forward_workspace_bytes_cuda(const TransferParams&);
COSEGFLOW_API size_t transfer_backward_workspace_bytes_cuda(const TransferParams&);
COSEGFLOW_API Status transfer_forward_cuda(const TransferParams&, void* workspace, Stream);
COSEGFLOW_API Status transfer_backward_cuda(const TransferParams&, void* workspace, Stream);

}  // namespace cosegflow

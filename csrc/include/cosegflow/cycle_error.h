// cycle_error: how far a pixel of a ends from where it began, carried to b and back. See docs/ops/cycle_error.md.
#pragma once

#include "cosegflow/types.h"

namespace cosegflow {

struct CycleErrorParams {
  int64_t batch = 0;                  // B
  int64_t height_a = 0, width_a = 0;  // Ha, Wa, of flow_ab, error and valid
  int64_t height_b = 0, width_b = 0;  // Hb, Wb, of flow_ba
  bool simple = false;                // CUDA: the plainly right kernels instead of the fast ones
  bool deterministic = false;         // backward on CUDA: bit-equal from run to run, slower

  View4 flow_ab;  // (B, 2, Ha, Wa), any floating type, pixels; non-finite counts as outside
  View4 flow_ba;  // (B, 2, Hb, Wb), the type of flow_ab

  // forward
  View3 error;  // (B, Ha, Wa), accumulate_type(flow_ab), pixels; 0 where not valid
  View3 valid;  // (B, Ha, Wa) bool: p + flow_ab(p) is in b, and the way back is finite; optional

  // backward
  View3 grad_error;  // (B, Ha, Wa), the type of error
  View4 grad_ab;     // (B, 2, Ha, Wa), the type of error; overwritten; null where not wanted
  View4 grad_ba;     // (B, 2, Hb, Wb) contiguous, the type of error; overwritten; null where not wanted
};

// forward: flow_ab, flow_ba -> error, valid. backward: flow_ab, flow_ba, grad_error -> grad_ab, grad_ba. On the CPU no
// workspace is needed, nor is one on CUDA for the forward.
COSEGFLOW_API Status cycle_error_forward_cpu(const CycleErrorParams&, const CpuRuntime&);
COSEGFLOW_API Status cycle_error_backward_cpu(const CycleErrorParams&, const CpuRuntime&);

COSEGFLOW_API Status cycle_error_forward_cuda(const CycleErrorParams&, Stream);
COSEGFLOW_API size_t cycle_error_backward_workspace_bytes_cuda(const CycleErrorParams&);
COSEGFLOW_API Status cycle_error_backward_cuda(const CycleErrorParams&, void* workspace, Stream);

}  // namespace cosegflow

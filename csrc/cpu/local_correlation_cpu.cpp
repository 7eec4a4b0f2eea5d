// local_correlation on the CPU: entry points.
#include "cpu/local_correlation_cpu.h"

#include "common/local_correlation_checks.h"

namespace cosegflow {
namespace {

size_t bytes(const LocalCorrelationCall& call) {
  if (!check_sizes(call.params).ok() || call.params.batch == 0) return 0;
  return call.params.flow.data == nullptr ? local_correlation_grid_bytes(call) : local_correlation_flow_bytes(call);
}

Status run(const LocalCorrelationCall& call, void* workspace) {
  const Status checked = call.backward ? check_backward(call.params) : check_forward(call.params);
  if (!checked.ok() || call.params.batch == 0) return checked;
  if (Status s = check_workspace(workspace, bytes(call)); !s.ok()) return s;
  return call.params.flow.data == nullptr ? local_correlation_grid(call, workspace)
                                          : local_correlation_flow(call, workspace);
}

}  // namespace

size_t local_correlation_forward_workspace_bytes_cpu(const LocalCorrelationParams& p, const CpuRuntime& runtime) {
  return bytes({p, runtime, false});
}
size_t local_correlation_backward_workspace_bytes_cpu(const LocalCorrelationParams& p, const CpuRuntime& runtime) {
  return bytes({p, runtime, true});
}
Status local_correlation_forward_cpu(const LocalCorrelationParams& p, void* workspace, const CpuRuntime& runtime) {
  return run({p, runtime, false}, workspace);
}
Status local_correlation_backward_cpu(const LocalCorrelationParams& p, void* workspace, const CpuRuntime& runtime) {
  return run({p, runtime, true}, workspace);
}

}  // namespace cosegflow

// local_correlation on the CPU: entry points.
#include "cpu/local_correlation_cpu.h"

namespace cosegflow {
namespace {

size_t bytes(const LocalCorrelationCall& call) {
  if (call.params.batch == 0) return 0;
  return call.params.flow.data == nullptr ? local_correlation_grid_bytes(call) : local_correlation_flow_bytes(call);
}

Status run(const LocalCorrelationCall& call, void* workspace) {
  if (call.params.batch == 0) return {};
  if (call.params.radius < 0 || call.params.radius > LocalCorrelationParams::kMaxRadius) {
    return Status{"local_correlation: the radius is out of range"};
  }
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

// local_correlation along a flow: workspace and launches.
#include "local_correlation/local_correlation_launch.cuh"

namespace cosegflow::local_correlation_cuda {

const char* why_not_flow(const LocalCorrelationParams&) { return "with flow there are only the simple kernels"; }
size_t flow_forward_bytes(const LocalCorrelationParams&) { return 0; }
size_t flow_backward_bytes(const LocalCorrelationParams&) { return 0; }
Status flow_forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return simple_forward(p, workspace, stream);
}
Status flow_backward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return simple_backward(p, workspace, stream);
}

}  // namespace cosegflow::local_correlation_cuda

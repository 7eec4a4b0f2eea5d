// local_correlation on CUDA: which family of kernels takes a call.
#include "common/log.h"
#include "entry_checks.cuh"
#include "local_correlation/local_correlation_launch.cuh"

namespace cosegflow {
namespace {

using namespace local_correlation_cuda;

enum class Family { kSimple, kGrid, kFlow };

struct Choice {
  Family family;
  const char* why_simple;  // null where another family takes the call
};

Choice choice_of(const LocalCorrelationParams& p) {
  if (p.simple) return {Family::kSimple, "the simple kernels were asked for"};
  const bool grid = p.flow.data == nullptr;
  const char* const why_not = grid ? why_not_grid(p) : why_not_flow(p);
  if (why_not != nullptr) return {Family::kSimple, why_not};
  return {grid ? Family::kGrid : Family::kFlow, nullptr};
}

Choice logged_choice_of(const LocalCorrelationParams& p) {
  const Choice choice = choice_of(p);
  const char* const names[] = {"simple kernels", "tiles with their halo", "windows along a flow"};
  log_path("local_correlation", names[static_cast<int>(choice.family)], choice.why_simple);
  return choice;
}

Status check_pixels(const LocalCorrelationParams& p) {
  if (p.height_a * p.width_a > INT32_MAX || p.height_b * p.width_b > INT32_MAX) {
    return {"local_correlation: an image has more than 2^31 pixels"};
  }
  return {};
}

}  // namespace

size_t local_correlation_forward_workspace_bytes_cuda(const LocalCorrelationParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  switch (choice_of(p).family) {
    case Family::kGrid: return grid_forward_bytes(p);
    case Family::kFlow: return flow_forward_bytes(p);
    default: return simple_forward_bytes(p);
  }
}

size_t local_correlation_backward_workspace_bytes_cuda(const LocalCorrelationParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  switch (choice_of(p).family) {
    case Family::kGrid: return grid_backward_bytes(p);
    case Family::kFlow: return flow_backward_bytes(p);
    default: return simple_backward_bytes(p);
  }
}

Status local_correlation_forward_cuda(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_pixels(p); !s.ok()) return s;
  if (Status s = check_workspace(workspace, local_correlation_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  switch (logged_choice_of(p).family) {
    case Family::kGrid: return grid_forward(p, workspace, stream);
    case Family::kFlow: return flow_forward(p, workspace, stream);
    default: return simple_forward(p, workspace, stream);
  }
}

Status local_correlation_backward_cuda(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_pixels(p); !s.ok()) return s;
  if (Status s = check_workspace(workspace, local_correlation_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  switch (logged_choice_of(p).family) {
    case Family::kGrid: return grid_backward(p, workspace, stream);
    case Family::kFlow: return flow_backward(p, workspace, stream);
    default: return simple_backward(p, workspace, stream);
  }
}

}  // namespace cosegflow

// Where and how a launch runs: the current CUDA stream of a tensor's device, or torch's CPU threads; and the
// workspace, which is a tensor, so that torch's allocator accounts for it.
#pragma once

#include <optional>

#include "torch/tensor_view.h"

namespace cosegflow::binding {

// torch's intra-op threads.
const CpuRuntime& cpu_runtime();

// The current stream of a CUDA device.
Stream current_stream(int32_t device_index);

struct Workspace {
  std::optional<Tensor> storage;
  void* data = nullptr;
};

// Uninitialised bytes on the device of `like`, aligned to 64 bytes at least.
Workspace workspace(const Tensor& like, size_t bytes);

// Runs body() with the tensor's CUDA device current.
template <class Body>
void with_device_of(const Tensor& tensor, Body&& body) {
  torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
  body();
}

// Asks for the workspace, then launches, on the backend of `like`. `Operation` has bytes_cpu(params, runtime),
// run_cpu(params, workspace, runtime) and, in a CUDA build, bytes_cuda(params) and run_cuda(params, workspace, stream).
template <class Operation, class Params>
void execute(const Tensor& like, const Params& params) {
  if (!like.is_cuda()) {
    const CpuRuntime& runtime = cpu_runtime();
    const Workspace space = workspace(like, Operation::bytes_cpu(params, runtime));
    check(Operation::run_cpu(params, space.data, runtime));
    return;
  }
#if defined(COSEGFLOW_WITH_CUDA)
  with_device_of(like, [&] {
    const Workspace space = workspace(like, Operation::bytes_cuda(params));
    check(Operation::run_cuda(params, space.data, current_stream(like.get_device_index())));
  });
#else
  fail("this build has no CUDA kernels: `python -m cosegflow.info` says why");
#endif
}

}  // namespace cosegflow::binding

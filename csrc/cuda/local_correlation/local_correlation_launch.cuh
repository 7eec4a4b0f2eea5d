// What the files of local_correlation have for each other: three families of kernels behind the entry points, each
// with its workspace. The params have been checked.
#pragma once

#include "common/arena.h"
#include "common/dispatch.h"
#include "common/local_correlation_checks.h"
#include "primitives/launch.cuh"

namespace cosegflow::local_correlation_cuda {

// The simple kernels take any call.
size_t simple_forward_bytes(const LocalCorrelationParams& p);
size_t simple_backward_bytes(const LocalCorrelationParams& p);
Status simple_forward(const LocalCorrelationParams& p, void* workspace, Stream stream);
Status simple_backward(const LocalCorrelationParams& p, void* workspace, Stream stream);

// Tiles of pixels against the halo that their windows have in common, where there is no flow. Null where they take the
// call, else the reason why not.
const char* why_not_grid(const LocalCorrelationParams& p);
size_t grid_forward_bytes(const LocalCorrelationParams& p);
size_t grid_backward_bytes(const LocalCorrelationParams& p);
Status grid_forward(const LocalCorrelationParams& p, void* workspace, Stream stream);
Status grid_backward(const LocalCorrelationParams& p, void* workspace, Stream stream);

// Windows where the flow puts them.
const char* why_not_flow(const LocalCorrelationParams& p);
size_t flow_forward_bytes(const LocalCorrelationParams& p);
size_t flow_backward_bytes(const LocalCorrelationParams& p);
Status flow_forward(const LocalCorrelationParams& p, void* workspace, Stream stream);
Status flow_backward(const LocalCorrelationParams& p, void* workspace, Stream stream);

// The size of what `take` (of a TypeTag of the features and an Arena) takes. Not a template over the workspace's class:
// GCC gives a function whose template argument is a class template of an anonymous namespace external linkage, and the
// linker then keeps one translation unit's for all.
template <class Take>
size_t workspace_bytes(const LocalCorrelationParams& p, Take take) {
  Arena arena;
  (void)dispatch_floating(p.fa.dtype, [&](auto tag) -> Status {
    take(tag, arena);
    return {};
  });
  return arena.bytes();
}

// A kernel of one thread per item.
template <int kBlock, class... P, class... A>
Status launch_flat(void (*kernel)(P...), int64_t items, Stream stream, A... args) {
  const int64_t blocks = (items + kBlock - 1) / kBlock;
  if (blocks > INT32_MAX) return {"local_correlation: the tensors are too large for one launch"};
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), 0, stream, args...);
}

}  // namespace cosegflow::local_correlation_cuda

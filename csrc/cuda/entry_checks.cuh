// What every entry point asks before it chooses kernels: the device's generation, and a usable workspace.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cosegflow/types.h"

namespace cosegflow {

inline bool half_type(DType t) { return t == DType::kFloat16 || t == DType::kBFloat16; }

// The compute capability's first number, of the current device.
inline int device_generation() {
#if defined(COSEGFLOW_HOSTSIM)
  return 9;
#else
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) {
    (void)cudaGetLastError();  // the launch will report it
    return 0;
  }
  return major;
#endif
}

// cp.async and vector loads need 16 bytes; the arena keeps the alignment of its base.
inline Status check_workspace(const void* workspace, size_t bytes) {
  if (bytes > 0 && workspace == nullptr) return {"the workspace is null"};
  if (reinterpret_cast<uintptr_t>(workspace) % 16 != 0) return {"the workspace must be aligned to 16 bytes"};
  return {};
}

}  // namespace cosegflow

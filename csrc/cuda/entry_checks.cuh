// What entry points ask before they choose kernels, besides common/entry_checks.h: the device's generation.
#pragma once

#include <cuda_runtime.h>

#include "common/entry_checks.h"

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

}  // namespace cosegflow

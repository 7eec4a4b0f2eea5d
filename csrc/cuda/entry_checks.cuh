// What entry points ask before they choose kernels, besides common/entry_checks.h: what the current device is.
#pragma once

#include <cuda_runtime.h>

#include "common/entry_checks.h"

namespace cosegflow {

inline bool half_type(DType t) { return t == DType::kFloat16 || t == DType::kBFloat16; }

#if defined(COSEGFLOW_HOSTSIM)

// hostsim stands for a small Hopper GPU.
inline int compute_capability() { return 90; }
inline int multiprocessors() { return 6; }

#else

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess) {
    (void)cudaGetLastError();  // the launch will report it
    return 0;
  }
  return value;
}
// The compute capability, such as 90.
inline int compute_capability() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) + device_attribute(cudaDevAttrComputeCapabilityMinor);
}
inline int multiprocessors() {
  const int count = device_attribute(cudaDevAttrMultiProcessorCount);
  return count < 1 ? 1 : count;
}

#endif

inline int device_generation() { return compute_capability() / 10; }

// Whether the build has code for sm_90a, the only one with wgmma: setup.py says so.
constexpr bool built_for_hopper() {
#if defined(COSEGFLOW_SM90A) || defined(COSEGFLOW_HOSTSIM)
  return true;
#else
  return false;
#endif
}

}  // namespace cosegflow

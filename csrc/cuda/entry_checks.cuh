// What entry points ask before they choose kernels, besides common/entry_checks.h: what the current device is.
#pragma once

#include <cuda_runtime.h>

#include <atomic>

#include "common/entry_checks.h"

namespace cosegflow {

inline bool half_type(DType t) { return t == DType::kFloat16 || t == DType::kBFloat16; }

#if defined(COSEGFLOW_HOSTSIM)

// hostsim stands for a small Hopper GPU.
inline int compute_capability() { return 90; }
inline int multiprocessors() { return 6; }

#else

struct DeviceFacts {
  int capability = 0, multiprocessors = 1;  // 0, 1 where the runtime would not say: the launch will report it
};

// Of the current device. Asked once a device: a call on a small problem is bound by what happens before its launches.
inline DeviceFacts device_facts() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];  // capability in the upper half
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) {
    (void)cudaGetLastError();
    return {};
  }
  int packed = device < kDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (packed == 0) {
    int major = 0, minor = 0, count = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
      (void)cudaGetLastError();
      return {};
    }
    packed = (10 * major + minor) << 16 | count;
    if (device < kDevices) known[device].store(packed, std::memory_order_relaxed);
  }
  return {packed >> 16, packed & 0xffff};
}
inline int compute_capability() { return device_facts().capability; }  // such as 90
inline int multiprocessors() { return device_facts().multiprocessors; }

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

// Launching a kernel and declaring its shared memory: the two things that nvcc has special syntax for.
//
//   template <class T>
//   __global__ void __launch_bounds__(256) scale_kernel(T* x, int64_t n) {
//     CSF_SHARED(Tile, tile);                    // Tile may be an array typedef or a struct
//     CSF_DYNAMIC_SHARED(float, scratch);        // float* scratch
//     ...
//   }
//   return launch(scale_kernel<float>, grid, 256, bytes, stream, x, n);
//
// A kernel for sm_90 alone takes CSF_HOPPER_SHARED (1024-byte aligned, as swizzled tiles must be) and launch_hopper,
// which allow 227 KB of shared memory.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cosegflow/types.h"

#if defined(COSEGFLOW_HOSTSIM)

#include <cstring>
#include <tuple>

// A reference to an allocation of this block's own: it starts as NaN (all bits set) and ASan sees overruns.
#define CSF_SHARED(Type, name)                                                                              \
  static_assert(std::is_trivially_default_constructible<Type>::value, "shared memory is not constructed");  \
  static constexpr ::cosegflow::hostsim::SharedSite name##_shared_site{#name, sizeof(Type), alignof(Type)}; \
  Type& name = *reinterpret_cast<Type*>(::cosegflow::hostsim::static_shared(name##_shared_site))
#define CSF_DYNAMIC_SHARED(Type, name) Type* name = reinterpret_cast<Type*>(::cosegflow::hostsim::dynamic_shared())
#define CSF_HOPPER_SHARED(Type, name) CSF_DYNAMIC_SHARED(Type, name)

namespace cosegflow {

namespace detail {

template <class... P, class... A>
Status launch_with(bool hopper, void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared_bytes,
                   hostsim::LaunchSite site, A... args) {
  static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
  // Every thread gets its own copies of the parameters, as on the device.
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> args;
  } call{kernel, std::tuple<P...>(static_cast<P>(args)...)};
  const auto body = [](void* context) {
    const Call& c = *static_cast<const Call*>(context);
    std::apply(c.kernel, c.args);
  };
  return hostsim::run(
      {grid, block, dynamic_shared_bytes, site, reinterpret_cast<const void*>(kernel), body, &call, hopper});
}

}  // namespace detail

template <class... P, class... A>
Status launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, hostsim::LaunchSite site,
              A... args) {
  return detail::launch_with(false, kernel, grid, block, dynamic_shared_bytes, site, args...);
}

template <class... P, class... A>
Status launch_hopper(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, hostsim::LaunchSite site,
                     A... args) {
  return detail::launch_with(true, kernel, grid, block, dynamic_shared_bytes, site, args...);
}

inline Status memset_async(void* p, int value, size_t bytes, Stream) {
  if (bytes != 0) std::memset(p, value, bytes);
  return {};
}

}  // namespace cosegflow

#else  // nvcc

#define CSF_SHARED(Type, name) __shared__ Type name
// One symbol for all kernels (a name can have only one type), aligned for cp.async and for TMA.
#define CSF_DYNAMIC_SHARED(Type, name)                                              \
  extern __shared__ __align__(128) unsigned char cosegflow_dynamic_shared_memory[]; \
  Type* name = reinterpret_cast<Type*>(cosegflow_dynamic_shared_memory)
#define CSF_HOPPER_SHARED(Type, name)                                               \
  extern __shared__ __align__(1024) unsigned char cosegflow_hopper_shared_memory[]; \
  Type* name = reinterpret_cast<Type*>(cosegflow_hopper_shared_memory)

namespace cosegflow {

// The message for an error of the CUDA runtime, with the remedy where there is one. Every string lives forever.
inline Status cuda_status(cudaError_t error) {
  if (error == cudaSuccess) return {};
  const char* message = cudaGetErrorString(error);
  switch (error) {
    case cudaErrorInsufficientDriver:
      message =
          "cosegflow: the NVIDIA driver is too old for the CUDA 13 runtime that cosegflow is built with: update it to "
          "580 or newer (nvidia-smi shows the version)";
      break;
    case cudaErrorNoDevice:
      message =
          "cosegflow: no CUDA device is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES, or use tensors on the CPU";
      break;
    case cudaErrorNoKernelImageForDevice:
      message =
          "cosegflow: this build has no kernel for this GPU: rebuild with TORCH_CUDA_ARCH_LIST set to its compute "
          "capability";
      break;
    case cudaErrorInvalidDeviceFunction:
      message = "cosegflow: the kernel is not in this build for this GPU: rebuild with its compute capability";
      break;
    case cudaErrorInvalidConfiguration:
      message = "cosegflow: a kernel was launched with a grid or block that the GPU cannot run (a bug in cosegflow)";
      break;
    case cudaErrorLaunchOutOfResources:
      message = "cosegflow: a kernel needs more registers or shared memory than this GPU has (a bug in cosegflow)";
      break;
    default: break;
  }
  return {message, static_cast<int>(error)};
}

// Launches on the current device. cudaLaunchKernel instead of <<<>>> because it returns the error of this launch, not
// one that somebody else left behind; the error is then cleared, since the Status reports it.
template <class... P, class... A>
Status launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, Stream stream, A... args) {
  static_assert(sizeof...(P) == sizeof...(A), "the kernel takes another number of arguments");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return {};
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  if (dynamic_shared_bytes > 0) {  // without it, 48 KiB less the kernel's static shared memory is the limit
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(dynamic_shared_bytes));
  }
  if (error == cudaSuccess) {
    // A helper gives the converted arguments addresses that live until the launch has copied them.
    const auto launch_with = [&](std::remove_cv_t<P>... converted) {
      void* pointers[sizeof...(P) + 1] = {&converted..., nullptr};
      return cudaLaunchKernel(function, grid, block, pointers, dynamic_shared_bytes, stream);
    };
    error = launch_with(static_cast<P>(args)...);
  }
  if (error != cudaSuccess) (void)cudaGetLastError();
  return cuda_status(error);
}

template <class... P, class... A>
Status launch_hopper(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_shared_bytes, Stream stream,
                     A... args) {
  return launch(kernel, grid, block, dynamic_shared_bytes, stream, args...);
}

inline Status memset_async(void* p, int value, size_t bytes, Stream stream) {
  if (bytes == 0) return {};
  const cudaError_t error = cudaMemsetAsync(p, value, bytes, stream);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return cuda_status(error);
}

}  // namespace cosegflow

#endif

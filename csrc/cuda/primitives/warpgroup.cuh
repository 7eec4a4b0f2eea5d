// What warpgroups do apart from multiplying: hand registers from one to another, meet in smaller groups than the block,
// let one lane act for its warp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cosegflow {

#if defined(COSEGFLOW_HOSTSIM)

template <int Registers>
inline void take_registers(hostsim::Place place = {}) {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0, "24 to 256 registers, a multiple of 8");
  hostsim::set_registers(Registers, true, place);
}
template <int Registers>
inline void give_registers(hostsim::Place place = {}) {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0, "24 to 256 registers, a multiple of 8");
  hostsim::set_registers(Registers, false, place);
}
inline void named_barrier_sync(int id, int threads, hostsim::Place place = {}) {
  hostsim::named_barrier(id, threads, place);
}
inline bool elect_one() { return hostsim::elect_one(); }

#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define CSF_NEEDS_SM90(...) __trap()
#else
#define CSF_NEEDS_SM90(...) __VA_ARGS__
#endif
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CSF_NEEDS_SM90A(...) __trap()
#else
#define CSF_NEEDS_SM90A(...) __VA_ARGS__
#endif

// All warps of a warpgroup raise their registers per thread to this many, waiting until others have given enough away.
template <int Registers>
__device__ __forceinline__ void take_registers() {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0, "24 to 256 registers, a multiple of 8");
  CSF_NEEDS_SM90A(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers)));
}

// All warps of a warpgroup go on with this many registers per thread.
template <int Registers>
__device__ __forceinline__ void give_registers() {
  static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0, "24 to 256 registers, a multiple of 8");
  CSF_NEEDS_SM90A(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers)));
}

// Barrier `id` (1 to 15; 0 is that of __syncthreads) for `threads` threads, whole warps.
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// True in one lane of the warp, all of whose lanes must call it.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected = 0;
  CSF_NEEDS_SM90(
      asm volatile("{\n"
                   ".reg .pred elected;\n"
                   "elect.sync _|elected, 0xffffffff;\n"
                   "selp.b32 %0, 1, 0, elected;\n"
                   "}" : "=r"(elected)));
  return elected != 0;
}

#undef CSF_NEEDS_SM90
#undef CSF_NEEDS_SM90A

#endif

}  // namespace cosegflow

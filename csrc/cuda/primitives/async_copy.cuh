// cp.async: copies of 16 (8, 4) bytes from global to shared memory that run while the thread goes on. A thread groups
// the copies it has issued (commit) and waits until at most `Pending` of its newest groups are unfinished. The wait is
// for the thread's own copies: other threads see them after a __syncthreads() that follows the wait.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cosegflow {

#if defined(COSEGFLOW_HOSTSIM)

// The copy happens at the wait that covers it, the latest moment that the hardware may choose. Until then the
// destination holds NaN, so a missing or too weak wait shows, and so does overwriting a stage that is still read.
template <int kBytes>
inline void cp_async(void* shared_dst, const void* global_src, int valid_bytes) {
  static_assert(kBytes == 16 || kBytes == 8 || kBytes == 4, "cp.async copies 16, 8 or 4 bytes");
  hostsim::async_copy_issue(shared_dst, global_src, kBytes, valid_bytes);
}
inline void cp_async_commit() { hostsim::async_copy_commit(); }
template <int Pending>
inline void cp_async_wait() {
  static_assert(Pending >= 0, "");
  hostsim::async_copy_wait(Pending);
}

#else

// Copies the first valid_bytes (0 .. kBytes) and fills the rest of the kBytes with zeros; no more than those are read
// (the source need not even be mapped where there are none), but both pointers must be aligned to kBytes.
template <int kBytes>
__device__ __forceinline__ void cp_async(void* shared_dst, const void* global_src, int valid_bytes) {
  static_assert(kBytes == 16 || kBytes == 8 || kBytes == 4, "cp.async copies 16, 8 or 4 bytes");
#if __CUDA_ARCH__ >= 800
  const uint32_t dst = static_cast<uint32_t>(__cvta_generic_to_shared(shared_dst));
  const uint64_t src = static_cast<uint64_t>(__cvta_generic_to_global(global_src));
  if constexpr (kBytes == 16) {  // .cg: past L1
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid_bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(dst), "l"(src), "n"(kBytes), "r"(valid_bytes)
                 : "memory");
  }
#else
  for (int i = 0; i < kBytes; ++i) {
    static_cast<char*>(shared_dst)[i] = i < valid_bytes ? static_cast<const char*>(global_src)[i] : char(0);
  }
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
  static_assert(Pending >= 0, "");
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
}

#endif

// 16 bytes, or 16 zeros.
__device__ __forceinline__ void cp_async_16(void* shared_dst, const void* global_src, bool valid) {
  cp_async<16>(shared_dst, global_src, valid ? 16 : 0);
}

}  // namespace cosegflow

// cp.async: copies of 16 bytes from global to shared memory that run while the thread goes on. A thread groups the
// copies it has issued (commit) and waits until at most `Pending` of its newest groups are unfinished. The wait is for
// the thread's own copies: other threads see them after a __syncthreads() that follows the wait.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cosegflow {

#if defined(COSEGFLOW_HOSTSIM)

// The copy happens at the wait that covers it, the latest moment that the hardware may choose. Until then the
// destination holds NaN, so a missing or too weak wait shows, and so does overwriting a stage that is still read.
inline void cp_async_16(void* shared_dst, const void* global_src, bool valid) {
  hostsim::async_copy_issue(shared_dst, global_src, valid);
}
inline void cp_async_commit() { hostsim::async_copy_commit(); }
template <int Pending>
inline void cp_async_wait() {
  static_assert(Pending >= 0, "");
  hostsim::async_copy_wait(Pending);
}

#else

// Where !valid, the destination is filled with zeros and the source is not read (it must not even be mapped, but the
// pointer must be 16-byte aligned).
__device__ __forceinline__ void cp_async_16(void* shared_dst, const void* global_src, bool valid) {
#if __CUDA_ARCH__ >= 800
  const uint32_t dst = static_cast<uint32_t>(__cvta_generic_to_shared(shared_dst));
  const uint64_t src = static_cast<uint64_t>(__cvta_generic_to_global(global_src));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
#else
  *static_cast<uint4*>(shared_dst) = valid ? *static_cast<const uint4*>(global_src) : make_uint4(0, 0, 0, 0);
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

}  // namespace cosegflow

// mbarrier: a barrier in shared memory that threads arrive at and that bulk copies report their bytes to. A phase ends
// when all its arrivals have come and as many bytes as were announced; the phases alternate in parity, the first is 0.
// One thread initialises it, calls fence_proxy_async(), and the block meets at a __syncthreads() before anyone uses it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cosegflow {

struct alignas(8) Mbarrier {  // in shared memory
  uint64_t opaque;
};

#if defined(COSEGFLOW_HOSTSIM)

inline void mbarrier_init(Mbarrier* bar, unsigned arrivals) { hostsim::mbarrier_init(&bar->opaque, arrivals); }
inline void fence_proxy_async() { hostsim::fence_proxy_async(); }
inline void mbarrier_arrive(Mbarrier* bar, hostsim::Place place = {}) {
  hostsim::mbarrier_arrive(&bar->opaque, 0, place);
}
inline void mbarrier_arrive_expect_bytes(Mbarrier* bar, unsigned bytes, hostsim::Place place = {}) {
  hostsim::mbarrier_arrive(&bar->opaque, bytes, place);
}
inline void mbarrier_wait(Mbarrier* bar, unsigned parity, hostsim::Place place = {}) {
  hostsim::mbarrier_wait(&bar->opaque, parity, place);
}

#else

// Below sm_90 the callers take other kernels; reaching one of these there is a bug.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define CSF_NEEDS_SM90(...) __trap()
#else
#define CSF_NEEDS_SM90(...) __VA_ARGS__
#endif

namespace detail {
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
}  // namespace detail

__device__ __forceinline__ void mbarrier_init(Mbarrier* bar, unsigned arrivals) {
  CSF_NEEDS_SM90(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(detail::shared_address(bar)),
                              "r"(arrivals) : "memory"));
}

// What this thread wrote to shared memory with ordinary stores is then visible to bulk copies and to wgmma (in another
// thread, after a barrier).
__device__ __forceinline__ void fence_proxy_async() {
  CSF_NEEDS_SM90(asm volatile("fence.proxy.async.shared::cta;" :: : "memory"));
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* bar) {
  CSF_NEEDS_SM90(
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(detail::shared_address(bar)) : "memory"));
}

// Arrives, and announces `bytes` that bulk copies will report in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect_bytes(Mbarrier* bar, unsigned bytes) {
  CSF_NEEDS_SM90(
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(detail::shared_address(bar)),
                   "r"(bytes) : "memory"));
}

// Waits until the phase of this parity has ended. The phase before the first counts as one of parity 1 that has ended.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* bar, unsigned parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const uint32_t address = detail::shared_address(bar);
  uint32_t done;
  do {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
        "selp.b32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(address), "r"(parity)
        : "memory");
  } while (done == 0);
#else
  __trap();
#endif
}

#undef CSF_NEEDS_SM90

#endif

}  // namespace cosegflow

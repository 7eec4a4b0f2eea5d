// Reductions by butterfly: after log2(Width) exchanges every lane of its group of `Width` neighbours has the result,
// and all have bit-equal ones (a + b == b + a). Every lane of the warp must call them.
#pragma once

#include <cuda_runtime.h>

#include "primitives/launch.cuh"

namespace cosegflow {

template <int Width = 32, class T>
__device__ __forceinline__ T warp_reduce_sum(T v) {
  static_assert(Width >= 1 && Width <= 32 && (Width & (Width - 1)) == 0, "Width is a power of two up to 32");
#pragma unroll
  for (int lanes = Width / 2; lanes > 0; lanes /= 2) v += __shfl_xor_sync(0xffffffffu, v, lanes);
  return v;
}

// A NaN loses against a number, as in fmaxf.
template <int Width = 32, class T>
__device__ __forceinline__ T warp_reduce_max(T v) {
  static_assert(Width >= 1 && Width <= 32 && (Width & (Width - 1)) == 0, "Width is a power of two up to 32");
#pragma unroll
  for (int lanes = Width / 2; lanes > 0; lanes /= 2) v = max(v, __shfl_xor_sync(0xffffffffu, v, lanes));
  return v;
}

// kCount sums at once, a power of two, over the kCount lanes that differ in the bits from kLow on: lane l gets that of
// v[l / kLow % kCount]. By halving: kCount - 1 shuffles, where kCount butterflies take kCount log2(kCount). v is
// spoilt.
template <int kLow, int kCount, class T>
__device__ __forceinline__ T warp_scatter_sums(T (&v)[kCount]) {
  static_assert((kCount & (kCount - 1)) == 0 && kLow * kCount <= 32, "the lanes are those of a warp");
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2) {
    const bool upper = (threadIdx.x & static_cast<unsigned>(half * kLow)) != 0;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      if (i >= half) continue;
      const T got = __shfl_xor_sync(0xffffffffu, upper ? v[i] : v[i + half], half * kLow);
      v[i] = (upper ? v[i + half] : v[i]) + got;
    }
  }
  return v[0];
}

// The sum over the block, in every thread, in an order that does not depend on timing. blockDim.x * y * z must be a
// multiple of 32. All threads of the block must call it.
template <class T>
__device__ __forceinline__ T block_reduce_sum(T v) {
  using Partials = T[32];
  CSF_SHARED(Partials, partials);
  const int thread = static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
  const int warps = static_cast<int>(blockDim.x * blockDim.y * blockDim.z) / 32;
  v = warp_reduce_sum(v);
  __syncthreads();  // two calls share one array: the partials of the previous one have been read
  if (thread % 32 == 0) partials[thread / 32] = v;
  __syncthreads();
  T sum = partials[0];
  for (int i = 1; i < warps; ++i) sum += partials[i];
  return sum;
}

}  // namespace cosegflow

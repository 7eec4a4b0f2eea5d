// Which words of a row a mask leaves, for soft_argmax's kernels that read 16-byte words: those with an allowed target,
// in raster order, with the log weights of their targets. One block per image, which is nothing next to the volume.
#pragma once

#include "soft_argmax/soft_argmax_row.cuh"

namespace cosegflow::soft_argmax_cuda {

constexpr int kTargetThreads = 1024;
constexpr int kTargetBatch = 4;  // targets that a thread loads at a time

template <class Acc, int kItems>
__global__ void __launch_bounds__(kTargetThreads, 1)
    soft_argmax_targets_kernel(SoftArgmaxParams p, Targets<Acc> targets) {
  using Before = int[kTargetBatch * 32 + 1];
  CSF_SHARED(Before, before);  // allowed words of each batch and warp; then how many come before them; last, all so far
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  const int first_lane = lane / kItems * kItems;  // of the lane's word
  const int n = static_cast<int>(p.height_b * p.width_b), width = static_cast<int>(p.width_b);
  const int64_t b = blockIdx.x, words = n / kItems;
  int count = 0;
  for (int64_t first = threadIdx.x; first - threadIdx.x < n; first += kTargetBatch * kTargetThreads) {
    Acc weight[kTargetBatch];
    unsigned allowed[kTargetBatch];  // a bit at the first target of each word
#pragma unroll
    for (int q = 0; q < kTargetBatch; ++q) {
      const int64_t target = first + q * kTargetThreads;
      const unsigned at = static_cast<unsigned>(target), w = static_cast<unsigned>(width);
      weight[q] = target < n ? mask_weight<Acc>(p.mask_b, b, at / w, at % w).log_weight : minus_infinity<Acc>();
    }
#pragma unroll
    for (int q = 0; q < kTargetBatch; ++q) {
      unsigned bits = __ballot_sync(0xffffffffu, weight[q] > minus_infinity<Acc>());
#pragma unroll
      for (int by = kItems / 2; by > 0; by /= 2) bits |= bits >> by;
      constexpr unsigned kFirsts = kItems == 8 ? 0x01010101u : kItems == 4 ? 0x11111111u : 0x55555555u;
      allowed[q] = bits & kFirsts;
      if (lane == 0) before[q * 32 + warp] = __popc(allowed[q]);
    }
    __syncthreads();
    if (warp == 0) {  // a scan of 128 counts
      int mine[kTargetBatch], sum = 0;
#pragma unroll
      for (int k = 0; k < kTargetBatch; ++k) mine[k] = before[lane * kTargetBatch + k], sum += mine[k];
      int up_to = sum;
#pragma unroll
      for (int by = 1; by < 32; by *= 2) {
        const int lower = __shfl_up_sync(0xffffffffu, up_to, by);
        if (lane >= by) up_to += lower;
      }
      int at = count + up_to - sum;
#pragma unroll
      for (int k = 0; k < kTargetBatch; ++k) before[lane * kTargetBatch + k] = at, at += mine[k];
      if (lane == 31) before[kTargetBatch * 32] = at;
    }
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kTargetBatch; ++q) {
      if ((allowed[q] >> first_lane & 1u) == 0) continue;
      const int slot = before[q * 32 + warp] + __popc(allowed[q] & ((1u << first_lane) - 1u));
      targets.log_weight[(b * words + slot) * kItems + lane - first_lane] = weight[q];
      if (lane != first_lane) continue;
      const unsigned at = static_cast<unsigned>(first + q * kTargetThreads), w = static_cast<unsigned>(width);
      targets.slots[b * words + slot] = {static_cast<Acc>(at % w), static_cast<Acc>(at / w),
                                         static_cast<int>(at / kItems)};
    }
    count = before[kTargetBatch * 32];
    __syncthreads();  // before the next batch overwrites it
  }
  if (threadIdx.x == 0) targets.count[b] = count;
}

}  // namespace cosegflow::soft_argmax_cuda

// Counting the allowed pixels of a mask, for pack_tiles: a share of a thread at a time, several loads in flight.
//
// pack_tiles_count: a block of 256 threads counts 1024 pixels, for large masks only. Moves N * sizeof(mask) bytes;
// bound by memory or by its launch. Fraction of the limit reached: not measured yet.
#pragma once

#include "mask_weight.cuh"
#include "pack_tiles.cuh"
#include "primitives/launch.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow {
namespace {

constexpr int kCountThreads = 256;

__device__ __forceinline__ bool is_allowed(uint8_t v) { return v != 0; }
__device__ __forceinline__ bool is_allowed(Half v) { return to_float(v) > 0; }
__device__ __forceinline__ bool is_allowed(BFloat16 v) { return to_float(v) > 0; }
__device__ __forceinline__ bool is_allowed(float v) { return v > 0; }
__device__ __forceinline__ bool is_allowed(double v) { return v > 0; }

struct AllowedCount {
  int before = 0, total = 0;
};

// This thread's share of the allowed pixels [begin, end) of image b, and how many of them are below `split`.
template <class M>
__device__ __forceinline__ AllowedCount count_allowed_of(const View3& mask, int64_t b, int width, int begin, int end,
                                                         int split) {
  constexpr int kInFlight = sizeof(M) == 8 ? 2 : 8;  // doubles take registers
  const M* const data = static_cast<const M*>(mask.data) + b * mask.stride[0];
  const bool flat = mask.stride[1] == width * mask.stride[2];
  AllowedCount count;
  for (int first = begin + static_cast<int>(threadIdx.x); first < end; first += kInFlight * kCountThreads) {
    M value[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int p = first + k * kCountThreads;
      value[k] = M{};
      if (p >= end) continue;
      value[k] = data[flat ? p * mask.stride[2] : p / width * mask.stride[1] + p % width * mask.stride[2]];
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (!is_allowed(value[k])) continue;
      ++count.total;
      count.before += first + k * kCountThreads < split;
    }
  }
  return count;
}

__device__ __forceinline__ AllowedCount count_allowed(const View3& mask, int64_t b, int width, int begin, int end,
                                                      int split) {
  switch (mask.dtype) {
    case DType::kBool: return count_allowed_of<uint8_t>(mask, b, width, begin, end, split);
    case DType::kFloat16: return count_allowed_of<Half>(mask, b, width, begin, end, split);
    case DType::kBFloat16: return count_allowed_of<BFloat16>(mask, b, width, begin, end, split);
    case DType::kFloat32: return count_allowed_of<float>(mask, b, width, begin, end, split);
    case DType::kFloat64: return count_allowed_of<double>(mask, b, width, begin, end, split);
  }
  return {};
}

struct CountSide {
  View3 mask;
  int positions, width;
  int* span_count;
};
struct CountArgs {
  CountSide side[2];
  int blocks_a;
};

__global__ void __launch_bounds__(kCountThreads) pack_tiles_count_kernel(const __grid_constant__ CountArgs args) {
  const bool in_a = static_cast<int>(blockIdx.x) < args.blocks_a;
  const int block = static_cast<int>(blockIdx.x) - (in_a ? 0 : args.blocks_a);
  const CountSide& side = args.side[in_a ? 0 : 1];
  const int spans = static_cast<int>(ceil_div(side.positions, kCountSpan)), span = block % spans;
  const int begin = span * static_cast<int>(kCountSpan),
            end = min(side.positions, begin + static_cast<int>(kCountSpan));
  const int total = block_reduce_sum(count_allowed(side.mask, block / spans, side.width, begin, end, end).total);
  if (threadIdx.x == 0) side.span_count[block] = total;
}

}  // namespace
}  // namespace cosegflow

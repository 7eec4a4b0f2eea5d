// Which correlation kernels a call takes.
#pragma once

#include <cstdint>

#include "common/correlation_checks.h"
#include "entry_checks.cuh"

namespace cosegflow::correlation_cuda {

// Tensor cores take halves, and float32 as bfloat16 terms where that is precise enough.
inline bool multiplies_halves(const CorrelationParams& p) {
  return half_type(p.fa.dtype) || (p.fa.dtype == DType::kFloat32 && p.precision != Precision::kHighest);
}

// Null where the tiled kernels take the call, else the reason why not.
inline const char* why_not_fast(const CorrelationParams& p) {
  constexpr int64_t kPixels = INT32_MAX / 128;  // 32-bit offsets within a tile of 128 rows of the volume
  if (p.simple) return "the simple kernels were asked for";
  if (multiplies_halves(p) && device_generation() < 8) return "mma.m16n8k16 and cp.async need compute capability 8.0";
  if (p.height_a * p.width_a > kPixels || p.height_b * p.width_b > kPixels) return "an image has over 2^24 pixels";
  if (p.channels > (int64_t{1} << 23)) return "offsets within a tile of 128 rows need C <= 2^23";
  return nullptr;
}

// The forward on Hopper (correlation_hopper_cuda.cu), of params that hopper::why_not has no objection to.
size_t hopper_forward_bytes(const CorrelationParams&);
Status hopper_forward(const CorrelationParams&, void* workspace, Stream);

// The backward on Hopper (correlation_backward_hopper_cuda.cu), of params that hopper::why_not_backward has no
// objection to.
size_t hopper_backward_bytes(const CorrelationParams&);
Status hopper_backward(const CorrelationParams&, void* workspace, Stream);

}  // namespace cosegflow::correlation_cuda

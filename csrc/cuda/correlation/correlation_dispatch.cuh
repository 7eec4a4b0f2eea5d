// Which correlation kernels a call takes.
#pragma once

#include <cstdint>

#include "common/correlation_checks.h"
#include "common/log.h"
#include "entry_checks.cuh"

namespace cosegflow::correlation_cuda {

// Null where the tiled kernels take the call, else the reason why not.
inline const char* why_not_fast(const CorrelationParams& p) {
  constexpr int64_t kPixels = INT32_MAX / 128;  // 32-bit offsets within a tile of 128 rows of the volume
  if (p.simple) return "the simple kernels were asked for";
  if (half_type(p.fa.dtype) && device_generation() < 8) return "mma.m16n8k16 and cp.async need compute capability 8.0";
  if (p.height_a * p.width_a > kPixels || p.height_b * p.width_b > kPixels) return "an image has over 2^24 pixels";
  if (p.channels > (int64_t{1} << 23)) return "offsets within a tile of 128 rows need C <= 2^23";
  return nullptr;
}

// Asks once a call, and says with COSEGFLOW_LOG=1 what came out.
inline bool takes_fast(const CorrelationParams& p, const char* operation) {
  const char* const why_not = why_not_fast(p);
  log_path(operation, why_not == nullptr ? "tiled kernels" : "simple kernels", why_not);
  return why_not == nullptr;
}

}  // namespace cosegflow::correlation_cuda

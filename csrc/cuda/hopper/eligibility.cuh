// Which calls the Hopper kernels take. Packing gives them aligned, padded rows whatever the strides, the alignment and
// C of the inputs are, so few reasons against them remain.
#pragma once

#include "entry_checks.cuh"
#include "hopper/work_line.cuh"

namespace cosegflow::hopper {

// Null where they take a forward of match, match_both or transfer on a device of this compute capability (such as 90),
// else the reason why not.
template <class Params>
const char* why_not(const Params& p, int capability) {
  if (p.simple) return "the simple kernels were asked for";
  if (p.portable) return "the portable kernels were asked for";
  if (p.fa.dtype == DType::kFloat64) return "tensor cores of Hopper do not multiply float64 into these tiles";
  if (p.fa.dtype == DType::kFloat32 && p.precision == Precision::kHighest) {
    return "float32 at precision \"highest\" takes multiply-adds, as accurate as float32";
  }
  if (capability != 90) return "wgmma is a feature of compute capability 9.0 alone";
  if (!built_for_hopper()) return "this build has no code for sm_90a";
  constexpr int64_t kPixels = (int64_t{1} << 31) - 4096;  // of one image: rows are counted in 32 bits
  const int64_t a = p.height_a * p.width_a, b = p.height_b * p.width_b;
  if (a > kPixels || b > kPixels) return "an image has over 2^31 pixels";
  if (p.channels > (int64_t{1} << 27)) return "a row of features has over 2^31 bytes";
  if (6 * (p.channels + 8) > (int64_t{1} << 40) / (a > b ? a : b)) return "an image's features have over 2^40 bytes";
  if (!fits_a_line(p.batch, a, b)) return "there are over 2^30 tiles";
  return nullptr;
}

// The same of a backward: it multiplies the gradients of scores as halves, so features that are float32 do not take it.
template <class Params>
const char* why_not_backward(const Params& p, int capability) {
  if (!p.simple && !p.portable && p.fa.dtype == DType::kFloat32) {
    return "gradients of float32 features are formed by multiply-adds, as accurate as float32";
  }
  return why_not(p, capability);
}

}  // namespace cosegflow::hopper

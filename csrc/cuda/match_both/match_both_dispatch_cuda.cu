// match_both on CUDA: checks, and which of the kernels a call takes.
#include "common/log.h"
#include "common/match_both_checks.h"
#include "entry_checks.cuh"
#include "hopper/eligibility.cuh"
#include "match_both/match_both_common.cuh"

namespace cosegflow {
namespace {

using namespace match_both_cuda;

// Null where the tiled kernels take the call, else the reason why not. As for match: packing gives them aligned rows
// whatever comes in, so few reasons remain.
const char* why_not_tiled(const MatchBothParams& p) {
  constexpr int64_t kPixels = (int64_t{1} << 31) - 4096;  // of one image: rows are counted in 32 bits
  if (p.simple) return "the simple kernels were asked for";
  if (half_type(p.fa.dtype) && device_generation() < 8) return "mma.m16n8k16 and cp.async need compute capability 8.0";
  if (p.height_a * p.width_a > kPixels || p.height_b * p.width_b > kPixels) return "an image has over 2^31 pixels";
  if (p.channels > (int64_t{1} << 23)) return "offsets within a tile of 128 rows need C <= 2^23";
  return nullptr;
}

// The kernels that a call takes.
enum class Path { kHopper, kTiled, kSimple };
Path forward_path(const MatchBothParams& p) {
  if (hopper::why_not(p, compute_capability()) == nullptr) return Path::kHopper;
  return why_not_tiled(p) == nullptr ? Path::kTiled : Path::kSimple;
}

Path backward_path(const MatchBothParams& p) {
  if (hopper::why_not_backward(p, compute_capability()) == nullptr) return Path::kHopper;
  return why_not_tiled(p) == nullptr ? Path::kTiled : Path::kSimple;
}

void log_forward(const MatchBothParams& p, Path path) {
  if (!log_wanted()) return;
  switch (path) {
    case Path::kHopper: return log_path("match_both", "Hopper kernels (wgmma, TMA)", nullptr);
    case Path::kTiled:
      return log_path("match_both", half_type(p.fa.dtype) ? "portable kernels (mma.sync)" : "portable kernels (FMA)",
                      hopper::why_not(p, compute_capability()));
    case Path::kSimple: return log_path("match_both", "simple kernels", why_not_tiled(p));
  }
}

}  // namespace

size_t match_both_forward_workspace_bytes_cuda(const MatchBothParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  switch (forward_path(p)) {
    case Path::kHopper: return hopper_forward_bytes(p);
    case Path::kTiled: return tiled_forward_bytes(p);
    case Path::kSimple: return simple_forward_bytes(p);
  }
  return 0;
}

Status match_both_forward_cuda(const MatchBothParams& p, void* workspace, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, match_both_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  const Path path = forward_path(p);
  log_forward(p, path);
  switch (path) {
    case Path::kHopper: return hopper_forward(p, workspace, stream);
    case Path::kTiled: return tiled_forward(p, workspace, stream);
    case Path::kSimple: return simple_forward(p, workspace, stream);
  }
  return {};
}

size_t match_both_backward_workspace_bytes_cuda(const MatchBothParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  switch (backward_path(p)) {
    case Path::kHopper: return hopper_backward_bytes(p);
    case Path::kTiled: return tiled_backward_bytes(p);
    case Path::kSimple: return simple_backward_bytes(p);
  }
  return 0;
}

Status match_both_backward_cuda(const MatchBothParams& p, void* workspace, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, match_both_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  switch (backward_path(p)) {
    case Path::kHopper:
      log_path("match_both backward", "Hopper kernels (wgmma, TMA)", nullptr);
      return hopper_backward(p, workspace, stream);
    case Path::kTiled:
      log_path("match_both backward", "portable kernels", hopper::why_not_backward(p, compute_capability()));
      return tiled_backward(p, workspace, stream);
    case Path::kSimple:
      log_path("match_both backward", "simple kernels", why_not_tiled(p));
      return simple_backward(p, workspace, stream);
  }
  return {};
}

}  // namespace cosegflow

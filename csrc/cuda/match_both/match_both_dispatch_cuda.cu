// match_both on CUDA: checks, and which of the kernels a call takes.
#include "common/match_both_checks.h"
#include "entry_checks.cuh"
#include "match_both/match_both_common.cuh"

namespace cosegflow {
namespace {

using namespace match_both_cuda;

// As for match: packing gives the tiled kernels aligned rows whatever comes in, so few reasons against them remain.
bool takes_simple(const MatchBothParams& p) {
  constexpr int64_t kPixels = (int64_t{1} << 31) - 4096;  // of one image: rows are counted in 32 bits
  if (p.simple) return true;
  if (half_type(p.fa.dtype) && device_generation() < 8) return true;  // mma.m16n8k16 and cp.async
  if (p.height_a * p.width_a > kPixels || p.height_b * p.width_b > kPixels) return true;
  return p.channels > (int64_t{1} << 23);  // offsets within a tile of 128 rows
}

}  // namespace

size_t match_both_forward_workspace_bytes_cuda(const MatchBothParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  return takes_simple(p) ? simple_forward_bytes(p) : tiled_forward_bytes(p);
}

Status match_both_forward_cuda(const MatchBothParams& p, void* workspace, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, match_both_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  return takes_simple(p) ? simple_forward(p, workspace, stream) : tiled_forward(p, workspace, stream);
}

size_t match_both_backward_workspace_bytes_cuda(const MatchBothParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  return takes_simple(p) ? simple_backward_bytes(p) : tiled_backward_bytes(p);
}

Status match_both_backward_cuda(const MatchBothParams& p, void* workspace, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, match_both_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  return takes_simple(p) ? simple_backward(p, workspace, stream) : tiled_backward(p, workspace, stream);
}

}  // namespace cosegflow

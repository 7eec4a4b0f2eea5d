// match on CUDA: checks, and which of the kernels a call takes.
#include "cosegflow/match.h"
#include "entry_checks.cuh"
#include "match/match_common.cuh"

namespace cosegflow {
namespace {

using namespace match_cuda;

// Null where the tiled kernels take the call, else the reason why not. Packing gives them aligned, padded rows
// whatever the strides, the alignment and C of the inputs are, so few reasons remain.
const char* why_not_tiled(const MatchParams& p) {
  constexpr int64_t kPixels = (int64_t{1} << 31) - 4096;  // of one image: rows are counted in 32 bits
  if (p.simple) return "the simple kernels were asked for";
  if (p.kernel_sigma > 0) return "the tiles know no window yet";
  if (half_type(p.fa.dtype) && device_generation() < 8) return "mma.m16n8k16 and cp.async need compute capability 8.0";
  if (p.height_a * p.width_a > kPixels || p.height_b * p.width_b > kPixels) return "an image has over 2^31 pixels";
  if (p.channels > (int64_t{1} << 23)) return "offsets within a tile of 128 rows need C <= 2^23";
  return nullptr;
}

Status check_common(const MatchParams& p) {
  const DType acc = accumulate_type(p.fa.dtype);
  if (p.fa.data == nullptr || p.fb.data == nullptr || p.beta.data == nullptr) return {"match: fa, fb or beta is null"};
  if (p.fa.dtype == DType::kBool) return {"match: fa must be floating"};
  if (p.fa.dtype != p.fb.dtype) return {"match: fa and fb must have one dtype"};
  if (p.beta.dtype != acc)
    return {"match: beta must have the accumulate type of fa (float64 for float64, else float32)"};
  if (p.channels < 1 || p.height_a < 1 || p.width_a < 1 || p.height_b < 1 || p.width_b < 1) {
    return {"match: C, H and W must be at least 1"};
  }
  if (p.flow.data == nullptr || p.lse.data == nullptr) return {"match: flow or lse is null"};
  if (p.flow.dtype != acc || p.lse.dtype != acc) return {"match: flow and lse must have the accumulate type of fa"};
  if (p.kernel_sigma < 0) return {"match: kernel_sigma must not be negative"};
  if (p.kernel_sigma > 0 && p.index == nullptr) return {"match: kernel_sigma needs index"};
  return {};
}

Status check_backward(const MatchParams& p) {
  const DType acc = accumulate_type(p.fa.dtype);
  if (Status s = check_common(p); !s.ok()) return s;
  if ((p.grad_flow.data != nullptr && p.grad_flow.dtype != acc) ||
      (p.grad_lse.data != nullptr && p.grad_lse.dtype != acc)) {
    return {"match: incoming gradients must have the accumulate type of fa"};
  }
  if ((p.grad_fa.data != nullptr && p.grad_fa.dtype != p.fa.dtype) ||
      (p.grad_fb.data != nullptr && p.grad_fb.dtype != p.fa.dtype)) {
    return {"match: grad_fa and grad_fb must have the dtype of fa"};
  }
  if ((p.grad_mask_b.data != nullptr && p.grad_mask_b.dtype != acc) ||
      (p.grad_beta.data != nullptr && p.grad_beta.dtype != acc)) {
    return {"match: grad_mask_b and grad_beta must have the accumulate type of fa"};
  }
  return {};
}

}  // namespace

size_t match_forward_workspace_bytes_cuda(const MatchParams& p) {
  return p.batch == 0 || why_not_tiled(p) != nullptr ? 0 : tiled_forward_bytes(p);
}

Status match_forward_cuda(const MatchParams& p, void* workspace, Stream stream) {
  if (p.batch == 0) return {};
  if (Status s = check_common(p); !s.ok()) return s;
  if (p.confidence.data == nullptr || p.confidence.dtype != accumulate_type(p.fa.dtype)) {
    return {"match: confidence is null or does not have the accumulate type of fa"};
  }
  if ((p.index == nullptr) != (p.score.data == nullptr)) return {"match: index and score are wanted both or neither"};
  if (p.score.data != nullptr && p.score.dtype != accumulate_type(p.fa.dtype)) {
    return {"match: score must have the accumulate type of fa"};
  }
  if (Status s = check_workspace(workspace, match_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  return why_not_tiled(p) != nullptr ? simple_forward(p, stream) : tiled_forward(p, workspace, stream);
}

size_t match_backward_workspace_bytes_cuda(const MatchParams& p) {
  if (p.batch == 0) return 0;
  return why_not_tiled(p) != nullptr ? simple_backward_bytes(p) : tiled_backward_bytes(p);
}

Status match_backward_cuda(const MatchParams& p, void* workspace, Stream stream) {
  if (p.batch == 0) return {};
  if (Status s = check_backward(p); !s.ok()) return s;
  if (Status s = check_workspace(workspace, match_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  return why_not_tiled(p) != nullptr ? simple_backward(p, workspace, stream) : tiled_backward(p, workspace, stream);
}

}  // namespace cosegflow

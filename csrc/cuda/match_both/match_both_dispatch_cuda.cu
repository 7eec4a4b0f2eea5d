// match_both on CUDA: checks, and which of the kernels a call takes.
#include <initializer_list>

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

Status check_direction(const MatchDirection& d, DType acc) {
  if (d.flow.data == nullptr || d.lse.data == nullptr) return {"match_both: a flow or an lse is null"};
  if (d.flow.dtype != acc || d.lse.dtype != acc) {
    return {"match_both: flow and lse must have the accumulate type of fa"};
  }
  if ((d.grad_flow.data != nullptr && d.grad_flow.dtype != acc) ||
      (d.grad_lse.data != nullptr && d.grad_lse.dtype != acc)) {
    return {"match_both: incoming gradients must have the accumulate type of fa"};
  }
  return {};
}

Status check_common(const MatchBothParams& p) {
  const DType acc = accumulate_type(p.fa.dtype);
  if (p.fa.data == nullptr || p.fb.data == nullptr || p.beta.data == nullptr) {
    return {"match_both: fa, fb or beta is null"};
  }
  if (p.fa.dtype == DType::kBool) return {"match_both: fa must be floating"};
  if (p.fa.dtype != p.fb.dtype) return {"match_both: fa and fb must have one dtype"};
  if (p.beta.dtype != acc) return {"match_both: beta must have the accumulate type of fa"};
  if (p.channels < 1 || p.height_a < 1 || p.width_a < 1 || p.height_b < 1 || p.width_b < 1) {
    return {"match_both: C, H and W must be at least 1"};
  }
  if (Status s = check_direction(p.ab, acc); !s.ok()) return s;
  return check_direction(p.ba, acc);
}

Status check_gradients(const MatchBothParams& p) {
  const DType acc = accumulate_type(p.fa.dtype);
  for (const View4* grad : {&p.grad_fa, &p.grad_fb}) {
    if (grad->data != nullptr && grad->dtype != p.fa.dtype) {
      return {"match_both: grad_fa and grad_fb must have the dtype of fa"};
    }
  }
  for (const View3* grad : {&p.grad_mask_a, &p.grad_mask_b}) {
    if (grad->data != nullptr && grad->dtype != acc) {
      return {"match_both: gradients of masks must have the accumulate type of fa"};
    }
  }
  if (p.grad_beta.data != nullptr && p.grad_beta.dtype != acc) {
    return {"match_both: grad_beta must have the accumulate type of fa"};
  }
  return {};
}

}  // namespace

size_t match_both_forward_workspace_bytes_cuda(const MatchBothParams& p) {
  if (p.batch == 0) return 0;
  return takes_simple(p) ? simple_forward_bytes(p) : tiled_forward_bytes(p);
}

Status match_both_forward_cuda(const MatchBothParams& p, void* workspace, Stream stream) {
  if (p.batch == 0) return {};
  if (Status s = check_common(p); !s.ok()) return s;
  for (const MatchDirection* d : {&p.ab, &p.ba}) {
    if (d->confidence.data == nullptr || d->confidence.dtype != accumulate_type(p.fa.dtype)) {
      return {"match_both: a confidence is null or does not have the accumulate type of fa"};
    }
  }
  if (Status s = check_workspace(workspace, match_both_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  return takes_simple(p) ? simple_forward(p, workspace, stream) : tiled_forward(p, workspace, stream);
}

size_t match_both_backward_workspace_bytes_cuda(const MatchBothParams& p) {
  if (p.batch == 0) return 0;
  return takes_simple(p) ? simple_backward_bytes(p) : tiled_backward_bytes(p);
}

Status match_both_backward_cuda(const MatchBothParams& p, void* workspace, Stream stream) {
  if (p.batch == 0) return {};
  if (Status s = check_common(p); !s.ok()) return s;
  if (Status s = check_gradients(p); !s.ok()) return s;
  if (Status s = check_workspace(workspace, match_both_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  return takes_simple(p) ? simple_backward(p, workspace, stream) : tiled_backward(p, workspace, stream);
}

}  // namespace cosegflow

// match_both, the plainly right path: match's simple kernels, one direction after the other. The backward of the second
// writes the gradients that both have in common to the workspace, and the kernel here adds them: one thread a value,
// bound by memory.
#include "common/dispatch.h"
#include "match_both/match_both_common.cuh"

namespace cosegflow::match_both_cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(256) match_both_simple_add_kernel(T* to, const T* from, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < n) to[i] = from_float<T>(to_float(to[i]) + to_float(from[i]));
}

template <class T>
Status add(void* to, const void* from, int64_t n, Stream stream) {
  if (to == nullptr) return {};
  if (ceil_div(n, 256) > INT32_MAX) return {"match_both: too many values for the simple kernels"};
  return launch(&match_both_simple_add_kernel<T>, dim3(static_cast<unsigned>(ceil_div(n, 256))), dim3(256), 0, stream,
                static_cast<T*>(to), static_cast<const T*>(from), n);
}

MatchBothParams simple(MatchBothParams p) {
  p.simple = true;
  return p;
}

// The second direction's own copies of what both give a gradient to, and the workspace of either.
template <class T>
struct BackwardSpace {
  T *grad_fa = nullptr, *grad_fb = nullptr;
  accumulate_t<T>* grad_beta = nullptr;
  char* rest;
  size_t bytes;

  BackwardSpace(const MatchBothParams& p, void* base) {
    Arena arena(base);
    const size_t ab = match_backward_workspace_bytes_cuda(a_to_b(p)),
                 ba = match_backward_workspace_bytes_cuda(b_to_a(p));
    if (p.grad_fa.data != nullptr) grad_fa = arena.take<T>(p.batch * p.channels * p.height_a * p.width_a);
    if (p.grad_fb.data != nullptr) grad_fb = arena.take<T>(p.batch * p.channels * p.height_b * p.width_b);
    if (p.grad_beta.data != nullptr) grad_beta = arena.take<accumulate_t<T>>(p.batch);
    rest = arena.take<char>(static_cast<int64_t>(ab > ba ? ab : ba));
    bytes = arena.bytes();
  }
};

template <class T>
Status backward(const MatchBothParams& p, void* workspace, Stream stream) {
  const BackwardSpace<T> w(p, workspace);
  MatchParams ba = b_to_a(p);
  ba.grad_fa.data = w.grad_fb, ba.grad_fb.data = w.grad_fa, ba.grad_beta.data = w.grad_beta;
  if (w.grad_beta != nullptr) ba.grad_beta.stride[0] = 1;
  if (Status s = match_backward_cuda(a_to_b(p), w.rest, stream); !s.ok()) return s;
  if (Status s = match_backward_cuda(ba, w.rest, stream); !s.ok()) return s;
  const int64_t size_a = p.batch * p.channels * p.height_a * p.width_a;
  const int64_t size_b = p.batch * p.channels * p.height_b * p.width_b;
  if (Status s = add<T>(p.grad_fa.data, w.grad_fa, size_a, stream); !s.ok()) return s;
  if (Status s = add<T>(p.grad_fb.data, w.grad_fb, size_b, stream); !s.ok()) return s;
  return add<accumulate_t<T>>(p.grad_beta.data, w.grad_beta, p.batch, stream);
}

}  // namespace

size_t simple_forward_bytes(const MatchBothParams& p) {
  const size_t ab = match_forward_workspace_bytes_cuda(a_to_b(simple(p)));
  const size_t ba = match_forward_workspace_bytes_cuda(b_to_a(simple(p)));
  return ab > ba ? ab : ba;
}

size_t simple_backward_bytes(const MatchBothParams& p) {
  size_t bytes = 0;
  (void)dispatch_floating(p.fa.dtype, [&](auto tag) {
    bytes = BackwardSpace<typename decltype(tag)::type>(simple(p), nullptr).bytes;
    return Status{};
  });
  return bytes;
}

Status simple_forward(const MatchBothParams& p, void* workspace, Stream stream) {
  if (Status s = match_forward_cuda(a_to_b(simple(p)), workspace, stream); !s.ok()) return s;
  return match_forward_cuda(b_to_a(simple(p)), workspace, stream);
}

Status simple_backward(const MatchBothParams& p, void* workspace, Stream stream) {
  return dispatch_floating(
      p.fa.dtype, [&](auto tag) { return backward<typename decltype(tag)::type>(simple(p), workspace, stream); });
}

}  // namespace cosegflow::match_both_cuda

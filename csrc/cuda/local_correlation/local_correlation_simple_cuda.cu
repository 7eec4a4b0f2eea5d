// local_correlation by the simple kernels: workspace and launches. The gradients of the (normalized) features are
// formed in the accumulator's type, one side after the other, and then finished.
#include <algorithm>

#include "local_correlation/local_correlation_common.cuh"

namespace cosegflow::local_correlation_cuda {
namespace {

template <class T>
struct Workspace {
  Sides<T> sides;
  accumulate_t<T>* gradient;  // (B, C, H, W) of one side after the other

  Workspace(const LocalCorrelationParams& p, Arena& arena) : sides(p, arena) {
    const int64_t a = p.grad_fa.data == nullptr ? 0 : sides.a.positions();
    const int64_t b = p.grad_fb.data == nullptr ? 0 : sides.b.positions();
    gradient = arena.take<accumulate_t<T>>(p.batch * p.channels * std::max(a, b));
  }
};

template <class T>
Status forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  Arena arena(workspace);
  const Sides<T> sides(p, arena);
  if (Status s = compute_norms(p, sides, stream); !s.ok()) return s;
  const int64_t items = p.batch * p.side() * p.side() * sides.a.positions();
  return launch_flat<kThreads>(&local_correlation_simple_kernel<T>, items, stream, p, sides.a, sides.b);
}

template <class T>
Status gradient_to_b(const LocalCorrelationParams& p, const Workspace<T>& w, Stream stream) {
  const Side<T>&a = w.sides.a, &b = w.sides.b;
  const int64_t runs = (p.channels + kRun - 1) / kRun;
  if (p.flow.data == nullptr) {
    return launch_flat<kThreads>(&local_correlation_grad_b_gather_kernel<T>, p.batch * runs * b.positions(), stream, p,
                                 a, b, w.gradient);
  }
  const size_t bytes = static_cast<size_t>(p.batch * p.channels * b.positions()) * sizeof(accumulate_t<T>);
  if (Status s = memset_async(w.gradient, 0, bytes, stream); !s.ok()) return s;
  if (p.deterministic) {
    return launch_flat<kPlaneThreads>(&local_correlation_grad_b_deterministic_kernel<T>, p.batch * p.channels, stream,
                                      p, a, b, w.gradient);
  }
  return launch_flat<kThreads>(&local_correlation_grad_b_atomic_kernel<T>, p.batch * runs * a.positions(), stream, p, a,
                               b, w.gradient);
}

template <class T>
Status backward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  Arena arena(workspace);
  const Workspace<T> w(p, arena);
  const Side<T>&a = w.sides.a, &b = w.sides.b;
  if (Status s = compute_norms(p, w.sides, stream); !s.ok()) return s;
  if (p.grad_flow.data != nullptr) {
    const int64_t items = p.batch * a.positions() * 32;
    if (Status s = launch_flat<kThreads>(&local_correlation_grad_flow_kernel<T>, items, stream, p, a, b); !s.ok())
      return s;
  }
  if (p.grad_fa.data != nullptr) {
    const int64_t items = p.batch * ((p.channels + kRun - 1) / kRun) * a.positions();
    Status s = launch_flat<kThreads>(&local_correlation_grad_a_kernel<T>, items, stream, p, a, b, w.gradient);
    if (s.ok()) s = finish_gradient(p, a, w.gradient, p.grad_fa, stream);
    if (!s.ok()) return s;
  }
  if (p.grad_fb.data == nullptr) return {};
  if (Status s = gradient_to_b(p, w, stream); !s.ok()) return s;
  return finish_gradient(p, b, w.gradient, p.grad_fb, stream);
}

}  // namespace

size_t simple_forward_bytes(const LocalCorrelationParams& p) {
  return workspace_bytes(p, [&](auto tag, Arena& arena) { Sides<typename decltype(tag)::type>(p, arena); });
}

size_t simple_backward_bytes(const LocalCorrelationParams& p) {
  return workspace_bytes(p, [&](auto tag, Arena& arena) { Workspace<typename decltype(tag)::type>(p, arena); });
}

Status simple_forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return forward<T>(p, workspace, stream);
  });
}

Status simple_backward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return backward<T>(p, workspace, stream);
  });
}

}  // namespace cosegflow::local_correlation_cuda

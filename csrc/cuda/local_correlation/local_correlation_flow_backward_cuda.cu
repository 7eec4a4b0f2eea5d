// local_correlation along a flow, backward: workspace and launches.
#include <algorithm>

#include "local_correlation/local_correlation_common.cuh"
#include "local_correlation/local_correlation_flow_gradient_kernels.cuh"
#include "local_correlation/local_correlation_flow_products_kernel.cuh"
#include "local_correlation/local_correlation_flow_sides.cuh"

namespace cosegflow::local_correlation_cuda {
namespace {

template <class T>
struct Workspace {
  using Acc = accumulate_t<T>;
  bool to_a, to_b, to_flow;
  FlowSide<T> a, b;
  Acc* products = nullptr;  // the gradient to them: (B, Ha * Wa, (2r+2)^2)
  WindowMap<Acc> map{};
  Acc* unfinished = nullptr;  // (B, C, H, W): the gradient to the normalized features of one side after the other

  Workspace(const LocalCorrelationParams& p, Arena& arena)
      : to_a(p.grad_fa.data != nullptr),
        to_b(p.grad_fb.data != nullptr),
        to_flow(p.grad_flow.data != nullptr),
        a(p, p.fa, p.height_a, p.width_a, to_b || to_flow || p.normalize, arena),
        b(p, p.fb, p.height_b, p.width_b, to_a || to_flow || p.normalize, arena) {
    const int64_t n = p.height_a * p.width_a, taps = p.side() + 1;
    if (to_a || to_b) products = arena.take<Acc>(p.batch * n * taps * taps);
    if (to_b) {
      map = warp_cuda::inverse_map<WindowLanding<Acc>>(p.batch, p.height_b + taps - 1, p.width_b + taps - 1, n, arena);
    }
    const int64_t most = std::max(to_a ? n : 0, to_b ? p.height_b * p.width_b : 0);
    if (p.normalize && most > 0) unfinished = arena.take<Acc>(p.batch * p.channels * most);
  }

  GradientTarget<T> target(const View4& gradient) const {
    return {unfinished == nullptr ? static_cast<T*>(gradient.data) : nullptr, unfinished};
  }
};

template <class T>
Status flow_gradient(const LocalCorrelationParams& p, const Workspace<T>& w, Stream stream) {
  const RunGrid grid = products_grid<T>(p, 1);
  return launch(&local_correlation_flow_slopes_kernel<T>, dim3(static_cast<unsigned>(p.batch * grid.blocks)),
                dim3(kFlowThreads), 0, stream, p, w.a.side, w.b.side, w.a.rows, w.b.rows, grid);
}

template <class T>
Status products_gradient(const LocalCorrelationParams& p, const Workspace<T>& w, Stream stream) {
  const int64_t taps = (p.side() + 1) * (p.side() + 1), runs = (p.height_a * p.width_a + 31) / 32;
  const int64_t blocks = p.batch * runs * ((taps + kBlockTaps - 1) / kBlockTaps);
  return launch(&local_correlation_flow_product_gradient_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                0, stream, p, w.products);
}

template <class T>
Status gradient_to_a(const LocalCorrelationParams& p, const Workspace<T>& w, Stream stream) {
  const RunGrid grid = run_grid(p.height_a, p.width_a, kRunPixels, kWarps);
  const int chunks = chunks_of<T>(w.b.rows.vectors);
  const dim3 blocks(static_cast<unsigned>(p.batch * grid.blocks * chunks));
  Status s = launch(&local_correlation_flow_grad_a_kernel<T>, blocks, dim3(kFlowThreads), 0, stream, p, w.b.side,
                    w.b.rows, grid, chunks, w.products, w.target(p.grad_fa));
  if (!s.ok() || w.unfinished == nullptr) return s;
  return finish_gradient(p, w.a.side, w.unfinished, p.grad_fa, stream);
}

template <class T>
Status gradient_to_b(const LocalCorrelationParams& p, const Workspace<T>& w, Stream stream) {
  const WindowPlaces<accumulate_t<T>> places{p, w.a.norms};
  if (Status s = warp_cuda::build_inverse_map(places, p.batch, w.map, stream); !s.ok()) return s;
  const int chunks = chunks_of<T>(w.a.rows.vectors);
  // A block has four runs, or one where fb is small: then its warps share what lands there.
  RunGrid grid = run_grid(p.height_b, p.width_b, kRunPixels, kWarps);
  if (p.batch * grid.blocks * chunks < 2 * int64_t{multiprocessors()}) {
    grid = run_grid(p.height_b, p.width_b, kRunPixels, 1);
  }
  const GatheredWindows<T> from{w.map, w.a.rows, w.products, static_cast<int>(p.side()) + 1};
  const dim3 blocks(static_cast<unsigned>(p.batch * grid.blocks * chunks));
  Status s = launch(&local_correlation_flow_grad_b_kernel<T>, blocks, dim3(kFlowThreads), 0, stream, from, p.channels,
                    grid, chunks, w.target(p.grad_fb));
  if (!s.ok() || w.unfinished == nullptr) return s;
  return finish_gradient(p, w.b.side, w.unfinished, p.grad_fb, stream);
}

template <class T>
Status backward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  Arena arena(workspace);
  const Workspace<T> w(p, arena);
  Status s = prepare(w.a, w.b, stream);
  if (s.ok() && w.to_flow) s = flow_gradient(p, w, stream);
  if (s.ok() && w.products != nullptr) s = products_gradient(p, w, stream);
  if (s.ok() && w.to_a) s = gradient_to_a(p, w, stream);
  if (s.ok() && w.to_b) s = gradient_to_b(p, w, stream);
  return s;
}

}  // namespace

size_t flow_backward_bytes(const LocalCorrelationParams& p) {
  return workspace_bytes(p, [&](auto tag, Arena& arena) { Workspace<typename decltype(tag)::type>(p, arena); });
}

Status flow_backward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return backward<T>(p, workspace, stream);
  });
}

}  // namespace cosegflow::local_correlation_cuda

// local_correlation along a flow, forward: workspace and launches; and which calls the kernels along a flow take.
#include "local_correlation/local_correlation_flow_products_kernel.cuh"
#include "local_correlation/local_correlation_flow_sides.cuh"
#include "warp/warp_inverse.cuh"

namespace cosegflow::local_correlation_cuda {
namespace {

constexpr int64_t kMostTaps = 256;  // of a window's side

int64_t pieces_of(const LocalCorrelationParams& p) {
  const int64_t across = (p.side() + kPieceOutputs - 1) / kPieceOutputs;
  return across * across;
}

template <class T>
struct Workspace {
  FlowSide<T> a, b;

  Workspace(const LocalCorrelationParams& p, Arena& arena)
      : a(p, p.fa, p.height_a, p.width_a, true, arena), b(p, p.fb, p.height_b, p.width_b, true, arena) {}
};

template <class T>
Status forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  Arena arena(workspace);
  const Workspace<T> w(p, arena);
  if (Status s = prepare(w.a, w.b, stream); !s.ok()) return s;
  const int64_t pieces = pieces_of(p);
  const RunGrid grid = products_grid<T>(p, pieces);
  return launch(&local_correlation_flow_forward_kernel<T>, dim3(static_cast<unsigned>(p.batch * grid.blocks * pieces)),
                dim3(kFlowThreads), 0, stream, p, w.a.side, w.b.side, w.a.rows, w.b.rows, grid,
                static_cast<int>(pieces));
}

}  // namespace

const char* why_not_flow(const LocalCorrelationParams& p) {
  const int64_t taps = p.side() + 1;
  if (taps > kMostTaps) return "a window of more than 256 x 256 pixels";
  if (half_type(p.fa.dtype) && compute_capability() < 80) return "halves need compute capability 8.0";
  // Blocks of any launch are at most so many: a pixel each, cut into pieces, products or chunks of channels.
  constexpr int64_t kMost = INT32_MAX / 2;
  const int64_t chunks = p.channels / 64 + 1, parts = pieces_of(p) > chunks ? pieces_of(p) : chunks;
  const bool small = bounded_product(kMost, p.batch, p.height_a, p.width_a, parts * 2) <= kMost &&
                     bounded_product(kMost, p.batch, p.height_b, p.width_b, chunks) <= kMost && p.channels <= kMost;
  if (!small) return "more pixels, channels and parts of windows than a grid has blocks";
  if (!warp_cuda::inverse_map_fits(p.batch, p.height_b + taps - 1, p.width_b + taps - 1)) {
    return "more places of windows than 31 bits count";
  }
  return nullptr;
}

size_t flow_forward_bytes(const LocalCorrelationParams& p) {
  return workspace_bytes(p, [&](auto tag, Arena& arena) { Workspace<typename decltype(tag)::type>(p, arena); });
}

Status flow_forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return forward<T>(p, workspace, stream);
  });
}

}  // namespace cosegflow::local_correlation_cuda

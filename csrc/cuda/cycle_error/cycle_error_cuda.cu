// cycle_error on CUDA: which kernels, workspace and launches.
#include "common/cycle_error_checks.h"
#include "common/dispatch.h"
#include "cycle_error/cycle_error_kernels.cuh"
#include "cycle_error/cycle_error_simple_kernels.cuh"
#include "warp/warp_gather_launch.cuh"

namespace cosegflow {
namespace {

using namespace cycle_cuda;

// flow_ba as warp's x and flow_ab as its flow, of the accumulate type. Pointers are those of `kept`.
template <class A>
WarpParams as_warp(const CycleErrorParams& p, const KeptSamples<A>& kept) {
  WarpParams w;
  w.batch = p.batch, w.channels = 2;
  w.height = p.height_b, w.width = p.width_b, w.out_height = p.height_a, w.out_width = p.width_a;
  w.padding = WarpPadding::kBorder;
  const auto contiguous = [](void* data, int64_t height, int64_t width) {
    return View4{
        data, sizeof(A) == 8 ? DType::kFloat64 : DType::kFloat32, {2 * height * width, height * width, width, 1}};
  };
  w.x = contiguous(nullptr, p.height_b, p.width_b);
  w.flow = contiguous(kept.flow, p.height_a, p.width_a);
  w.grad_out = contiguous(kept.grad, p.height_a, p.width_a);
  w.grad_x = contiguous(p.grad_ba.data, p.height_b, p.width_b);
  return w;
}

// Whether planes have 31 bits, and the tiles of all images fit a grid; and the simple kernels were not asked for.
bool fast_sizes(const CycleErrorParams& p) {
  return !p.simple && bounded_product(INT32_MAX, p.height_b, p.width_b) <= INT32_MAX &&
         bounded_product(INT32_MAX, p.batch, p.height_a, p.width_a) <= INT32_MAX &&
         short_offsets(p.flow_ab, 1, p.height_a, p.width_a) && short_offsets(p.flow_ba, 1, p.height_b, p.width_b);
}

bool gathers(const CycleErrorParams& p) {
  return p.deterministic && p.grad_ba.data != nullptr && fast_sizes(p) &&
         gather_fits(as_warp<float>(p, KeptSamples<float>{}));
}

template <class A>
WarpMap<A> lay_out(const CycleErrorParams& p, Arena& arena, KeptSamples<A>& kept) {
  const int64_t elements = p.batch * 2 * p.height_a * p.width_a;
  kept.flow = arena.take<A>(elements);
  kept.grad = arena.take<A>(elements);
  return warp_map<A>(as_warp(p, kept), arena);
}

template <class A>
size_t kept_bytes(const CycleErrorParams& p) {
  Arena arena;
  KeptSamples<A> kept{};
  lay_out(p, arena, kept);
  return arena.bytes();
}

Status clear_grad_ba(const CycleErrorParams& p, Stream stream) {
  const size_t bytes = static_cast<size_t>(p.batch * 2 * p.height_b * p.width_b * element_size(p.grad_ba.dtype));
  return memset_async(p.grad_ba.data, 0, bytes, stream);
}

template <class T>
Status backward_fast(const CycleErrorParams& p, void* workspace, Stream stream) {
  using A = accumulate_t<T>;
  const TileGrid grid = tile_grid(p.height_a, p.width_a, kScatterSide, kScatterSide);
  const dim3 blocks(blocks_of(grid, p.batch)), threads(kThreads);
  KeptSamples<A> kept{};
  if (!gathers(p)) {
    if (p.grad_ba.data != nullptr) {
      if (Status s = clear_grad_ba(p, stream); !s.ok()) return s;
    }
    return launch(&cycle_error_backward_kernel<T>, blocks, threads, 0, stream, p, grid, kept);
  }
  if (Status s = check_workspace(workspace, kept_bytes<A>(p)); !s.ok()) return s;
  Arena arena(workspace);
  const WarpMap<A> map = lay_out(p, arena, kept);
  const WarpParams w = as_warp(p, kept);
  Status s = launch(&cycle_error_backward_kernel<T>, blocks, threads, 0, stream, p, grid, kept);
  if (s.ok()) s = build_warp_map(w, map, stream);
  if (s.ok()) s = gather_planes<A>(w, map, stream);
  return s;
}

Status simple_grid(const CycleErrorParams& p, dim3& grid) {
  const int64_t tiles = (p.height_a * p.width_a + cycle_simple::kThreads - 1) / cycle_simple::kThreads;
  if (tiles * p.batch > INT32_MAX) return Status{"cycle_error: too many pixels for one launch"};
  grid = dim3(static_cast<unsigned>(tiles * p.batch));
  return {};
}

template <class T>
Status backward_simple(const CycleErrorParams& p, Stream stream) {
  dim3 grid;
  if (Status s = simple_grid(p, grid); !s.ok()) return s;
  const dim3 threads(cycle_simple::kThreads);
  const bool wants_ba = p.grad_ba.data != nullptr, scatter = wants_ba && !p.deterministic;
  if (wants_ba) {
    if (Status s = clear_grad_ba(p, stream); !s.ok()) return s;
  }
  if (p.grad_ab.data != nullptr || scatter) {
    Status s = launch(&cycle_simple::cycle_error_simple_backward_kernel<T>, grid, threads, 0, stream, p, scatter);
    if (!s.ok()) return s;
  }
  if (!wants_ba || scatter) return {};
  const dim3 planes(static_cast<unsigned>((2 * p.batch + cycle_simple::kThreads - 1) / cycle_simple::kThreads));
  return launch(&cycle_simple::cycle_error_simple_scatter_kernel<T>, planes, threads, 0, stream, p);
}

}  // namespace

Status cycle_error_forward_cuda(const CycleErrorParams& p, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  return dispatch_floating(p.flow_ab.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    log_tiles("cycle_error", p.simple, fast_sizes(p));
    if (fast_sizes(p)) {
      const TileGrid grid = tile_grid(p.height_a, p.width_a, kRows, kRowWidth);
      return launch(&cycle_error_forward_kernel<T>, dim3(blocks_of(grid, p.batch)), dim3(kThreads), 0, stream, p, grid);
    }
    dim3 grid;
    if (Status s = simple_grid(p, grid); !s.ok()) return s;
    return launch(&cycle_simple::cycle_error_simple_forward_kernel<T>, grid, dim3(cycle_simple::kThreads), 0, stream,
                  p);
  });
}

size_t cycle_error_backward_workspace_bytes_cuda(const CycleErrorParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0 || !gathers(p)) return 0;
  return p.flow_ab.dtype == DType::kFloat64 ? kept_bytes<double>(p) : kept_bytes<float>(p);
}

Status cycle_error_backward_cuda(const CycleErrorParams& p, void* workspace, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (p.grad_ab.data == nullptr && p.grad_ba.data == nullptr) return {};
  return dispatch_floating(p.flow_ab.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    const bool fast = fast_sizes(p) && (gathers(p) || !p.deterministic || p.grad_ba.data == nullptr);
    return fast ? backward_fast<T>(p, workspace, stream) : backward_simple<T>(p, stream);
  });
}

}  // namespace cosegflow

// local_correlation forward on CUDA: workspace, dispatch and launches.
#include <algorithm>

#include "common/dispatch.h"
#include "common/log.h"
#include "local_correlation/local_correlation_common.cuh"
#include "local_correlation/local_correlation_tile_kernel.cuh"

namespace cosegflow {
namespace {

using namespace local_correlation_cuda;

int64_t tile_blocks(const LocalCorrelationParams& p) {
  const int64_t pieces = (p.side() + TileShape::kShifts - 1) / TileShape::kShifts;
  const int64_t tiles_x = (p.width_a + TileShape::kColumns - 1) / TileShape::kColumns;
  const int64_t tiles_y = (p.height_a + TileShape::kRows - 1) / TileShape::kRows;
  return p.batch * tiles_y * tiles_x * pieces * pieces;
}

// Null where the tiled kernel takes the call, else the reason why not.
const char* why_not_tiles(const LocalCorrelationParams& p) {
  if (p.simple) return "the simple kernels were asked for";
  if (p.flow.data != nullptr) return "with flow, windows of neighbouring pixels are not neighbours";
  if (tile_blocks(p) > INT32_MAX) return "more tiles than a grid has blocks";
  return nullptr;
}

template <class T>
Status forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  Arena arena(workspace);
  const Sides<T> sides(p, arena);
  if (Status s = compute_norms(p, sides, stream); !s.ok()) return s;
  const char* const why_not = why_not_tiles(p);
  log_path("local_correlation", why_not == nullptr ? "tiled kernel" : "simple kernels", why_not);
  if (why_not == nullptr) {
    const int64_t warps = std::min<int64_t>(p.side(), TileShape::kShifts);
    return launch(&local_correlation_tile_kernel<T>, dim3(static_cast<unsigned>(tile_blocks(p))),
                  dim3(static_cast<unsigned>(32 * warps)), 0, stream, p, sides.a, sides.b);
  }
  const int64_t items = p.batch * p.side() * p.side() * sides.a.positions();
  return launch_flat(&local_correlation_simple_kernel<T>, items, stream, p, sides.a, sides.b);
}

template <class T>
size_t bytes(const LocalCorrelationParams& p) {
  Arena arena;
  Sides<T>(p, arena);
  return arena.bytes();
}

}  // namespace

size_t local_correlation_forward_workspace_bytes_cuda(const LocalCorrelationParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  return p.fa.dtype == DType::kFloat64 ? bytes<double>(p) : bytes<float>(p);
}

Status local_correlation_forward_cuda(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_pixels(p); !s.ok()) return s;
  if (Status s = check_workspace(workspace, local_correlation_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return forward<T>(p, workspace, stream);
  });
}

}  // namespace cosegflow

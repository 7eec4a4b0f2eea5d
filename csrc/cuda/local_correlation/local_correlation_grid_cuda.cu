// local_correlation without flow, over tiles: workspace and launches.
#include <algorithm>

#include "common/dispatch.h"
#include "local_correlation/local_correlation_common.cuh"
#include "local_correlation/local_correlation_tile_kernel.cuh"

namespace cosegflow::local_correlation_cuda {
namespace {

int64_t tile_blocks(const LocalCorrelationParams& p) {
  const int64_t pieces = (p.side() + TileShape::kShifts - 1) / TileShape::kShifts;
  const int64_t tiles_x = (p.width_a + TileShape::kColumns - 1) / TileShape::kColumns;
  const int64_t tiles_y = (p.height_a + TileShape::kRows - 1) / TileShape::kRows;
  return p.batch * tiles_y * tiles_x * pieces * pieces;
}

template <class T>
Status forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  Arena arena(workspace);
  const Sides<T> sides(p, arena);
  if (Status s = compute_norms(p, sides, stream); !s.ok()) return s;
  const int64_t warps = std::min<int64_t>(p.side(), TileShape::kShifts);
  return launch(&local_correlation_tile_kernel<T>, dim3(static_cast<unsigned>(tile_blocks(p))),
                dim3(static_cast<unsigned>(32 * warps)), 0, stream, p, sides.a, sides.b);
}

}  // namespace

const char* why_not_grid(const LocalCorrelationParams& p) {
  return tile_blocks(p) > INT32_MAX ? "more tiles than a grid has blocks" : nullptr;
}
size_t grid_forward_bytes(const LocalCorrelationParams& p) { return simple_forward_bytes(p); }
size_t grid_backward_bytes(const LocalCorrelationParams& p) { return simple_backward_bytes(p); }
Status grid_forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return forward<T>(p, workspace, stream);
  });
}
Status grid_backward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return simple_backward(p, workspace, stream);
}

}  // namespace cosegflow::local_correlation_cuda

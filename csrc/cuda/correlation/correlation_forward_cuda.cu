// correlation forward on CUDA: workspace, dispatch and launches.
#include <algorithm>
#include <type_traits>

#include "common/arena.h"
#include "common/dispatch.h"
#include "correlation/correlation_dispatch.cuh"
#include "correlation/correlation_forward_kernels.cuh"
#include "correlation/correlation_simple_kernels.cuh"

namespace cosegflow {
namespace {

using namespace correlation_cuda;

template <class T>
struct Workspace {
  PackedSide<T> a, b;
  size_t bytes;
  Workspace(const CorrelationParams& p, void* base) {
    Arena arena(base);
    if (why_not_fast(p) == nullptr) {
      a = take_packed_side<T>(arena, p.batch, p.height_a * p.width_a, p.channels);
      b = take_packed_side<T>(arena, p.batch, p.height_b * p.width_b, p.channels);
    }
    bytes = arena.bytes();
  }
};

Status too_large() { return Status{"correlation: the volume is too large for one launch"}; }

template <class T>
Status launch_fast(const CorrelationParams& p, void* workspace, Stream stream) {
  const Workspace<T> w(p, workspace);
  if (Status s = pack(w.a, p.fa, View3{}, p.width_a, p.normalize, stream); !s.ok()) return s;
  if (Status s = pack(w.b, p.fb, View3{}, p.width_b, p.normalize, stream); !s.ok()) return s;
  const int64_t rows = w.a.positions, cols = w.b.positions;
  T* const corr = static_cast<T*>(p.corr);
  const bool vectors = reinterpret_cast<uintptr_t>(corr) % 16 == 0 && cols * sizeof(T) % 16 == 0;
  ForwardArgs<T> args{w.a, w.b, corr, p.relu, vectors, 1, 1};
  if constexpr (sizeof(T) == 2) {
    using Mma = MmaTileProduct<T>;
    const int64_t row_tiles = (rows + Mma::kRows - 1) / Mma::kRows, col_tiles = (cols + Mma::kCols - 1) / Mma::kCols;
    // Long strips keep the pipeline full, but first there must be work for every SM (two blocks each, about 130).
    const int64_t strip =
        std::clamp<int64_t>(p.batch * row_tiles * col_tiles / 512, 1, std::min<int64_t>(8, col_tiles));
    args.strip = static_cast<int>(strip);
    args.strips = static_cast<int>((col_tiles + strip - 1) / strip);
    const int64_t blocks = p.batch * row_tiles * args.strips;
    if (blocks > INT32_MAX) return too_large();
    return launch(&correlation_mma_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(Mma::kThreads),
                  Mma::kSharedBytes, stream, args);
  } else {
    using Tile = score_tile_t<T>;
    const int64_t blocks =
        p.batch * ((rows + Tile::kRows - 1) / Tile::kRows) * ((cols + Tile::kCols - 1) / Tile::kCols);
    if (blocks > INT32_MAX) return too_large();
    return launch(&correlation_fma_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
  }
}

template <class T>
Status launch_simple(const CorrelationParams& p, Stream stream) {
  const Side a{p.fa, p.height_a, p.width_a}, b{p.fb, p.height_b, p.width_b};
  const int64_t blocks = (p.batch * a.positions() * b.positions() + 255) / 256;
  if (blocks > INT32_MAX) return too_large();
  return launch(&correlation_simple_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, p, a, b);
}

}  // namespace

size_t correlation_forward_workspace_bytes_cuda(const CorrelationParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  switch (p.fa.dtype) {
    case DType::kFloat64: return Workspace<double>(p, nullptr).bytes;
    case DType::kFloat32: return Workspace<float>(p, nullptr).bytes;
    default: return Workspace<Half>(p, nullptr).bytes;
  }
}

Status correlation_forward_cuda(const CorrelationParams& p, void* workspace, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, correlation_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  const bool fast = takes_fast(p, "correlation");
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return fast ? launch_fast<T>(p, workspace, stream) : launch_simple<T>(p, stream);
  });
}

}  // namespace cosegflow

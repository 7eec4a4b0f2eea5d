// correlation forward on CUDA: which kernels a call takes, and the workspace and launches of those that are portable.
#include <algorithm>
#include <type_traits>

#include "common/arena.h"
#include "common/dispatch.h"
#include "common/log.h"
#include "correlation/correlation_dispatch.cuh"
#include "correlation/correlation_forward_kernels.cuh"
#include "correlation/correlation_simple_kernels.cuh"
#include "hopper/eligibility.cuh"

namespace cosegflow {
namespace {

using namespace correlation_cuda;

// The kernels that a forward takes.
enum class Path { kHopper, kTiled, kSimple };
Path path_of(const CorrelationParams& p) {
  if (hopper::why_not(p, compute_capability()) == nullptr) return Path::kHopper;
  return why_not_fast(p) == nullptr ? Path::kTiled : Path::kSimple;
}

void log_forward(const CorrelationParams& p, Path path) {
  if (!log_wanted()) return;
  switch (path) {
    case Path::kHopper: return log_path("correlation", "Hopper kernels (wgmma, TMA)", nullptr);
    case Path::kTiled:
      return log_path("correlation", multiplies_halves(p) ? "portable kernels (mma.sync)" : "portable kernels (FMA)",
                      hopper::why_not(p, compute_capability()));
    case Path::kSimple: return log_path("correlation", "simple kernels", why_not_fast(p));
  }
}

// T is what is multiplied: the features' type, or the bfloat16 terms of float32.
template <class T>
struct TiledSpace {
  using Side = std::conditional_t<sizeof(T) == 2, TileSide<T>, PackedSide<T>>;
  Side a, b;
  size_t bytes;
  TiledSpace(const CorrelationParams& p, void* base) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    if constexpr (sizeof(T) == 2) {
      a = take_tile_side<T>(arena, p.batch, na, p.channels, terms_of(p.fa.dtype, p.precision));
      b = take_tile_side<T>(arena, p.batch, nb, p.channels, terms_of(p.fa.dtype, p.precision));
    } else {
      a = take_packed_side<T>(arena, p.batch, na, p.channels);
      b = take_packed_side<T>(arena, p.batch, nb, p.channels);
    }
    bytes = arena.bytes();
  }
};

Status too_large() { return Status{"correlation: the volume is too large for one launch"}; }

template <class Out>
bool vector_rows(const CorrelationParams& p) {
  return reinterpret_cast<uintptr_t>(p.corr) % 16 == 0 && p.height_b * p.width_b * sizeof(Out) % 16 == 0;
}

template <class T, class Out>
Status launch_mma(const CorrelationParams& p, void* workspace, Stream stream) {
  using Mma = MmaTileProduct<T>;
  const TiledSpace<T> w(p, workspace);
  const Status packed = pack_tiles<T>({p.fa, View3{}, p.width_a, p.height_a, p.normalize, SplitRole::kFirst},
                                      {p.fb, View3{}, p.width_b, p.height_b, p.normalize, SplitRole::kSecond}, w.a, w.b,
                                      PackExtras{}, stream);
  if (!packed.ok()) return packed;
  const int64_t row_tiles = ceil_div(w.a.positions, Mma::kRows), col_tiles = ceil_div(w.b.positions, Mma::kCols);
  // Long strips keep the pipeline full, but first there must be work for every SM (two blocks each, about 130).
  const int64_t strip = std::clamp<int64_t>(p.batch * row_tiles * col_tiles / 512, 1, std::min<int64_t>(8, col_tiles));
  const int64_t strips = ceil_div(col_tiles, strip), blocks = p.batch * row_tiles * strips;
  if (blocks > INT32_MAX) return too_large();
  const MmaArgs<T, Out> args{w.a,
                             w.b,
                             static_cast<Out*>(p.corr),
                             p.relu,
                             vector_rows<Out>(p),
                             static_cast<int>(strip),
                             static_cast<int>(strips)};
  return launch(&correlation_mma_kernel<T, Out>, dim3(static_cast<unsigned>(blocks)), dim3(Mma::kThreads),
                Mma::kSharedBytes, stream, args);
}

template <class T>
Status launch_fma(const CorrelationParams& p, void* workspace, Stream stream) {
  using Tile = score_tile_t<T>;
  const TiledSpace<T> w(p, workspace);
  if (Status s = pack(w.a, p.fa, View3{}, p.width_a, p.normalize, stream); !s.ok()) return s;
  if (Status s = pack(w.b, p.fb, View3{}, p.width_b, p.normalize, stream); !s.ok()) return s;
  const int64_t blocks = p.batch * ceil_div(w.a.positions, Tile::kRows) * ceil_div(w.b.positions, Tile::kCols);
  if (blocks > INT32_MAX) return too_large();
  const FmaArgs<T> args{w.a, w.b, static_cast<T*>(p.corr), p.relu, vector_rows<T>(p)};
  return launch(&correlation_fma_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
}

size_t tiled_bytes(const CorrelationParams& p) {
  if (multiplies_halves(p)) return TiledSpace<BFloat16>(p, nullptr).bytes;
  return p.fa.dtype == DType::kFloat64 ? TiledSpace<double>(p, nullptr).bytes : TiledSpace<float>(p, nullptr).bytes;
}

Status tiled_forward(const CorrelationParams& p, void* workspace, Stream stream) {
  switch (p.fa.dtype) {
    case DType::kFloat16: return launch_mma<Half, Half>(p, workspace, stream);
    case DType::kBFloat16: return launch_mma<BFloat16, BFloat16>(p, workspace, stream);
    case DType::kFloat64: return launch_fma<double>(p, workspace, stream);
    default:
      return multiplies_halves(p) ? launch_mma<BFloat16, float>(p, workspace, stream)
                                  : launch_fma<float>(p, workspace, stream);
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
  switch (path_of(p)) {
    case Path::kHopper: return hopper_forward_bytes(p);
    case Path::kTiled: return tiled_bytes(p);
    case Path::kSimple: return 0;
  }
  return 0;
}

Status correlation_forward_cuda(const CorrelationParams& p, void* workspace, Stream stream) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, correlation_forward_workspace_bytes_cuda(p)); !s.ok()) return s;
  const Path path = path_of(p);
  log_forward(p, path);
  switch (path) {
    case Path::kHopper: return hopper_forward(p, workspace, stream);
    case Path::kTiled: return tiled_forward(p, workspace, stream);
    case Path::kSimple:
      return dispatch_floating(p.fa.dtype,
                               [&](auto tag) { return launch_simple<typename decltype(tag)::type>(p, stream); });
  }
  return {};
}

}  // namespace cosegflow

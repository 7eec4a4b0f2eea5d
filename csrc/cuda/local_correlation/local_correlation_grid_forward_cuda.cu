// local_correlation without flow, forward over tiles: when it serves, workspace and launches.
#include <algorithm>

#include "common/log.h"
#include "local_correlation/local_correlation_forward_fma_kernel.cuh"
#include "local_correlation/local_correlation_forward_mma_kernel.cuh"
#include "local_correlation/local_correlation_grid_launch.cuh"

namespace cosegflow::local_correlation_cuda {
namespace {

template <class T>
struct Workspace {
  Sides<T> sides;
  SidePlanes<T> a, b;

  Workspace(const LocalCorrelationParams& p, Arena& arena)
      : sides(p, arena), a(p, sides.a, false, true, arena), b(p, sides.b, false, true, arena) {}
};

template <class T>
Status forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  Arena arena(workspace);
  const Workspace<T> w(p, arena);
  if (!aligned(w.a) || !aligned(w.b)) {
    log_path("local_correlation", "simple kernels", "features are not aligned to four pixels");
    return simple_forward(p, workspace, stream);
  }
  if (Status s = compute_norms(p, w.sides, stream); !s.ok()) return s;
  Side<T> plain_a = w.sides.a, plain_b = w.sides.b;  // norms are applied to the products
  plain_a.inverse_norm = plain_b.inverse_norm = nullptr;
  if (Status s = pack(p, plain_a, w.a, stream); !s.ok()) return s;
  if (Status s = pack(p, plain_b, w.b, stream); !s.ok()) return s;

  const Pieces pieces{static_cast<int>(p.radius)};
  const WindowOutput<T> output{
      static_cast<T*>(p.out), pieces,           w.sides.a.height,
      w.sides.a.width,        w.sides.b.height, w.sides.b.width,
      w.sides.norm_a,         w.sides.norm_b,   p.width_a % kUnit == 0 && aligned_to_units<T>(p.out)};
  const int64_t of_window = static_cast<int64_t>(pieces.count()) * pieces.count();
  const auto run = [&](auto kernel, int64_t rows, int threads, size_t shared) {
    const int64_t blocks = tiles_of(p.batch, p.height_a, p.width_a, rows) * of_window;
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)), shared, stream,
                  w.a.planes, w.b.planes, p.channels, output);
  };
  // Low tiles where there are too few high ones.
  const bool high = 2 * tiles_of(p.batch, p.height_a, p.width_a, 8) * of_window >= 3 * int64_t{multiprocessors()};
  if constexpr (sizeof(T) == 2) {
    using High = ForwardMma<T, 8>;
    using Low = ForwardMma<T, 2>;
    return high ? run(&local_correlation_forward_mma_kernel<T, 8>, 8, High::kThreads, sizeof(typename High::Shared))
                : run(&local_correlation_forward_mma_kernel<T, 2>, 2, Low::kThreads, sizeof(typename Low::Shared));
  } else {
    constexpr int kPairs = sizeof(T) == 8 ? 2 : 4;  // 72 sums of float64 leave room for few threads
    using High = ForwardFma<T, kPairs>;
    using Low = ForwardFma<T, 1>;
    return high ? run(&local_correlation_forward_fma_kernel<T, kPairs>, High::kRows, High::kThreads,
                      sizeof(typename High::Shared))
                : run(&local_correlation_forward_fma_kernel<T, 1>, 2, Low::kThreads, sizeof(typename Low::Shared));
  }
}

}  // namespace

const char* why_not_grid(const LocalCorrelationParams& p) {
  if (device_generation() < 8) return "before compute capability 8.0 there is no cp.async and no mma.m16n8k16";
  const Pieces pieces{static_cast<int>(p.radius)};
  const int64_t of_window = static_cast<int64_t>(pieces.count()) * pieces.count();
  const int64_t tiles =
      std::max(tiles_of(p.batch, p.height_a, p.width_a, 2), tiles_of(p.batch, p.height_b, p.width_b, 2));
  if (of_window > INT32_MAX / tiles) return "more tiles than a grid has blocks";
  if (p.height_a * whole_units(p.width_a) > INT32_MAX || p.height_b * whole_units(p.width_b) > INT32_MAX) {
    return "an image has more than 2^31 pixels";
  }
  return nullptr;
}

size_t grid_forward_bytes(const LocalCorrelationParams& p) {
  return std::max(
      workspace_bytes(p, [&](auto tag, Arena& arena) { Workspace<typename decltype(tag)::type>(p, arena); }),
      simple_forward_bytes(p));
}

Status grid_forward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return forward<T>(p, workspace, stream);
  });
}

}  // namespace cosegflow::local_correlation_cuda

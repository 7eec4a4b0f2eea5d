// local_correlation without flow, backward over tiles: workspace and launches. One side after the other, and of each
// one piece of the window after the other.
#include <algorithm>

#include "common/log.h"
#include "local_correlation/local_correlation_backward_fma_kernel.cuh"
#include "local_correlation/local_correlation_backward_mma_kernel.cuh"
#include "local_correlation/local_correlation_grid_launch.cuh"

namespace cosegflow::local_correlation_cuda {
namespace {

// Offsets along one axis that reach a pixel at all are below `size` either way; so pieces first .. end - 1 do.
struct PieceRange {
  int first, end;
  PieceRange(const Pieces& pieces, int64_t size_a, int64_t size_b) : first(0), end(pieces.count()) {
    const int64_t size = std::max(size_a, size_b);
    while (end - first > 1 && pieces.first(first) + kSpan - 1 <= -size) ++first;
    while (end - first > 1 && pieces.first(end - 1) >= size) --end;
  }
};

// What of a piece is in the window and its own: d of begin .. end - 1.
struct Owned {
  int begin = 0, end = kSpan;
  Owned(const Pieces& pieces, int piece) {
    while (begin < end && !pieces.owns(piece, begin)) ++begin;
    while (end > begin && !pieces.owns(piece, end - 1)) --end;
  }
};

template <class T>
struct Workspace {
  using Acc = accumulate_t<T>;
  Sides<T> sides;
  SidePlanes<T> a, b;  // each serves the gradient to the other
  T* grad;             // the 81 planes of a piece, of one side after the other
  Acc* sums = nullptr;

  Workspace(const LocalCorrelationParams& p, Arena& arena)
      : sides(p, arena),
        a(p, sides.a, p.normalize, p.grad_fb.data != nullptr, arena),
        b(p, sides.b, p.normalize, p.grad_fa.data != nullptr, arena) {
    const int64_t row_a = whole_units(p.width_a), row_b = whole_units(p.width_b);
    const int64_t units_a = p.grad_fa.data == nullptr ? 0 : p.height_a * row_a;
    const int64_t units_b = p.grad_fb.data == nullptr ? 0 : p.height_b * row_b;
    grad = arena.take<T>(p.batch * kWindow * std::max(units_a, units_b));
    const int64_t pixels_a = p.grad_fa.data == nullptr ? 0 : sides.a.positions();
    const int64_t pixels_b = p.grad_fb.data == nullptr ? 0 : sides.b.positions();
    if (in_sums(p)) sums = arena.take<Acc>(p.batch * p.channels * std::max(pixels_a, pixels_b));
  }

  // Whether gradients are formed elsewhere than in their place: before the normalization, or, of halves, over pieces.
  static bool in_sums(const LocalCorrelationParams& p) {
    return p.normalize || (sizeof(T) == 2 && Pieces{static_cast<int>(p.radius)}.count() > 1);
  }
};

// grad_out as the planes of fa's only piece, if it has their form.
template <class T>
bool serves_as_planes(const LocalCorrelationParams& p) {
  return p.radius == 4 && made_of_units(p.grad_out, p.batch, kWindow, p.height_a, p.width_a) &&
         aligned_to_units<T>(p.grad_out.data);
}

template <bool kMirrored, class T, class Out>
Status launch_piece(const LocalCorrelationParams& p, const Workspace<T>& w, GradientCall<T, Out> call,
                    const Pieces& pieces, int piece_y, int piece_x, Stream stream) {
  if (!kMirrored && serves_as_planes<T>(p)) {
    call.grad = planes_of<T>(p.grad_out, kWindow, p.height_a, p.width_a);
  } else {
    call.grad = packed_planes<T>(w.grad, kWindow, call.height, call.width);
    const Side<T>& other = kMirrored ? w.sides.a : w.sides.b;
    const GradientSides sizes{call.height, call.width, whole_units(call.width) / kUnit, other.height, other.width};
    const int64_t runs = ceil_div(static_cast<int64_t>(sizes.height) * sizes.units, kThreads);
    if (p.batch * kWindow > INT32_MAX / runs) return {"local_correlation: the tensors are too large for one launch"};
    Status s = launch(&local_correlation_pack_gradient_kernel<T, kMirrored>,
                      dim3(static_cast<unsigned>(p.batch * kWindow * runs)), dim3(kThreads), 0, stream, p, pieces,
                      piece_y, piece_x, sizes, w.grad);
    if (!s.ok()) return s;
  }
  const auto run = [&](auto kernel, int64_t rows, int64_t chunk, int64_t resident, int threads, size_t shared) {
    const int64_t tiles = tiles_of(p.batch, call.height, call.width, rows), chunks = ceil_div(p.channels, chunk);
    // Where there are few tiles, several blocks share one's channels.
    const int64_t wanted = ceil_div(resident * multiprocessors(), tiles);
    const int64_t splits = std::max<int64_t>(1, std::min<int64_t>({wanted, chunks, 65535}));
    call.run = ceil_div(chunks, splits) * chunk;
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(ceil_div(p.channels, call.run)));
    return launch(kernel, grid, dim3(static_cast<unsigned>(threads)), shared, stream, call);
  };
  if constexpr (sizeof(T) == 2) {
    using S = BackwardMma<T>;
    return run(&local_correlation_backward_mma_kernel<T, Out>, S::kRows, S::kChannels, S::kResident, S::kThreads,
               sizeof(typename S::Shared));
  } else {
    using S = BackwardFma<T>;
    return run(&local_correlation_backward_fma_kernel<T>, S::kRows, S::kChannels, S::kResident, S::kThreads,
               sizeof(typename S::Shared));
  }
}

template <bool kMirrored, class T, class Out>
Status launch_pieces(const LocalCorrelationParams& p, const Workspace<T>& w, Out* result, Stream stream) {
  const Side<T>&own = kMirrored ? w.sides.b : w.sides.a, &other = kMirrored ? w.sides.a : w.sides.b;
  GradientCall<T, Out> call{};
  call.other = kMirrored ? w.a.planes : w.b.planes;
  call.height = own.height, call.width = own.width, call.other_width = other.width;
  call.channels = p.channels;
  call.result = result;
  call.units = own.width % kUnit == 0 && aligned_to_units<Out>(result);
  const Pieces pieces{static_cast<int>(p.radius)};
  const PieceRange range_y(pieces, p.height_a, p.height_b), range_x(pieces, p.width_a, p.width_b);
  for (int piece_y = range_y.first; piece_y < range_y.end; ++piece_y) {
    for (int piece_x = range_x.first; piece_x < range_x.end; ++piece_x) {
      const Owned of_y(pieces, piece_y), of_x(pieces, piece_x);
      call.first_y = pieces.first(piece_y), call.first_x = pieces.first(piece_x);
      call.dy_begin = of_y.begin, call.dy_end = of_y.end, call.dx_begin = of_x.begin, call.dx_end = of_x.end;
      if (Status s = launch_piece<kMirrored>(p, w, call, pieces, piece_y, piece_x, stream); !s.ok()) return s;
      call.add = true;
    }
  }
  return {};
}

// kMirrored: the gradient to fb.
template <bool kMirrored, class T>
Status gradient_of_side(const LocalCorrelationParams& p, const Workspace<T>& w, Stream stream) {
  const View4& result = kMirrored ? p.grad_fb : p.grad_fa;
  const Side<T>&own = kMirrored ? w.sides.b : w.sides.a, &other = kMirrored ? w.sides.a : w.sides.b;
  if (Status s = pack(p, other, kMirrored ? w.a : w.b, stream); !s.ok()) return s;
  if (w.sums == nullptr) return launch_pieces<kMirrored>(p, w, static_cast<T*>(result.data), stream);
  if (Status s = launch_pieces<kMirrored>(p, w, w.sums, stream); !s.ok()) return s;
  return finish_gradient(p, own, w.sums, result, stream);
}

template <class T>
Status backward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  Arena arena(workspace);
  const Workspace<T> w(p, arena);
  const bool need_a = p.grad_fa.data != nullptr, need_b = p.grad_fb.data != nullptr;
  if ((need_b && !aligned(w.a)) || (need_a && !aligned(w.b))) {
    log_path("local_correlation", "simple kernels", "features are not aligned to four pixels");
    return simple_backward(p, workspace, stream);
  }
  if (Status s = compute_norms(p, w.sides, stream); !s.ok()) return s;
  if (need_a) {
    if (Status s = gradient_of_side<false>(p, w, stream); !s.ok()) return s;
  }
  return need_b ? gradient_of_side<true>(p, w, stream) : Status{};
}

}  // namespace

size_t grid_backward_bytes(const LocalCorrelationParams& p) {
  return std::max(
      workspace_bytes(p, [&](auto tag, Arena& arena) { Workspace<typename decltype(tag)::type>(p, arena); }),
      simple_backward_bytes(p));
}

Status grid_backward(const LocalCorrelationParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return backward<T>(p, workspace, stream);
  });
}

}  // namespace cosegflow::local_correlation_cuda

// correlation backward on Hopper, of halves: both products in one launch (hopper/gradient_product.cuh), whose ds is the
// gradient of the volume.
//
// Where rows of it are aligned to 16 bytes and nothing was clipped, TMA reads the gradient that the caller gave, and
// all images go at once. Else correlation_gate_kernel writes a group of images of it, or a run of rows of one image, in
// rows that TMA can read (hopper/gradient_plan.cuh says how many), and 0 where relu clipped.
// The products take rows of norm 1, rounded to their type (normalize_rows.cuh): the factor 1 / norm can be put nowhere
// else, since the gradient of the volume is given. normalize_backward.cuh adds the partial sums.
//
// correlation_gate_kernel: a warp takes 512 (kWidth 1: 256) columns of a row, a thread 2 x 16, 8 x 4 or 8 x 2 bytes of
//   both volumes, as they are aligned, all of them on their way before the first is used. No shared memory. Moves
//   4 Nb bytes of a row in, without relu 2, and 2 Nb out: bound by memory. What is read comes once and is evicted
//   first; what is written is read by the products, from L2 as far as it fits. Fraction of the bandwidth reached: not
//   measured yet.
#include <algorithm>
#include <climits>

#include "common/arena.h"
#include "correlation/correlation_dispatch.cuh"
#include "entry_checks.cuh"
#include "gradient_product_mma.cuh"
#include "hopper/gradient_plan.cuh"
#include "hopper/operands.cuh"
#include "normalize_backward.cuh"
#include "normalize_rows.cuh"
#include "pack_tiles.cuh"

namespace cosegflow::correlation_cuda {
namespace {

using hopper::GradientPlan;
using hopper::GradientProductArgs;
using hopper::kDepth;

constexpr int kGateThreads = 256, kGateWarps = kGateThreads / 32;

// kWidth neighbours of 16 bits that are loaded as one.
template <int kWidth>
struct Neighbours;
template <>
struct Neighbours<8> {
  using Type = uint4;
  static constexpr int kLoads = 2;
};
template <>
struct Neighbours<2> {
  using Type = uint32_t;
  static constexpr int kLoads = 8;
};
template <>
struct Neighbours<1> {
  using Type = uint16_t;
  static constexpr int kLoads = 8;
};
template <int kWidth>
constexpr int kSpan = Neighbours<kWidth>::kLoads * 32 * kWidth;  // columns of a warp

template <class T>
struct GateArgs {
  const T *grad, *corr;                     // (images, image_rows, columns), from the first row on; corr may be null
  T* ds;                                    // (images, rows, pitch)
  int64_t images, rows, image_rows, pitch;  // rows: of each image
  int64_t columns, padded_columns;          // zeros up to padded_columns, a multiple of 64, at most the pitch
  int* live;                                // null, or gets `rows`
};

template <class T>
__device__ __forceinline__ uint4 gate_of(uint4 g, uint4 c) {
  using gradient_product_mma::gated;
  return make_uint4(gated(g.x, c.x, T{}), gated(g.y, c.y, T{}), gated(g.z, c.z, T{}), gated(g.w, c.w, T{}));
}
template <class T>
__device__ __forceinline__ uint32_t gate_of(uint32_t g, uint32_t c) {
  return gradient_product_mma::gated(g, c, T{});
}
template <class T>
__device__ __forceinline__ uint16_t gate_of(uint16_t g, uint16_t c) {
  return static_cast<uint16_t>(gradient_product_mma::gated(uint32_t{g}, uint32_t{c}, T{}));
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kGateThreads) correlation_gate_kernel(const __grid_constant__ GateArgs<T> args) {
  using Vector = typename Neighbours<kWidth>::Type;
  constexpr int kLoads = Neighbours<kWidth>::kLoads;
  if (blockIdx.x == 0 && threadIdx.x == 0 && args.live != nullptr) *args.live = static_cast<int>(args.rows);
  const int64_t pieces = (args.padded_columns + kSpan<kWidth> - 1) / kSpan<kWidth>;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kGateWarps + threadIdx.x / 32;
  const int64_t line = warp / pieces, image = line / args.rows;  // of ds
  if (image >= args.images) return;
  const int64_t from = (image * args.image_rows + (line - image * args.rows)) * args.columns;
  const int64_t first = (warp - line * pieces) * kSpan<kWidth> + threadIdx.x % 32 * kWidth;
  Vector grad[kLoads], corr[kLoads];
#pragma unroll
  for (int n = 0; n < kLoads; ++n) {
    const int64_t column = first + n * 32 * kWidth;
    grad[n] = Vector{};
    if (column < args.columns) grad[n] = __ldcs(reinterpret_cast<const Vector*>(args.grad + from + column));
  }
  if (args.corr != nullptr) {
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const int64_t column = first + n * 32 * kWidth;
      corr[n] = Vector{};
      if (column < args.columns) corr[n] = __ldcs(reinterpret_cast<const Vector*>(args.corr + from + column));
    }
#pragma unroll
    for (int n = 0; n < kLoads; ++n) grad[n] = gate_of<T>(grad[n], corr[n]);
  }
#pragma unroll
  for (int n = 0; n < kLoads; ++n) {
    const int64_t column = first + n * 32 * kWidth;
    if (column < args.padded_columns) {
      *reinterpret_cast<Vector*>(args.ds + line * args.pitch + column) = grad[n];
    }
  }
}

template <class T, int kWidth>
Status launch_gate_of(const GateArgs<T>& args, Stream stream) {
  const int64_t warps = args.images * args.rows * ceil_div(args.padded_columns, kSpan<kWidth>);
  const int64_t blocks = ceil_div(warps, kGateWarps);
  if (blocks > INT_MAX) return {"correlation: a chunk of the volume is too large for one launch"};
  return launch(&correlation_gate_kernel<T, kWidth>, dim3(static_cast<unsigned>(blocks)), dim3(kGateThreads), 0, stream,
                args);
}
// By the widest vectors to which both volumes are aligned.
template <class T>
Status launch_gate(const GateArgs<T>& args, Stream stream) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(args.grad) | reinterpret_cast<uintptr_t>(args.corr) |
                         static_cast<uintptr_t>(args.columns * 2);
  if (bits % 16 == 0) return launch_gate_of<T, 8>(args, stream);
  return bits % 4 == 0 ? launch_gate_of<T, 2>(args, stream) : launch_gate_of<T, 1>(args, stream);
}

// Whether TMA can read the gradient of the volume as it lies.
bool reads_volume(const CorrelationParams& p) {
  return !p.relu && reinterpret_cast<uintptr_t>(p.grad_corr) % 16 == 0 && p.height_b * p.width_b % 8 == 0;
}

// Where the volume's gradient is read as it lies: as many images at a time as the gradients of their features, in
// float32, take 256 MiB, in groups of about the same size.
GradientPlan whole_plan(int64_t batch, int64_t na, int64_t nb, int64_t channels) {
  constexpr int64_t kMostBytes = int64_t{256} << 20;
  const int64_t fit = std::max<int64_t>(1, kMostBytes / ((na + nb) * channels * 4));
  GradientPlan plan{};
  plan.images = ceil_div(batch, ceil_div(batch, fit));
  plan.rows = plan.row_room = na, plan.chunks = 1, plan.pitch = nb;
  choose_splits(plan, nb, channels, multiprocessors());
  return plan;
}

template <class T>
struct BackwardSpace {
  bool whole;  // the volume's gradient is read as it lies
  GradientPlan plan;
  TileSide<T> a, b;
  T* ds = nullptr;                                               // (plan.images, rows of a chunk, plan.pitch)
  int* live = nullptr;                                           // where an image has several runs of rows
  T *unit_a = nullptr, *unit_b = nullptr;                        // features of norm 1, of a group; null: `features` do
  float *out_a = nullptr, *out_b = nullptr, *parts_a = nullptr;  // of the products
  size_t bytes;

  BackwardSpace(const CorrelationParams& p, void* base) : whole(reads_volume(p)) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    plan = whole ? whole_plan(p.batch, na, nb, p.channels)
                 : hopper::gradient_plan(p.batch, na, nb, p.channels, p.chunk_bytes, multiprocessors());
    a = take_tile_side<T>(arena, p.batch, na, p.channels, 1);
    b = take_tile_side<T>(arena, p.batch, nb, p.channels, 1);
    if (!whole) ds = arena.take<T>(plan.images * plan.rows * plan.pitch);
    if (plan.chunks > 1) live = arena.take<int>(1);
    if (p.grad_fa.data != nullptr) {
      if (p.normalize) unit_b = arena.take<T>(plan.images * nb * b.depth);
      out_a = arena.take<float>(plan.images * na * p.channels * (plan.chunks > 1 ? 1 : plan.splits_a));
      if (plan.parted_rows()) parts_a = arena.take<float>(plan.rows * p.channels * plan.splits_a);
    }
    if (p.grad_fb.data != nullptr) {
      if (p.normalize) unit_a = arena.take<T>(plan.images * na * a.depth);
      out_b = arena.take<float>(plan.images * nb * p.channels * plan.splits_b);
    }
    bytes = arena.bytes();
  }
};

// Rows [row, row + rows) of images [b0, b0 + images).
template <class T>
struct Chunk {
  int64_t b0, images, row, rows;
  TileSide<T> a, b;  // of these images
};

// ds of a chunk: the caller's, or what the gate kernel leaves.
template <class T>
Status volume_gradient(const CorrelationParams& p, const BackwardSpace<T>& w, const Chunk<T>& c, const T*& ds,
                       Stream stream) {
  const int64_t nb = c.b.positions, from = (c.b0 * c.a.positions + c.row) * nb;
  const T* const grad = static_cast<const T*>(p.grad_corr) + from;
  ds = w.whole ? grad : w.ds;
  if (w.whole) return {};
  GateArgs<T> args{};
  args.grad = grad, args.corr = p.relu ? static_cast<const T*>(p.corr) + from : nullptr;
  args.ds = w.ds, args.pitch = w.plan.pitch;
  args.images = c.images, args.rows = c.rows, args.image_rows = c.a.positions;
  args.columns = nb, args.padded_columns = round_up(nb, kDepth);
  args.live = w.live;
  return launch_gate(args, stream);
}

template <class T>
Status chunk_products(const CorrelationParams& p, const BackwardSpace<T>& w, const Chunk<T>& c, Stream stream) {
  const int64_t na = c.a.positions, nb = c.b.positions;
  const int* const live = w.live == nullptr ? c.a.count : w.live;
  GradientProductArgs<T> args;
  if (Status s = volume_gradient(p, w, c, args.ds, stream); !s.ok()) return s;
  // Beyond its rows, and where it is the caller's beyond its columns, TMA reads zeros.
  args.images = c.images, args.row_room = c.rows, args.pitch = w.plan.pitch;
  args.features_a = w.unit_a == nullptr ? c.a.features : w.unit_a;
  args.features_b = w.unit_b == nullptr ? c.b.features : w.unit_b;
  args.feature_rows_a = na, args.feature_rows_b = nb, args.feature_depth = c.a.depth;
  args.channels = p.channels;
  args.a.rows = live, args.a.depth = c.b.count, args.a.row_bound = c.rows, args.a.splits = w.plan.splits_a;
  float* const out_a = w.out_a == nullptr ? nullptr : w.out_a + c.row * p.channels;
  if (w.parts_a == nullptr) {
    args.a.out = out_a, args.a.out_rows = na, args.a.partial = c.images * na * p.channels;
  } else {
    args.a.out = w.parts_a, args.a.out_rows = w.plan.rows, args.a.partial = w.plan.rows * p.channels;
  }
  args.b.rows = c.b.count, args.b.depth = live, args.b.row_bound = nb, args.b.splits = w.plan.splits_b;
  args.b.first_depth = static_cast<int>(c.row), args.b.accumulate = c.row > 0;
  args.b.out = w.out_b, args.b.out_rows = nb, args.b.partial = c.images * nb * p.channels;
  if (Status s = launch_gradient_products(args, stream); !s.ok()) return s;
  if (w.parts_a == nullptr) return {};
  const hopper::PartsArgs parts{w.parts_a, w.plan.splits_a, args.a.partial, live, c.rows, p.channels, out_a};
  return launch_add_parts(parts, stream);
}

// The gradient of images [b0, b0 + side.batch), whose side this is.
template <class T>
Status features_gradient(const CorrelationParams& p, const TileSide<T>& side, const float* g, int64_t parts,
                         const View4& grad, int64_t b0, Stream stream) {
  if (grad.data == nullptr) return {};
  NormalizeBackwardArgs<T> args;
  args.batch = side.batch, args.positions = side.positions;
  args.channels = p.channels, args.padded_channels = side.depth;
  args.normalize = p.normalize;
  args.grad_f_hat = g, args.partials = parts, args.partial_stride = side.batch * side.positions * p.channels;
  args.features = side.features;
  args.inv_norm = &side.scale->inv_norm, args.inv_norm_pitch = side.pitch, args.inv_norm_stride = 2;
  args.grad = static_cast<T*>(grad.data) + b0 * p.channels * side.positions;
  return launch_normalize_backward(args, stream);
}

template <class T>
Status group_gradients(const CorrelationParams& p, const BackwardSpace<T>& w, int64_t b0, int64_t images,
                       Stream stream) {
  const TileSide<T> a = w.a.some_images(b0, images), b = w.b.some_images(b0, images);
  if (Status s = normalize_rows(a, w.unit_a, stream); !s.ok()) return s;
  if (Status s = normalize_rows(b, w.unit_b, stream); !s.ok()) return s;
  for (int64_t row = 0; row < a.positions; row += w.plan.rows) {
    const Chunk<T> chunk{b0, images, row, std::min(w.plan.rows, a.positions - row), a, b};
    if (Status s = chunk_products(p, w, chunk, stream); !s.ok()) return s;
  }
  const int64_t parts_a = w.plan.chunks > 1 ? 1 : w.plan.splits_a;
  if (Status s = features_gradient(p, a, w.out_a, parts_a, p.grad_fa, b0, stream); !s.ok()) return s;
  return features_gradient(p, b, w.out_b, w.plan.splits_b, p.grad_fb, b0, stream);
}

template <class T>
Status backward(const CorrelationParams& p, void* workspace, Stream stream) {
  const BackwardSpace<T> w(p, workspace);
  const Status packed = pack_tiles<T>({p.fa, View3{}, p.width_a, p.height_a, p.normalize, SplitRole::kFirst},
                                      {p.fb, View3{}, p.width_b, p.height_b, p.normalize, SplitRole::kSecond}, w.a, w.b,
                                      PackExtras{}, stream);
  if (!packed.ok()) return packed;
  for (int64_t b0 = 0; b0 < p.batch; b0 += w.plan.images) {
    const int64_t images = std::min(w.plan.images, p.batch - b0);
    if (Status s = group_gradients(p, w, b0, images, stream); !s.ok()) return s;
  }
  return {};
}

}  // namespace

size_t hopper_backward_bytes(const CorrelationParams& p) {
  return hopper::dispatch_packed(p, [&](auto t) { return BackwardSpace<decltype(t)>(p, nullptr).bytes; });
}

Status hopper_backward(const CorrelationParams& p, void* workspace, Stream stream) {
  return hopper::dispatch_packed(p, [&](auto t) { return backward<decltype(t)>(p, workspace, stream); });
}

}  // namespace cosegflow::correlation_cuda

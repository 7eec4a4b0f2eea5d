// match backward, the tiled path. Chunks of rows whose scores fit the workspace (whole images where several fit):
//   scores recomputed and turned into ds on the fly (match_score_gradient_kernel.cuh);
//   grad_a_hat = ds b_hat for the rows of the chunk; grad_b_hat += ds^T a_hat, chunks in order. Halves are multiplied
//   by tensor cores (gradient_product_mma.cuh), float32 and float64 by FMAs (product_cuda.cuh).
// When all rows of the images of a chunk are through, normalize_backward.cuh takes the gradients of normalized rows to
// the raster; in the end match_mask_gradient.cuh adds up what the mask and beta get. The one atomic is a maximum, and
// sums have one order: the bits are the same on every run.
//
// match_bound_kernel (float16): a thread a row of a reads 3 numbers of the raster, for the scale of ds.
#include "common/chunk_bytes.h"
#include "common/dispatch.h"
#include "entry_checks.cuh"
#include "gradient_product_mma.cuh"
#include "half_gradient.cuh"
#include "match/match_common.cuh"
#include "match/match_mask_gradient.cuh"
#include "normalize_backward.cuh"
#include "normalize_rows.cuh"
#include "product_cuda.cuh"

namespace cosegflow::match_cuda {
namespace {

constexpr size_t kDefaultChunkBytes = size_t{64} << 20;

// ds is at most |beta| (|g_x| W + |g_y| H + |g_lse|): the largest of each image goes to bound (B), 0 before, as bits.
__global__ void __launch_bounds__(256)
    match_bound_kernel(PackedSide<Half> a, int width_a, float width_b, float height_b, View1 beta, View4 grad_flow,
                       View3 grad_lse, int* bounds) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t b = i / a.positions;
  float bound = -1.0f;
  if (b < a.batch && i % a.positions < a.count[b]) {
    const int64_t y = a.index[i] / width_a, x = a.index[i] % width_a;
    const auto magnitude = [&](const void* data, int64_t at) {
      return data == nullptr ? 0.0f : fabsf(static_cast<const float*>(data)[at]);
    };
    const int64_t flow = b * grad_flow.stride[0] + y * grad_flow.stride[2] + x * grad_flow.stride[3];
    const int64_t lse = b * grad_lse.stride[0] + y * grad_lse.stride[1] + x * grad_lse.stride[2];
    bound = magnitude(beta.data, b * beta.stride[0]) *
            (magnitude(grad_flow.data, flow) * width_b +
             magnitude(grad_flow.data, flow + grad_flow.stride[1]) * height_b + magnitude(grad_lse.data, lse));
  }
  raise_bound(bounds, b, bound);
}

// How many parts the targets are split into, so that blocks of two an SM, which take their tiles in turn, are done
// soonest. A block costs about half a tile beside its tiles.
inline int choose_even_splits(int64_t row_blocks, int64_t column_tiles) {
  const int64_t slots = 2 * multiprocessors(), blocks = row_blocks < 1 ? 1 : row_blocks;
  int64_t best = 1, least = INT64_MAX;
  for (int64_t splits = 1; splits <= column_tiles && (splits == 1 || splits * blocks <= 4 * slots); ++splits) {
    const int64_t each = ceil_div(column_tiles, splits);
    const int64_t time = ceil_div(blocks * ceil_div(column_tiles, each), slots) * (2 * each + 1);
    if (time < least) least = time, best = splits;
  }
  return static_cast<int>(best);
}

template <class T>
struct BackwardSpace {
  using Acc = accumulate_t<T>;
  static constexpr bool kHalf = sizeof(T) == 2;
  PackedSide<T> a, b;
  int64_t images, rows, row_tiles, pitch;  // of a chunk
  int splits_a = 1, splits_b = 1;          // partial sums of the products
  T* dscore;
  int* bound = nullptr;      // (B) and
  float* unscale = nullptr;  // (B): see half_gradient.cuh
  Acc* columns = nullptr;
  Acc* sums = nullptr;
  // Of the images of a chunk:
  T *unit_a = nullptr, *unit_b = nullptr;    // features of norm 1, where products need them
  Acc *grad_a = nullptr, *grad_b = nullptr;  // of normalized, compact rows: (splits, images, positions, C)
  Acc* parts_a = nullptr;  // (splits_a, rows, C), where the chunk is not the whole image; grad_a then is one sum
  size_t bytes;

  BackwardSpace(const MatchParams& p, void* base) {
    using Tile = TileExtent<T>;
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    pitch = ceil_div(nb, Tile::kCols) * Tile::kCols;
    const int64_t row_bytes = pitch * static_cast<int64_t>(sizeof(T));
    const size_t wanted = chunk_bytes_of(p.chunk_bytes);
    const int64_t fit = static_cast<int64_t>(wanted == 0 ? kDefaultChunkBytes : wanted) / row_bytes;
    images = fit >= na ? (fit / na < p.batch ? fit / na : p.batch) : 1;
    rows = fit >= na ? na : (fit < 1 ? 1 : fit);
    if (wanted == 0 && rows < Tile::kRows) rows = na < Tile::kRows ? na : Tile::kRows;  // no tile runs half empty
    if (rows < na && rows > Tile::kRows) rows = rows / Tile::kRows * Tile::kRows;
    row_tiles = ceil_div(rows, Tile::kRows);
    if constexpr (kHalf) {
      splits_a = choose_product_splits<T>(images, rows, p.channels, nb);
      splits_b = choose_product_splits<T>(images, nb, p.channels, rows);
    }

    Arena arena(base);
    a = take_packed_side<T>(arena, p.batch, na, p.channels);
    b = take_packed_side<T>(arena, p.batch, nb, p.channels);
    dscore = arena.take<T>(images * rows * pitch);
    if (std::is_same<T, Half>::value) bound = arena.take<int>(p.batch), unscale = arena.take<float>(p.batch);
    if (p.grad_mask_b.data != nullptr || p.grad_beta.data != nullptr) {
      columns = arena.take<Acc>(images * row_tiles * 2 * pitch);
      sums = arena.take<Acc>(p.batch * 2 * pitch);
    }
    const bool unit = kHalf && !kFolded<T> && p.normalize;
    if (p.grad_fa.data != nullptr) {
      grad_a = arena.take<Acc>((rows < na ? 1 : splits_a) * images * na * p.channels);
      if (rows < na && splits_a > 1) parts_a = arena.take<Acc>(splits_a * rows * p.channels);
      if (unit) unit_b = arena.take<T>(images * nb * b.padded_channels);
    }
    if (p.grad_fb.data != nullptr) {
      grad_b = arena.take<Acc>(splits_b * images * nb * p.channels);
      if (unit) unit_a = arena.take<T>(images * na * a.padded_channels);
    }
    bytes = arena.bytes();
  }

  // Image b0 and those that share its chunk.
  PackedSide<T> group(const PackedSide<T>& side, int64_t b0) const {
    PackedSide<T> some = side.from_image(b0);
    if (images < some.batch) some.batch = images;
    return some;
  }
};

// The two products of one chunk: rows [row_begin, row_begin + rows) of the images of a and b.
template <class T>
Status chunk_products(const MatchParams& p, const BackwardSpace<T>& w, const PackedSide<T>& a, const PackedSide<T>& b,
                      int64_t row_begin, int64_t rows, Stream stream) {
  ProductArgs<T> args;
  args.batch = a.batch;
  args.channels = p.channels, args.padded_channels = a.padded_channels;
  const auto product = [&](auto transposed, [[maybe_unused]] const ProductSplits& splits) {
    constexpr bool kTransposed = decltype(transposed)::value;
    if constexpr (sizeof(T) == 2) {
      const HalfLhs<T> dscore{w.dscore, w.pitch, rows * w.pitch};
      if (!kTransposed && w.parts_a != nullptr) {
        return launch_gradient_product_in_parts<kTransposed>(args, dscore, w.parts_a, splits.count, stream);
      }
      return launch_gradient_product<kTransposed>(args, dscore, stream, splits);
    } else {
      return launch_gradient_product<kTransposed>(args, MatrixLhs<T>{w.dscore, w.pitch, rows * w.pitch}, stream);
    }
  };
  const bool scaled = sizeof(T) > 2 && p.normalize;
  if (w.grad_a != nullptr) {
    args.rows = rows, args.row_begin = row_begin, args.row_count = a.count;
    args.depth = b.positions, args.depth_begin = 0, args.depth_count = b.count;
    args.rhs = w.unit_b == nullptr ? b.features : w.unit_b, args.rhs_rows = b.positions;
    args.scale = scaled ? b.inv_norm : nullptr;
    args.out = w.grad_a, args.out_rows = a.positions;
    args.accumulate = false;
    const ProductSplits splits{w.splits_a, a.batch * a.positions * p.channels};
    if (Status s = product(std::false_type{}, splits); !s.ok()) return s;
  }
  if (w.grad_b == nullptr) return {};
  args.rows = b.positions, args.row_begin = 0, args.row_count = b.count;
  args.depth = rows, args.depth_begin = row_begin, args.depth_count = a.count;
  args.rhs = w.unit_a == nullptr ? a.features : w.unit_a, args.rhs_rows = a.positions;
  args.scale = scaled ? a.inv_norm : nullptr;
  args.out = w.grad_b, args.out_rows = b.positions;
  args.accumulate = row_begin > 0;
  return product(std::true_type{}, {w.splits_b, b.batch * b.positions * p.channels});
}

template <class T>
Status chunk(const MatchParams& p, const BackwardSpace<T>& w, int64_t b0, int64_t row_begin, Stream stream) {
  using Acc = accumulate_t<T>;
  const int64_t rows = w.rows < w.a.positions - row_begin ? w.rows : w.a.positions - row_begin;
  GradientArgs<T> args;
  args.a = w.group(w.a, b0), args.b = w.group(w.b, b0);
  const int64_t images = args.a.batch;
  args.width_a = static_cast<int>(p.width_a);
  args.width_b = static_cast<int>(p.width_b), args.height_b = static_cast<int>(p.height_b);
  args.beta = from_image(p.beta, b0);
  args.flow = from_image(p.flow, b0), args.grad_flow = from_image(p.grad_flow, b0);
  args.lse = from_image(p.lse, b0), args.grad_lse = from_image(p.grad_lse, b0);
  args.row_begin = static_cast<int>(row_begin), args.rows = static_cast<int>(rows);
  args.row_tiles = static_cast<int>(ceil_div(rows, TileExtent<T>::kRows));
  const int64_t row_blocks = images * args.row_tiles, column_tiles = w.pitch / TileExtent<T>::kCols;
  args.splits =
      w.kHalf ? choose_even_splits(row_blocks, column_tiles) : choose_splits(row_blocks, column_tiles, INT32_MAX);
  args.pitch = w.pitch, args.dscore = w.dscore, args.columns = w.columns;
  args.bound = w.bound == nullptr ? nullptr : w.bound + b0;
  args.unscale = w.unscale == nullptr ? nullptr : w.unscale + b0;
  if (Status s = launch_score_gradient(args, images, stream); !s.ok()) return s;
  if (w.columns != nullptr) {
    const ColumnSums<Acc> sums{w.columns,
                               args.a.count,
                               args.b.count,
                               images,
                               args.row_begin,
                               args.rows,
                               row_begin == 0,
                               TileExtent<T>::kRows,
                               1,
                               args.row_tiles,
                               w.pitch,
                               2,
                               w.sums + b0 * 2 * w.pitch};
    if (Status s = launch_add_columns(sums, stream); !s.ok()) return s;
  }
  return chunk_products(p, w, args.a, args.b, row_begin, rows, stream);
}

// The gradient of the images of `side`, from image b0 on.
template <class T>
Status features_gradient(const MatchParams& p, const BackwardSpace<T>& w, const PackedSide<T>& side, int64_t b0,
                         const accumulate_t<T>* grad_f_hat, int partials, const View4& grad, Stream stream) {
  if (grad.data == nullptr) return {};
  NormalizeBackwardArgs<T> args;
  args.batch = side.batch, args.positions = side.positions;
  args.channels = side.channels, args.padded_channels = side.padded_channels;
  args.normalize = p.normalize, args.folded = kFolded<T>;
  args.grad_f_hat = grad_f_hat, args.features = side.features, args.inv_norm = side.inv_norm;
  args.partials = partials, args.partial_stride = side.batch * side.positions * side.channels;
  args.unscale = w.unscale == nullptr ? nullptr : w.unscale + b0;
  args.index = side.index, args.count = side.count;
  args.grad = static_cast<T*>(grad.data) + b0 * side.channels * side.positions;
  return launch_normalize_backward(args, stream);
}

// The gradients of the features of image b0 and those that share its chunk.
template <class T>
Status group(const MatchParams& p, const BackwardSpace<T>& w, int64_t b0, Stream stream) {
  const PackedSide<T> a = w.group(w.a, b0), b = w.group(w.b, b0);
  if constexpr (sizeof(T) == 2) {
    if (Status s = normalize_rows(a, w.unit_a, stream); !s.ok()) return s;
    if (Status s = normalize_rows(b, w.unit_b, stream); !s.ok()) return s;
  }
  for (int64_t row = 0; row < a.positions; row += w.rows) {
    if (Status s = chunk(p, w, b0, row, stream); !s.ok()) return s;
  }
  const int partials_a = w.rows < a.positions ? 1 : w.splits_a;
  if (Status s = features_gradient(p, w, a, b0, w.grad_a, partials_a, p.grad_fa, stream); !s.ok()) return s;
  return features_gradient(p, w, b, b0, w.grad_b, w.splits_b, p.grad_fb, stream);
}

Status bounds(const MatchParams& p, const BackwardSpace<Half>& w, Stream stream) {
  const int64_t blocks = ceil_div(p.batch * w.a.positions, 256);
  if (blocks > INT32_MAX) return {"match: too many source pixels for one launch"};
  if (Status s = memset_async(w.bound, 0, static_cast<size_t>(p.batch) * sizeof(int), stream); !s.ok()) return s;
  return launch(&match_bound_kernel, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, w.a,
                static_cast<int>(p.width_a), static_cast<float>(p.width_b), static_cast<float>(p.height_b), p.beta,
                p.grad_flow, p.grad_lse, w.bound);
}

template <class T>
Status backward(const MatchParams& p, void* workspace, Stream stream) {
  using Acc = accumulate_t<T>;
  const BackwardSpace<T> w(p, workspace);
  if (Status s = pack(w.a, p.fa, p.mask_a, p.width_a, p.normalize, stream); !s.ok()) return s;
  if (Status s = pack(w.b, p.fb, p.mask_b, p.width_b, p.normalize, stream); !s.ok()) return s;
  if constexpr (std::is_same<T, Half>::value) {
    if (Status s = bounds(p, w, stream); !s.ok()) return s;
  }
  for (int64_t b0 = 0; b0 < p.batch; b0 += w.images) {
    if (Status s = group(p, w, b0, stream); !s.ok()) return s;
  }
  const MaskAndBeta<Acc> mask_and_beta{w.sums,   w.pitch,       2,
                                       nullptr,  w.b.count,     w.b.index,
                                       p.batch,  w.b.positions, static_cast<int>(p.width_b),
                                       p.mask_b, p.grad_mask_b, p.grad_beta};
  return launch_mask_and_beta(mask_and_beta, stream);
}

}  // namespace

size_t tiled_backward_bytes(const MatchParams& p) {
  size_t bytes = 0;
  (void)dispatch_floating(p.fa.dtype, [&](auto tag) {
    bytes = BackwardSpace<typename decltype(tag)::type>(p, nullptr).bytes;
    return Status{};
  });
  return bytes;
}

Status tiled_backward(const MatchParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype,
                           [&](auto tag) { return backward<typename decltype(tag)::type>(p, workspace, stream); });
}

}  // namespace cosegflow::match_cuda

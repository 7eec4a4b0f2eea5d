// match backward, the tiled path. Chunks of rows whose scores fit the workspace (whole images where several fit):
//   scores recomputed and turned into ds on the fly (match_score_gradient_kernel.cuh);
//   grad_a_hat = ds b_hat for the rows of the chunk; grad_b_hat += ds^T a_hat (product_cuda.cuh), chunks in order;
// then normalize_backward.cuh takes the gradients of normalized rows to the raster, and match_mask_gradient.cuh adds up
// what the mask and beta get. No atomics anywhere: the bits are the same on every run.
#include "common/chunk_bytes.h"
#include "common/dispatch.h"
#include "match/match_common.cuh"
#include "match/match_mask_gradient.cuh"
#include "normalize_backward.cuh"
#include "product_cuda.cuh"

namespace cosegflow::match_cuda {
namespace {

constexpr size_t kDefaultChunkBytes = size_t{64} << 20;

template <class T>
struct BackwardSpace {
  using Acc = accumulate_t<T>;
  PackedSide<T> a, b;
  int64_t images, rows, row_tiles, pitch;  // of a chunk
  Acc* dscore;
  Acc* columns = nullptr;
  Acc* sums = nullptr;
  Acc* grad_a = nullptr;  // of normalized, compact rows
  Acc* grad_b = nullptr;
  size_t bytes;

  BackwardSpace(const MatchParams& p, void* base) {
    using Tile = TileExtent<T>;
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    pitch = ceil_div(nb, Tile::kCols) * Tile::kCols;
    const int64_t row_bytes = pitch * static_cast<int64_t>(sizeof(Acc));
    const size_t wanted = chunk_bytes_of(p.chunk_bytes);
    const int64_t fit = static_cast<int64_t>(wanted == 0 ? kDefaultChunkBytes : wanted) / row_bytes;
    images = fit >= na ? (fit / na < p.batch ? fit / na : p.batch) : 1;
    rows = fit >= na ? na : (fit < 1 ? 1 : fit);
    if (wanted == 0 && rows < Tile::kRows) rows = na < Tile::kRows ? na : Tile::kRows;  // no tile runs half empty
    if (rows < na && rows > Tile::kRows) rows = rows / Tile::kRows * Tile::kRows;
    row_tiles = ceil_div(rows, Tile::kRows);

    Arena arena(base);
    a = take_packed_side<T>(arena, p.batch, na, p.channels);
    b = take_packed_side<T>(arena, p.batch, nb, p.channels);
    dscore = arena.take<Acc>(images * rows * pitch);
    if (p.grad_mask_b.data != nullptr || p.grad_beta.data != nullptr) {
      columns = arena.take<Acc>(images * row_tiles * 2 * pitch);
      sums = arena.take<Acc>(p.batch * 2 * pitch);
    }
    if (p.grad_fa.data != nullptr) grad_a = arena.take<Acc>(p.batch * na * p.channels);
    if (p.grad_fb.data != nullptr) grad_b = arena.take<Acc>(p.batch * nb * p.channels);
    bytes = arena.bytes();
  }
};

// The two products of one chunk.
template <class T>
Status chunk_products(const MatchParams& p, const BackwardSpace<T>& w, int64_t b0, int64_t images, int64_t row_begin,
                      int64_t rows, Stream stream) {
  using Acc = accumulate_t<T>;
  const PackedSide<T> a = w.a.from_image(b0), b = w.b.from_image(b0);
  const MatrixLhs<Acc> dscore{w.dscore, w.pitch, rows * w.pitch};
  ProductArgs<T> args;
  args.batch = images;
  args.channels = p.channels, args.padded_channels = a.padded_channels;
  if (w.grad_a != nullptr) {
    args.rows = rows, args.row_begin = row_begin, args.row_count = a.count;
    args.depth = b.positions, args.depth_begin = 0, args.depth_count = b.count;
    args.rhs = b.features, args.scale = p.normalize ? b.inv_norm : nullptr, args.rhs_rows = b.positions;
    args.out = w.grad_a + b0 * a.positions * p.channels, args.out_rows = a.positions;
    args.accumulate = false;
    if (Status s = launch_gradient_product<false>(args, dscore, stream); !s.ok()) return s;
  }
  if (w.grad_b == nullptr) return {};
  args.rows = b.positions, args.row_begin = 0, args.row_count = b.count;
  args.depth = rows, args.depth_begin = row_begin, args.depth_count = a.count;
  args.rhs = a.features, args.scale = p.normalize ? a.inv_norm : nullptr, args.rhs_rows = a.positions;
  args.out = w.grad_b + b0 * b.positions * p.channels, args.out_rows = b.positions;
  args.accumulate = row_begin > 0;
  return launch_gradient_product<true>(args, dscore, stream);
}

template <class T>
Status chunk(const MatchParams& p, const BackwardSpace<T>& w, int64_t b0, int64_t row_begin, Stream stream) {
  using Acc = accumulate_t<T>;
  const int64_t images = w.images < p.batch - b0 ? w.images : p.batch - b0;
  const int64_t rows = w.rows < w.a.positions - row_begin ? w.rows : w.a.positions - row_begin;
  GradientArgs<T> args;
  args.a = w.a.from_image(b0), args.b = w.b.from_image(b0);
  args.width_a = static_cast<int>(p.width_a);
  args.width_b = static_cast<int>(p.width_b), args.height_b = static_cast<int>(p.height_b);
  args.beta = from_image(p.beta, b0);
  args.flow = from_image(p.flow, b0), args.grad_flow = from_image(p.grad_flow, b0);
  args.lse = from_image(p.lse, b0), args.grad_lse = from_image(p.grad_lse, b0);
  args.row_begin = static_cast<int>(row_begin), args.rows = static_cast<int>(rows);
  args.row_tiles = static_cast<int>(ceil_div(rows, TileExtent<T>::kRows));
  args.splits = choose_splits(images * args.row_tiles, w.pitch / TileExtent<T>::kCols, INT32_MAX);
  args.pitch = w.pitch, args.dscore = w.dscore, args.columns = w.columns;
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
  return chunk_products(p, w, b0, images, row_begin, rows, stream);
}

template <class T>
Status features_gradient(const MatchParams& p, const PackedSide<T>& side, const accumulate_t<T>* grad_f_hat,
                         const View4& grad, Stream stream) {
  if (grad.data == nullptr) return {};
  NormalizeBackwardArgs<T> args;
  args.batch = side.batch, args.positions = side.positions;
  args.channels = side.channels, args.padded_channels = side.padded_channels;
  args.normalize = p.normalize;
  args.grad_f_hat = grad_f_hat, args.features = side.features, args.inv_norm = side.inv_norm;
  args.index = side.index, args.count = side.count;
  args.grad = static_cast<T*>(grad.data);
  return launch_normalize_backward(args, stream);
}

template <class T>
Status backward(const MatchParams& p, void* workspace, Stream stream) {
  using Acc = accumulate_t<T>;
  const BackwardSpace<T> w(p, workspace);
  if (Status s = pack(w.a, p.fa, p.mask_a, p.width_a, p.normalize, stream); !s.ok()) return s;
  if (Status s = pack(w.b, p.fb, p.mask_b, p.width_b, p.normalize, stream); !s.ok()) return s;
  for (int64_t b0 = 0; b0 < p.batch; b0 += w.images) {
    for (int64_t row = 0; row < w.a.positions; row += w.rows) {
      if (Status s = chunk(p, w, b0, row, stream); !s.ok()) return s;
    }
  }
  if (Status s = features_gradient(p, w.a, w.grad_a, p.grad_fa, stream); !s.ok()) return s;
  if (Status s = features_gradient(p, w.b, w.grad_b, p.grad_fb, stream); !s.ok()) return s;
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

// match_both backward, the tiled path. Pixels with their incoming gradients are gathered once; then, for chunks of rows
// whose scores fit the workspace (whole images where several fit):
//   scores recomputed and turned into the ds of both directions (match_both_gradient_kernel.cuh);
//   grad_a_hat = ds b_hat for the rows of the chunk; grad_b_hat += ds^T a_hat (product_cuda.cuh), chunks in order;
// then normalize_backward.cuh takes the gradients of normalized rows to the raster, and the kernels here add up what
// the masks and beta get. Three products for both directions, where two backwards of match need six.
// No atomics anywhere, one order for every sum: the bits are the same on every run.
// The kernels here are bound by memory; not measured yet.
#include "common/dispatch.h"
#include "match_both/match_both_common.cuh"
#include "normalize_backward.cuh"
#include "product_cuda.cuh"

namespace cosegflow::match_both_cuda {
namespace {

// What the gathered pixels of one image are read from: its own size, and that of the image it is matched to.
struct Incoming {
  MatchDirection direction;
  int width, height, other_width, other_height;
};

template <class Acc>
__device__ __forceinline__ Acc read_or_zero(const void* data, int64_t at) {
  return data == nullptr ? Acc(0) : static_cast<const Acc*>(data)[at];
}

// One thread a compact pixel. Incoming gradients of excluded pixels are never read.
template <class T, class Acc = accumulate_t<T>>
__global__ void __launch_bounds__(256) match_both_gather_kernel(PackedSide<T> side, Incoming in, Pixel<Acc>* pixels) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= side.batch * side.positions) return;
  const int64_t b = i / side.positions;
  if (i % side.positions >= side.count[b]) return;
  const int64_t y = side.index[i] / in.width, x = side.index[i] % in.width;
  const auto at4 = [&](const View4& v) { return b * v.stride[0] + y * v.stride[2] + x * v.stride[3]; };
  const auto at3 = [&](const View3& v) { return b * v.stride[0] + y * v.stride[1] + x * v.stride[2]; };
  const MatchDirection& d = in.direction;
  const Acc* const flow = static_cast<const Acc*>(d.flow.data) + at4(d.flow);
  Pixel<Acc> p;
  p.inv_norm = side.inv_norm[i];
  p.lse = static_cast<const Acc*>(d.lse.data)[at3(d.lse)];
  p.match_x = flow[0] + (static_cast<Acc>(x) - static_cast<Acc>(in.other_width - 1) / 2);
  p.match_y = flow[d.flow.stride[1]] + (static_cast<Acc>(y) - static_cast<Acc>(in.other_height - 1) / 2);
  p.grad_x = read_or_zero<Acc>(d.grad_flow.data, at4(d.grad_flow));
  p.grad_y = read_or_zero<Acc>(d.grad_flow.data, at4(d.grad_flow) + d.grad_flow.stride[1]);
  p.grad_lse = read_or_zero<Acc>(d.grad_lse.data, at3(d.grad_lse));
  p.x = static_cast<Acc>(x) - static_cast<Acc>(in.width - 1) / 2;
  p.y = static_cast<Acc>(y) - static_cast<Acc>(in.height - 1) / 2;
  p.log_weight = side.log_weight[i];
  pixels[i] = p;
}

// sums (images, 2, pitch) = or += the sums over the chunk's row tiles.
template <class Acc>
__global__ void __launch_bounds__(256)
    match_both_add_columns_kernel(const Acc* columns, const int* count_a, const int* count_b, int64_t images,
                                  int row_begin, int rows, int tile_rows, int row_tiles, int64_t pitch, Acc* sums) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= images * 2 * pitch) return;
  const int64_t b = i / (2 * pitch), which_and_j = i % (2 * pitch);
  if (which_and_j % pitch >= count_b[b]) return;
  const int live = min(rows, count_a[b] - row_begin);
  Acc sum = row_begin == 0 ? Acc(0) : sums[i];
  for (int tile = 0; tile * tile_rows < live; ++tile) sum += columns[(b * row_tiles + tile) * 2 * pitch + which_and_j];
  sums[i] = sum;
}

// d(loss)/dm = the sum of the dlogits of all sources / m, which comes in parts; scattered to the raster. Excluded
// pixels keep the 0 of the memset; so do all where the other image has no pixel left.
template <class T, class Acc = accumulate_t<T>>
__global__ void __launch_bounds__(256)
    match_both_mask_gradient_kernel(PackedSide<T> side, const Acc* sums, int64_t image_pitch, int parts,
                                    int64_t part_pitch, int width, View3 grad) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= side.batch * side.positions) return;
  const int64_t b = i / side.positions, j = i % side.positions;
  if (j >= side.count[b]) return;
  Acc sum = Acc(0);
  for (int part = 0; part < parts; ++part) sum += sums[part * part_pitch + b * image_pitch + j];
  const int64_t pixel = side.index[i];
  static_cast<Acc*>(grad.data)[b * grad.stride[0] + pixel / width * grad.stride[1] + pixel % width * grad.stride[2]] =
      sum / side.weight[i];
}

template <class Acc>
__global__ void __launch_bounds__(256)
    match_both_beta_gradient_kernel(const Acc* sums, int64_t pitch, const int* count, View1 grad) {
  const int64_t b = blockIdx.x;
  Acc sum = Acc(0);
  for (int j = threadIdx.x; j < count[b]; j += 256) sum += sums[(b * 2 + 1) * pitch + j];
  sum = block_reduce_sum(sum);
  if (threadIdx.x == 0) static_cast<Acc*>(grad.data)[b * grad.stride[0]] = sum;
}

template <class T>
struct BackwardSpace {
  using Acc = accumulate_t<T>;
  PackedSide<T> a, b;
  Pixel<Acc>*pixels_a, *pixels_b;
  int64_t images, rows, row_tiles, pitch;  // of a chunk
  int splits;
  Acc* dscore;
  Acc* columns = nullptr;
  Acc* sums = nullptr;
  Acc* row_sums = nullptr;
  Acc* grad_a = nullptr;  // of normalized, compact rows
  Acc* grad_b = nullptr;
  size_t bytes;

  BackwardSpace(const MatchBothParams& p, void* base) {
    using Tile = TileExtent<T>;
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    pitch = round_up(nb, Tile::kCols);
    const int64_t row_bytes = pitch * static_cast<int64_t>(sizeof(Acc));
    const int64_t fit = static_cast<int64_t>(p.chunk_bytes == 0 ? kDefaultChunkBytes : p.chunk_bytes) / row_bytes;
    images = fit >= na ? (fit / na < p.batch ? fit / na : p.batch) : 1;
    rows = fit >= na ? na : (fit < 1 ? 1 : fit);
    if (p.chunk_bytes == 0 && rows < Tile::kRows) {
      rows = na < Tile::kRows ? na : Tile::kRows;  // no tile runs half empty
    }
    if (rows < na && rows > Tile::kRows) rows = rows / Tile::kRows * Tile::kRows;
    row_tiles = ceil_div(rows, Tile::kRows);
    // Enough blocks for the largest chunk; each split has sums of its own for the rows, hence the cap.
    splits = choose_splits(images * row_tiles, pitch / Tile::kCols, 64);

    Arena arena(base);
    a = take_packed_side<T>(arena, p.batch, na, p.channels);
    b = take_packed_side<T>(arena, p.batch, nb, p.channels);
    pixels_a = arena.take<Pixel<Acc>>(p.batch * na);
    pixels_b = arena.take<Pixel<Acc>>(p.batch * nb);
    dscore = arena.take<Acc>(images * rows * pitch);
    if (p.grad_mask_b.data != nullptr || p.grad_beta.data != nullptr) {
      columns = arena.take<Acc>(images * row_tiles * 2 * pitch);
      sums = arena.take<Acc>(p.batch * 2 * pitch);
    }
    if (p.grad_mask_a.data != nullptr) row_sums = arena.take<Acc>(splits * p.batch * na);
    if (p.grad_fa.data != nullptr) grad_a = arena.take<Acc>(p.batch * na * p.channels);
    if (p.grad_fb.data != nullptr) grad_b = arena.take<Acc>(p.batch * nb * p.channels);
    bytes = arena.bytes();
  }
};

// The two products of one chunk.
template <class T>
Status chunk_products(const MatchBothParams& p, const BackwardSpace<T>& w, int64_t b0, int64_t images,
                      int64_t row_begin, int64_t rows, Stream stream) {
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
Status chunk(const MatchBothParams& p, const BackwardSpace<T>& w, int64_t b0, int64_t row_begin, Stream stream) {
  using Acc = accumulate_t<T>;
  const int64_t images = w.images < p.batch - b0 ? w.images : p.batch - b0;
  const int64_t rows = w.rows < w.a.positions - row_begin ? w.rows : w.a.positions - row_begin;
  GradientArgs<T> args;
  args.a = w.a.from_image(b0), args.b = w.b.from_image(b0);
  args.pixels_a = w.pixels_a + b0 * w.a.positions, args.pixels_b = w.pixels_b + b0 * w.b.positions;
  args.beta = p.beta;
  args.beta.data = static_cast<Acc*>(p.beta.data) + b0 * p.beta.stride[0];
  args.row_begin = static_cast<int>(row_begin), args.rows = static_cast<int>(rows);
  args.row_tiles = static_cast<int>(ceil_div(rows, TileExtent<T>::kRows));
  args.splits = w.splits;
  args.pitch = w.pitch, args.dscore = w.dscore, args.columns = w.columns;
  args.row_sums = w.row_sums == nullptr ? nullptr : w.row_sums + b0 * w.a.positions;
  args.row_pitch = p.batch * w.a.positions;
  if (Status s = launch_score_gradient(args, images, stream); !s.ok()) return s;
  if (w.columns != nullptr) {
    const int64_t blocks = ceil_div(images * 2 * w.pitch, 256);
    if (blocks > INT32_MAX) return {"match_both: too many pixels for one launch"};
    if (Status s = launch(&match_both_add_columns_kernel<Acc>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0,
                          stream, w.columns, args.a.count, args.b.count, images, args.row_begin, args.rows,
                          TileExtent<T>::kRows, args.row_tiles, w.pitch, w.sums + b0 * 2 * w.pitch);
        !s.ok()) {
      return s;
    }
  }
  return chunk_products(p, w, b0, images, row_begin, rows, stream);
}

template <class T>
Status features_gradient(const MatchBothParams& p, const PackedSide<T>& side, const accumulate_t<T>* grad_f_hat,
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

inline dim3 pixel_grid(int64_t pixels) { return dim3(static_cast<unsigned>(ceil_div(pixels, 256))); }

template <class T>
Status mask_gradient(const PackedSide<T>& side, const accumulate_t<T>* sums, int64_t image_pitch, int parts,
                     int64_t part_pitch, int64_t width, const View3& grad, Stream stream) {
  if (grad.data == nullptr) return {};
  const int64_t n = side.batch * side.positions;
  const size_t bytes = static_cast<size_t>(n) * sizeof(accumulate_t<T>);
  if (Status s = memset_async(grad.data, 0, bytes, stream); !s.ok()) return s;
  return launch(&match_both_mask_gradient_kernel<T>, pixel_grid(n), dim3(256), 0, stream, side, sums, image_pitch,
                parts, part_pitch, static_cast<int>(width), grad);
}

template <class T>
Status backward(const MatchBothParams& p, void* workspace, Stream stream) {
  using Acc = accumulate_t<T>;
  const BackwardSpace<T> w(p, workspace);
  const int64_t pixels_a = p.batch * w.a.positions, pixels_b = p.batch * w.b.positions;
  if (ceil_div(pixels_a, 256) > INT32_MAX || ceil_div(pixels_b, 256) > INT32_MAX) {
    return {"match_both: too many pixels for one launch"};
  }
  const int width_a = static_cast<int>(p.width_a), height_a = static_cast<int>(p.height_a);
  const int width_b = static_cast<int>(p.width_b), height_b = static_cast<int>(p.height_b);
  const Incoming into_a{p.ab, width_a, height_a, width_b, height_b}, into_b{p.ba, width_b, height_b, width_a, height_a};
  if (Status s = pack(w.a, p.fa, p.mask_a, p.width_a, p.normalize, stream); !s.ok()) return s;
  if (Status s = pack(w.b, p.fb, p.mask_b, p.width_b, p.normalize, stream); !s.ok()) return s;
  if (Status s =
          launch(&match_both_gather_kernel<T>, pixel_grid(pixels_a), dim3(256), 0, stream, w.a, into_a, w.pixels_a);
      !s.ok()) {
    return s;
  }
  if (Status s =
          launch(&match_both_gather_kernel<T>, pixel_grid(pixels_b), dim3(256), 0, stream, w.b, into_b, w.pixels_b);
      !s.ok()) {
    return s;
  }
  for (int64_t b0 = 0; b0 < p.batch; b0 += w.images) {
    for (int64_t row = 0; row < w.a.positions; row += w.rows) {
      if (Status s = chunk(p, w, b0, row, stream); !s.ok()) return s;
    }
  }
  if (Status s = features_gradient(p, w.a, w.grad_a, p.grad_fa, stream); !s.ok()) return s;
  if (Status s = features_gradient(p, w.b, w.grad_b, p.grad_fb, stream); !s.ok()) return s;
  if (Status s = mask_gradient(w.a, w.row_sums, w.a.positions, w.splits, pixels_a, p.width_a, p.grad_mask_a, stream);
      !s.ok()) {
    return s;
  }
  if (Status s = mask_gradient(w.b, w.sums, 2 * w.pitch, 1, 0, p.width_b, p.grad_mask_b, stream); !s.ok()) {
    return s;
  }
  if (p.grad_beta.data == nullptr) return {};
  return launch(&match_both_beta_gradient_kernel<Acc>, dim3(static_cast<unsigned>(p.batch)), dim3(256), 0, stream,
                w.sums, w.pitch, w.b.count, p.grad_beta);
}

}  // namespace

size_t tiled_backward_bytes(const MatchBothParams& p) {
  size_t bytes = 0;
  (void)dispatch_floating(p.fa.dtype, [&](auto tag) {
    bytes = BackwardSpace<typename decltype(tag)::type>(p, nullptr).bytes;
    return Status{};
  });
  return bytes;
}

Status tiled_backward(const MatchBothParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype,
                           [&](auto tag) { return backward<typename decltype(tag)::type>(p, workspace, stream); });
}

}  // namespace cosegflow::match_both_cuda

// The host's side of a backward on Hopper, but for what turns a score into ds: what is kept in the workspace, and the
// order of the launches. For groups of images whose ds fits (or runs of rows of one image):
//   ds by the operation's own kernel; both products in one launch (gradient_product.cuh); and, when all rows of the
//   group are through, the gradients of normalized rows to the raster (normalize_backward.cuh).
// docs/kernels/backward.md has the model, and why it is chunks and two products.
#pragma once

#include <climits>
#include <cstdint>

#include "common/arena.h"
#include "entry_checks.cuh"
#include "half_gradient.cuh"
#include "hopper/gradient_plan.cuh"
#include "hopper/operands.cuh"
#include "hopper/pipeline.cuh"
#include "match/match_mask_gradient.cuh"
#include "normalize_backward.cuh"
#include "normalize_rows.cuh"
#include "pack_tiles.cuh"

namespace cosegflow::hopper {

// What mask_b and beta get, on its way; all null where neither is wanted.
struct GradientSums {
  float *columns = nullptr, *tiles = nullptr;  // of 32 rows of a chunk: see score_gradient.cuh
  float *mask = nullptr, *beta = nullptr;      // (B, pitch), (B): sums of dlogit over rows, of dlogit s
};

template <class T>
struct GradientSpace {
  TileSide<T> a, b;
  GradientPlan plan;
  int64_t channels;
  bool normalize;
  View4 grad_fa, grad_fb;
  int* bound;  // (B), 0 before: bits of the largest |ds| that there may be
  int* counters;
  int64_t zeros;                           // numbers from `bound` on that start as 0
  float* unscale = nullptr;                // (B): 1 / the scale of ds; null where it has none
  int* chunk_count;                        // (chunks, B): of each run of rows of an image, how many there are
  T* ds;                                   // (plan.images, plan.row_room, plan.pitch)
  T *unit_a = nullptr, *unit_b = nullptr;  // features of norm 1, of a group of images; null: `features` do
  float *out_a = nullptr, *out_b = nullptr, *parts_a = nullptr;  // of the products
  bool wants_sums;                                               // known too where there is no memory yet, as are sizes
  GradientSums sums;

  // p: of match, match_both or transfer. counter_count: ints of the operation's own that start as 0. more_sums: the
  // operation has other uses of sums.
  template <class Params>
  GradientSpace(Arena& arena, const Params& p, int64_t counter_count = 0, bool more_sums = false)
      : channels(p.channels), normalize(p.normalize), grad_fa(p.grad_fa), grad_fb(p.grad_fb) {
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    plan = gradient_plan(p.batch, na, nb, p.channels, p.chunk_bytes, multiprocessors());
    a = take_tile_side<T>(arena, p.batch, na, p.channels, 1);
    b = take_tile_side<T>(arena, p.batch, nb, p.channels, 1);
    zeros = p.batch + counter_count;
    bound = arena.take<int>(zeros), counters = bound + p.batch;
    if (!kFolded<T>) unscale = arena.take<float>(p.batch);
    chunk_count = arena.take<int>(plan.chunks * p.batch);
    ds = arena.take<T>(plan.images * plan.row_room * plan.pitch);
    wants_sums = p.grad_mask_b.data != nullptr || p.grad_beta.data != nullptr || more_sums;
    if (wants_sums) {
      sums.columns = arena.take<float>(plan.images * plan.row_room / 32 * plan.pitch);
      sums.tiles = arena.take<float>(plan.images * plan.row_room / 32 * (plan.pitch / kCols));
      sums.mask = arena.take<float>(p.batch * plan.pitch), sums.beta = arena.take<float>(p.batch);
    }
    if (!kFolded<T> && p.normalize) {
      if (grad_fb.data != nullptr) unit_a = arena.take<T>(plan.images * na * a.depth);
      if (grad_fa.data != nullptr) unit_b = arena.take<T>(plan.images * nb * b.depth);
    }
    if (grad_fa.data != nullptr) {
      out_a = arena.take<float>(plan.images * na * channels * (plan.chunks > 1 ? 1 : plan.splits_a));
      if (plan.parted_rows()) parts_a = arena.take<float>(plan.rows * channels * plan.splits_a);
    }
    if (grad_fb.data != nullptr) out_b = arena.take<float>(plan.images * nb * channels * plan.splits_b);
  }

  bool wants_products() const { return grad_fa.data != nullptr || grad_fb.data != nullptr; }
};

// Images [b0, b0 + images), rows [row, row + rows) of each.
template <class T>
struct GradientChunk {
  int64_t b0, images, number, row, rows;
  TileSide<T> a, b;  // of these images
  const int* live;   // (images): of the rows, how many there are
};

// ---- before the chunks ----------------------------------------------------------------------------------------------

template <class T, class Params>
Status pack_sides(const Params& p, const GradientSpace<T>& w, Stream stream) {
  PackExtras extras;
  extras.counters = w.bound, extras.counter_count = w.zeros;
  return pack_tiles<T>({p.fa, p.mask_a, p.width_a, p.height_a, p.normalize, SplitRole::kFirst},
                       {p.fb, p.mask_b, p.width_b, p.height_b, p.normalize, SplitRole::kSecond}, w.a, w.b, extras,
                       stream);
}

// For the kernel that prepares the rows of a, whose threads are at least as many as images and chunks.
struct ChunkCounts {
  const int* count;  // (B)
  int64_t batch, chunks, chunk_rows;
  int* chunk_count;  // (chunks, B)
};
template <class T>
ChunkCounts chunk_counts(const GradientSpace<T>& w) {
  return {w.a.count, w.a.batch, w.plan.chunks, w.plan.rows, w.chunk_count};
}
__device__ __forceinline__ void write_chunk_count(const ChunkCounts& args, int64_t thread) {
  if (thread >= args.batch * args.chunks) return;
  const int64_t left = args.count[thread % args.batch] - thread / args.batch * args.chunk_rows;
  args.chunk_count[thread] = static_cast<int>(left < 0 ? 0 : (left < args.chunk_rows ? left : args.chunk_rows));
}

// unscale (B) from bound (B): gradient_chunks_cuda.cu.
Status launch_unscale(const int* bound, int64_t batch, float* unscale, Stream stream);

// ---- a chunk --------------------------------------------------------------------------------------------------------

// A launch that goes over the tiles of a chunk; the planes of the columns are the caller's.
template <int kPlanes>
struct GradientTiles {
  StreamArgs<kPlanes> stream;
  Maps maps;
  dim3 grid;
};

template <int kPlanes, class T>
Status tiles_of(const GradientChunk<T>& c, GradientTiles<kPlanes>& tiles) {
  const Plan plan = hopper::plan(c.images, ceil_div(c.rows, kRows), c.b.positions, c.a.depth, true, multiprocessors());
  tiles.grid = dim3(static_cast<unsigned>(plan.blocks));
  StreamArgs<kPlanes>& s = tiles.stream;
  s.count_a = c.live, s.count_b = c.b.count;
  s.images = static_cast<int>(c.images), s.most_fragments = plan.fragments, s.slabs = plan.slabs;
  s.pitch_b = c.b.pitch, s.scale_b = c.b.scale;
  s.first_row = static_cast<int>(c.row);
  return make_maps(tiles.maps, c.a, c.b);
}

// What mask_b and beta get of the chunk's tiles. first: it is overwritten, else added to.
template <class T>
Status add_sums(const GradientSpace<T>& w, const GradientChunk<T>& c, bool first, Stream stream) {
  if (!w.wants_sums) return {};
  const int64_t runs = w.plan.row_room / 32;
  match_cuda::ColumnSums<float> columns{};
  columns.columns = w.sums.columns;
  columns.count_a = c.live, columns.count_b = c.b.count, columns.images = c.images;
  columns.row_begin = 0, columns.rows = INT_MAX, columns.first = first;
  columns.tile_rows = kWarpgroupRows, columns.tile_runs = kWarpgroupRows / 32;
  columns.runs = runs, columns.pitch = w.plan.pitch, columns.kinds = 1;
  columns.sums = w.sums.mask + c.b0 * w.plan.pitch;
  if (Status s = launch_add_columns(columns, stream); !s.ok()) return s;
  match_cuda::TileSums<float> tiles{};
  tiles.tiles = w.sums.tiles;
  tiles.count_a = c.live, tiles.count_b = c.b.count, tiles.images = static_cast<int>(c.images);
  tiles.first = first;
  tiles.tile_rows = kWarpgroupRows, tiles.tile_runs = kWarpgroupRows / 32, tiles.tile_cols = kCols;
  tiles.runs = runs, tiles.pitch = w.plan.pitch / kCols;
  tiles.sums = w.sums.beta + c.b0;
  return launch(&match_cuda::match_add_tiles_kernel<float>, dim3(static_cast<unsigned>(c.images)), dim3(256), 0, stream,
                tiles);
}

template <class T>
Status chunk_products(const GradientSpace<T>& w, const GradientChunk<T>& c, Stream stream) {
  const int64_t na = c.a.positions, nb = c.b.positions;
  GradientProductArgs<T> args;
  args.ds = w.ds, args.images = c.images, args.row_room = w.plan.row_room, args.pitch = w.plan.pitch;
  args.features_a = w.unit_a == nullptr ? c.a.features : w.unit_a;
  args.features_b = w.unit_b == nullptr ? c.b.features : w.unit_b;
  args.feature_rows_a = na, args.feature_rows_b = nb, args.feature_depth = c.a.depth;
  args.channels = w.channels;
  args.a.rows = c.live, args.a.depth = c.b.count, args.a.row_bound = c.rows;
  args.a.splits = w.plan.splits_a;
  if (w.parts_a == nullptr) {
    args.a.out = w.out_a == nullptr ? nullptr : w.out_a + c.row * w.channels;
    args.a.out_rows = na, args.a.partial = c.images * na * w.channels;
  } else {
    args.a.out = w.parts_a, args.a.out_rows = w.plan.rows, args.a.partial = w.plan.rows * w.channels;
  }
  args.b.rows = c.b.count, args.b.depth = c.live, args.b.row_bound = nb;
  args.b.first_depth = static_cast<int>(c.row), args.b.out = w.out_b, args.b.out_rows = nb;
  args.b.partial = c.images * nb * w.channels, args.b.splits = w.plan.splits_b, args.b.accumulate = c.number > 0;
  if (Status s = launch_gradient_products(args, stream); !s.ok()) return s;
  if (w.parts_a == nullptr) return {};
  const PartsArgs parts{
      w.parts_a, w.plan.splits_a, args.a.partial, c.live, c.rows, w.channels, w.out_a + c.row * w.channels};
  return launch_add_parts(parts, stream);
}

// ---- all of them ----------------------------------------------------------------------------------------------------

// The gradient of images [b0, b0 + side.batch), whose side this is.
template <class T>
Status features_gradient(const GradientSpace<T>& w, const TileSide<T>& side, const float* g, int64_t parts,
                         const View4& grad, int64_t b0, Stream stream) {
  if (grad.data == nullptr) return {};
  NormalizeBackwardArgs<T> args;
  args.batch = side.batch, args.positions = side.positions;
  args.channels = w.channels, args.padded_channels = side.depth;
  args.normalize = w.normalize, args.folded = kFolded<T>;
  args.grad_f_hat = g, args.partials = parts, args.partial_stride = side.batch * side.positions * w.channels;
  args.features = side.features;
  args.inv_norm = &side.scale->inv_norm, args.inv_norm_pitch = side.pitch, args.inv_norm_stride = 2;
  args.unscale = w.unscale == nullptr ? nullptr : w.unscale + b0;
  args.index = side.index, args.count = side.count;
  args.grad = static_cast<T*>(grad.data) + b0 * w.channels * side.positions;
  return launch_normalize_backward(args, stream);
}

// gradient(chunk) launches what leaves the chunk's ds, and what else is made of its scores.
template <class T, class Gradient>
Status group_gradients(const GradientSpace<T>& w, int64_t b0, int64_t images, const Gradient& gradient, Stream stream) {
  const TileSide<T> a = w.a.some_images(b0, images), b = w.b.some_images(b0, images);
  if (Status s = normalize_rows(a, w.unit_a, stream); !s.ok()) return s;
  if (Status s = normalize_rows(b, w.unit_b, stream); !s.ok()) return s;
  for (int64_t number = 0; number < w.plan.chunks; ++number) {
    const int64_t row = number * w.plan.rows, left = a.positions - row;
    const int* const live = w.chunk_count + number * w.a.batch + b0;
    const GradientChunk<T> chunk{b0, images, number, row, left < w.plan.rows ? left : w.plan.rows, a, b, live};
    if (Status s = gradient(chunk); !s.ok()) return s;
    if (!w.wants_products()) continue;
    if (Status s = chunk_products(w, chunk, stream); !s.ok()) return s;
  }
  const int64_t parts_a = w.plan.chunks > 1 ? 1 : w.plan.splits_a;
  if (Status s = features_gradient(w, a, w.out_a, parts_a, w.grad_fa, b0, stream); !s.ok()) return s;
  return features_gradient(w, b, w.out_b, w.plan.splits_b, w.grad_fb, b0, stream);
}

template <class T, class Gradient>
Status gradients_by_chunks(const GradientSpace<T>& w, const Gradient& gradient, Stream stream) {
  for (int64_t b0 = 0; b0 < w.a.batch; b0 += w.plan.images) {
    const int64_t images = w.plan.images < w.a.batch - b0 ? w.plan.images : w.a.batch - b0;
    if (Status s = group_gradients(w, b0, images, gradient, stream); !s.ok()) return s;
  }
  return {};
}

// The rest of what mask_b and beta get. p: as for GradientSpace.
template <class T, class Params>
Status mask_and_beta(const Params& p, const GradientSpace<T>& w, Stream stream) {
  match_cuda::MaskAndBeta<float> args{};
  args.sums = w.sums.mask, args.pitch = w.plan.pitch, args.kinds = 1;
  args.beta_sums = w.sums.beta;
  args.count = w.b.count, args.index = w.b.index;
  args.batch = w.b.batch, args.positions = w.b.positions, args.width = static_cast<int>(p.width_b);
  args.mask = p.mask_b, args.grad_mask = p.grad_mask_b, args.grad_beta = p.grad_beta;
  return launch_mask_and_beta(args, stream);
}

}  // namespace cosegflow::hopper

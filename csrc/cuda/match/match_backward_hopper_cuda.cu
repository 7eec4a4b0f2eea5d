// match backward on Hopper, the host's side. One launch packs both images as the forward does, one prepares the rows of
// a; then, for groups of images whose ds fits the workspace (or runs of rows of one image):
//   ds (match_backward_hopper_kernel.cuh), both products in one launch (hopper/gradient_product.cuh), and the gradients
//   of normalized rows to the raster (normalize_backward.cuh).
// docs/kernels/backward.md has the model, and why it is chunks and two products.
//
// match_rows_kernel: a thread a row of a reads 7 numbers of the raster and leaves 8 for its chunk; B * Na * 60 bytes.
#include <climits>

#include "entry_checks.cuh"
#include "hopper/eligibility.cuh"
#include "hopper/gradient_plan.cuh"
#include "hopper/operands.cuh"
#include "match/match_backward_hopper_kernel.cuh"
#include "match/match_common.cuh"
#include "match/match_mask_gradient.cuh"
#include "normalize_backward.cuh"
#include "normalize_rows.cuh"
#include "primitives/value_softmax.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::match_cuda {
namespace {

struct RowsArgs {
  const int *index, *count;
  const Scale* scale;
  int64_t batch, positions, pitch;
  int width_a, width_b, height_b;
  bool folded;
  View1 beta;
  View4 flow, grad_flow;
  View3 lse, grad_lse;
  RowGradient* rows;
  int* bound;  // (B), 0 before
  // Of each run of rows of an image, how many there are.
  int* chunk_count;  // (chunks, B)
  int64_t chunks, chunk_rows;
};

__device__ __forceinline__ float read_or_zero(const void* data, int64_t at) {
  return data == nullptr ? 0.0f : static_cast<const float*>(data)[at];
}

// What the bound of image b learns from a warp. All lanes; those without a row have bound -1.
__device__ __forceinline__ void raise_bound(int* bounds, int64_t b, float bound) {
  int bits = bound < HUGE_VALF ? __float_as_int(bound) : -1;
  const int first = static_cast<int>(__shfl_sync(0xffffffffu, static_cast<int>(b), 0));
  const bool together = __all_sync(0xffffffffu, first == static_cast<int>(b));
  if (together) bits = warp_reduce_max(bits);
  // Numbers >= 0 are in the order of their bits, so it does not matter who is first.
  if (bits >= 0 && (!together || threadIdx.x % 32 == 0)) atomicMax(bounds + b, bits);
}

__global__ void __launch_bounds__(256) match_rows_kernel(RowsArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i < args.batch * args.chunks) {
    const int64_t left = args.count[i % args.batch] - i / args.batch * args.chunk_rows;
    args.chunk_count[i] = static_cast<int>(left < 0 ? 0 : (left < args.chunk_rows ? left : args.chunk_rows));
  }
  const int64_t b = i / args.positions, row = i % args.positions;
  float bound = -1.0f;
  if (b < args.batch && row < args.count[b]) {
    const int64_t pixel = args.index[i], y = pixel / args.width_a, x = pixel % args.width_a;
    const auto at4 = [&](const View4& v) { return b * v.stride[0] + y * v.stride[2] + x * v.stride[3]; };
    const auto at3 = [&](const View3& v) { return b * v.stride[0] + y * v.stride[1] + x * v.stride[2]; };
    const float* const flow = static_cast<const float*>(args.flow.data) + at4(args.flow);
    const int64_t g = at4(args.grad_flow);
    const float beta = static_cast<const float*>(args.beta.data)[b * args.beta.stride[0]];
    const float lse = static_cast<const float*>(args.lse.data)[at3(args.lse)];
    // E_i, relative to the centre of b's grid.
    const float mean_x = flow[0] + (static_cast<float>(x) - static_cast<float>(args.width_b - 1) / 2);
    const float mean_y =
        flow[args.flow.stride[1]] + (static_cast<float>(y) - static_cast<float>(args.height_b - 1) / 2);

    RowGradient r;
    r.inv_norm = args.scale[b * args.pitch + row].inv_norm;
    const ExponentBase base = ExponentBase::of(lse);
    r.k = base.k, r.base = lse == minus_infinity<float>() ? HUGE_VALF : base.base;  // no target: p = 0
    r.gx = read_or_zero(args.grad_flow.data, g);
    r.gy = read_or_zero(args.grad_flow.data, g + args.grad_flow.stride[1]);
    const float grad_lse = read_or_zero(args.grad_lse.data, at3(args.grad_lse));
    r.g = grad_lse - fma_of(r.gx, mean_x, r.gy * mean_y);
    r.unused[0] = r.unused[1] = 0.0f;
    args.rows[i] = r;
    bound = fabsf(beta) * (fabsf(r.gx) * static_cast<float>(args.width_b) +
                           fabsf(r.gy) * static_cast<float>(args.height_b) + fabsf(grad_lse));
  }
  if (!args.folded) raise_bound(args.bound, b, bound);
}

__global__ void __launch_bounds__(256) match_unscale_kernel(const int* bound, int64_t batch, float* unscale) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (b < batch) unscale[b] = hopper::range_unscale(__int_as_float(bound[b]));
}

template <class T>
struct HopperSpace {
  TileSide<T> a, b;
  RowGradient* rows;
  int *bound, *chunk_count;
  float *unscale, *column_sums = nullptr, *tile_sums = nullptr, *mask_sums = nullptr, *beta_sums = nullptr;
  float *out_a = nullptr, *out_b = nullptr, *parts_a = nullptr;
  T *ds, *unit_a = nullptr, *unit_b = nullptr;  // features of norm 1, of a group of images
  hopper::GradientPlan plan;
  int64_t na, nb;
  size_t bytes;

  HopperSpace(const MatchParams& p, void* base) {
    na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    plan = hopper::gradient_plan(p.batch, na, nb, p.channels, p.chunk_bytes, multiprocessors());
    Arena arena(base);
    a = take_tile_side<T>(arena, p.batch, na, p.channels, 1);
    b = take_tile_side<T>(arena, p.batch, nb, p.channels, 1);
    rows = arena.take<RowGradient>(p.batch * na);
    bound = arena.take<int>(p.batch), unscale = arena.take<float>(p.batch);
    chunk_count = arena.take<int>(plan.chunks * p.batch);
    ds = arena.take<T>(plan.images * plan.row_room * plan.pitch);
    if (p.grad_mask_b.data != nullptr || p.grad_beta.data != nullptr) {
      column_sums = arena.take<float>(plan.images * plan.row_room / 32 * plan.pitch);
      tile_sums = arena.take<float>(plan.images * plan.row_room / 32 * (plan.pitch / hopper::kCols));
      mask_sums = arena.take<float>(p.batch * plan.pitch), beta_sums = arena.take<float>(p.batch);
    }
    if (!hopper::kFolded<T> && p.normalize) {
      if (p.grad_fb.data != nullptr) unit_a = arena.take<T>(plan.images * na * a.depth);
      if (p.grad_fa.data != nullptr) unit_b = arena.take<T>(plan.images * nb * b.depth);
    }
    if (p.grad_fa.data != nullptr) {
      out_a = arena.take<float>(plan.images * na * p.channels * (plan.chunks > 1 ? 1 : plan.splits_a));
      if (plan.parted_rows()) parts_a = arena.take<float>(plan.rows * p.channels * plan.splits_a);
    }
    if (p.grad_fb.data != nullptr) out_b = arena.take<float>(plan.images * nb * p.channels * plan.splits_b);
    bytes = arena.bytes();
  }
};

template <class T>
Status prepare(const MatchParams& p, const HopperSpace<T>& w, Stream stream) {
  PackExtras extras;
  extras.counters = w.bound, extras.counter_count = p.batch;
  if (Status s = pack_tiles<T>({p.fa, p.mask_a, p.width_a, p.height_a, p.normalize, SplitRole::kFirst},
                               {p.fb, p.mask_b, p.width_b, p.height_b, p.normalize, SplitRole::kSecond}, w.a, w.b,
                               extras, stream);
      !s.ok()) {
    return s;
  }
  RowsArgs args;
  args.index = w.a.index, args.count = w.a.count, args.scale = w.a.scale;
  args.batch = p.batch, args.positions = w.na, args.pitch = w.a.pitch;
  args.width_a = static_cast<int>(p.width_a);
  args.width_b = static_cast<int>(p.width_b), args.height_b = static_cast<int>(p.height_b);
  args.folded = hopper::kFolded<T>, args.beta = p.beta;
  args.flow = p.flow, args.grad_flow = p.grad_flow, args.lse = p.lse, args.grad_lse = p.grad_lse;
  args.rows = w.rows, args.bound = w.bound;
  args.chunk_count = w.chunk_count, args.chunks = w.plan.chunks, args.chunk_rows = w.plan.rows;
  const int64_t blocks = ceil_div(p.batch * w.na, 256);  // at least a thread for each chunk, since it has a row
  if (blocks > INT_MAX) return {"match: too many source pixels for one launch"};
  if (Status s = launch(&match_rows_kernel, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args); !s.ok()) {
    return s;
  }
  if (hopper::kFolded<T>) return {};
  return launch(&match_unscale_kernel, dim3(static_cast<unsigned>(ceil_div(p.batch, 256))), dim3(256), 0, stream,
                static_cast<const int*>(w.bound), p.batch, w.unscale);
}

// ds of rows [row, row + plan.rows) of `images` images from b0 on, and what mask and beta get of it.
template <class T>
Status chunk_gradient(const MatchParams& p, const HopperSpace<T>& w, int64_t b0, int64_t images, int64_t chunk,
                      Stream stream) {
  const int64_t row = chunk * w.plan.rows, rows = row + w.plan.rows < w.na ? w.plan.rows : w.na - row;
  const TileSide<T> a = w.a.some_images(b0, images), b = w.b.some_images(b0, images);
  const hopper::Plan plan = hopper::plan(images, ceil_div(rows, hopper::kRows), w.nb, a.depth, true, multiprocessors());
  hopper::Maps maps;
  if (Status s = hopper::make_maps(maps, a, b); !s.ok()) return s;
  GradientHopperArgs<T> args;
  args.stream = {w.chunk_count + chunk * p.batch + b0,
                 b.count,
                 static_cast<int>(images),
                 plan.fragments,
                 plan.slabs,
                 b.pitch,
                 b.scale,
                 {b.place},
                 static_cast<int>(row)};
  args.rows = w.rows + b0 * w.na, args.positions_a = w.na;
  args.beta = from_image(p.beta, b0);
  args.bound = w.bound + b0;
  args.ds = w.ds, args.row_room = w.plan.row_room, args.pitch = w.plan.pitch;
  args.column_sums = w.column_sums, args.tile_sums = w.tile_sums;
  const auto kernel =
      w.column_sums == nullptr ? &match_backward_hopper_kernel<T, false> : &match_backward_hopper_kernel<T, true>;
  if (Status s = launch_hopper(kernel, dim3(static_cast<unsigned>(plan.blocks)), dim3(hopper::kThreads),
                               sizeof(hopper::Shared<1>), stream, maps.a, maps.b, args);
      !s.ok()) {
    return s;
  }
  if (w.column_sums == nullptr) return {};
  const int* const live = args.stream.count_a;
  const int64_t runs = w.plan.row_room / 32;
  const ColumnSums<float> columns{w.column_sums,
                                  live,
                                  b.count,
                                  images,
                                  0,
                                  INT_MAX,
                                  chunk == 0,
                                  hopper::kWarpgroupRows,
                                  4,
                                  runs,
                                  w.plan.pitch,
                                  1,
                                  w.mask_sums + b0 * w.plan.pitch};
  if (Status s = launch_add_columns(columns, stream); !s.ok()) return s;
  const TileSums<float> tiles{
      w.tile_sums, live,          b.count, static_cast<int>(images),     chunk == 0,      hopper::kWarpgroupRows,
      4,           hopper::kCols, runs,    w.plan.pitch / hopper::kCols, w.beta_sums + b0};
  return launch(&match_add_tiles_kernel<float>, dim3(static_cast<unsigned>(images)), dim3(256), 0, stream, tiles);
}

template <class T>
Status chunk_products(const MatchParams& p, const HopperSpace<T>& w, int64_t b0, int64_t images, int64_t chunk,
                      Stream stream) {
  const TileSide<T> a = w.a.some_images(b0, images), b = w.b.some_images(b0, images);
  const int64_t row = chunk * w.plan.rows, rows = row + w.plan.rows < w.na ? w.plan.rows : w.na - row;
  const int* const live = w.chunk_count + chunk * p.batch + b0;
  hopper::GradientProductArgs<T> args;
  args.ds = w.ds, args.images = images, args.row_room = w.plan.row_room, args.pitch = w.plan.pitch;
  args.features_a = w.unit_a == nullptr ? a.features : w.unit_a;
  args.features_b = w.unit_b == nullptr ? b.features : w.unit_b;
  args.feature_rows_a = w.na, args.feature_rows_b = w.nb, args.feature_depth = a.depth;
  args.channels = p.channels;
  args.a.rows = live, args.a.depth = b.count, args.a.row_bound = rows;
  args.a.splits = w.plan.splits_a;
  if (w.parts_a == nullptr) {
    args.a.out = w.out_a == nullptr ? nullptr : w.out_a + row * p.channels;
    args.a.out_rows = w.na, args.a.partial = images * w.na * p.channels;
  } else {
    args.a.out = w.parts_a, args.a.out_rows = w.plan.rows, args.a.partial = w.plan.rows * p.channels;
  }
  args.b.rows = b.count, args.b.depth = live, args.b.row_bound = w.nb;
  args.b.first_depth = static_cast<int>(row), args.b.out = w.out_b, args.b.out_rows = w.nb;
  args.b.partial = images * w.nb * p.channels, args.b.splits = w.plan.splits_b, args.b.accumulate = chunk > 0;
  if (Status s = hopper::launch_gradient_products(args, stream); !s.ok()) return s;
  if (w.parts_a == nullptr) return {};
  const hopper::PartsArgs parts{w.parts_a,  w.plan.splits_a,           args.a.partial, live, rows,
                                p.channels, w.out_a + row * p.channels};
  return hopper::launch_add_parts(parts, stream);
}

template <class T>
Status features_gradient(const MatchParams& p, const HopperSpace<T>& w, const TileSide<T>& side, const float* g,
                         int64_t parts, const View4& grad, int64_t b0, int64_t images, Stream stream) {
  if (grad.data == nullptr) return {};
  const TileSide<T> some = side.some_images(b0, images);
  NormalizeBackwardArgs<T> args;
  args.batch = images, args.positions = some.positions;
  args.channels = p.channels, args.padded_channels = some.depth;
  args.normalize = p.normalize, args.folded = hopper::kFolded<T>;
  args.grad_f_hat = g, args.partials = parts, args.partial_stride = images * some.positions * p.channels;
  args.features = some.features;
  args.inv_norm = &some.scale->inv_norm, args.inv_norm_pitch = some.pitch, args.inv_norm_stride = 2;
  args.unscale = hopper::kFolded<T> ? nullptr : w.unscale + b0;
  args.index = some.index, args.count = some.count;
  args.grad = static_cast<T*>(grad.data) + b0 * p.channels * some.positions;
  return launch_normalize_backward(args, stream);
}

// The gradients of the features of images [b0, b0 + images).
template <class T>
Status group(const MatchParams& p, const HopperSpace<T>& w, int64_t b0, int64_t images, Stream stream) {
  if (Status s = normalize_rows(w.a.some_images(b0, images), w.unit_a, stream); !s.ok()) return s;
  if (Status s = normalize_rows(w.b.some_images(b0, images), w.unit_b, stream); !s.ok()) return s;
  for (int64_t chunk = 0; chunk < w.plan.chunks; ++chunk) {
    if (Status s = chunk_gradient(p, w, b0, images, chunk, stream); !s.ok()) return s;
    if (w.out_a == nullptr && w.out_b == nullptr) continue;
    if (Status s = chunk_products(p, w, b0, images, chunk, stream); !s.ok()) return s;
  }
  const int64_t parts_a = w.plan.chunks > 1 ? 1 : w.plan.splits_a;
  if (Status s = features_gradient(p, w, w.a, w.out_a, parts_a, p.grad_fa, b0, images, stream); !s.ok()) return s;
  return features_gradient(p, w, w.b, w.out_b, w.plan.splits_b, p.grad_fb, b0, images, stream);
}

template <class T>
Status backward(const MatchParams& p, void* workspace, Stream stream) {
  const HopperSpace<T> w(p, workspace);
  if (Status s = prepare(p, w, stream); !s.ok()) return s;
  for (int64_t b0 = 0; b0 < p.batch; b0 += w.plan.images) {
    const int64_t images = w.plan.images < p.batch - b0 ? w.plan.images : p.batch - b0;
    if (Status s = group(p, w, b0, images, stream); !s.ok()) return s;
  }
  const MaskAndBeta<float> mask_and_beta{w.mask_sums, w.plan.pitch,  1,
                                         w.beta_sums, w.b.count,     w.b.index,
                                         p.batch,     w.nb,          static_cast<int>(p.width_b),
                                         p.mask_b,    p.grad_mask_b, p.grad_beta};
  return launch_mask_and_beta(mask_and_beta, stream);
}

}  // namespace

const char* why_not_hopper_backward(const MatchParams& p, int capability) {
  if (p.kernel_sigma > 0 && !p.simple) return "the tiles know no window yet";
  return hopper::why_not_backward(p, capability);
}

size_t hopper_backward_bytes(const MatchParams& p) {
  return hopper::dispatch_packed(p, [&](auto tag) { return HopperSpace<decltype(tag)>(p, nullptr).bytes; });
}

Status hopper_backward(const MatchParams& p, void* workspace, Stream stream) {
  return hopper::dispatch_packed(p, [&](auto tag) { return backward<decltype(tag)>(p, workspace, stream); });
}

}  // namespace cosegflow::match_cuda

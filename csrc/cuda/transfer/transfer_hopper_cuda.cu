// transfer forward on Hopper, the host's side: a launch packs both images (pack_tiles.cuh), one gathers the values of
// the allowed targets, and one for every 8 values computes and merges (transfer_hopper_kernel.cuh).
//
// transfer_hopper_gather: a thread a pair of values of a compact target, zeros up to the end of the last tile, so that
//   no score needs a bounds check; and a thread a source pixel, which gets zeros where mask_a excludes it. Moves
//   V (sizeof(S) + 4) bytes a target and V 4 bytes an excluded source: bound by memory. Not measured yet.
// How many launches pay: each costs max(terms C / 2048, 0.12) clocks a score and multiprocessor. The portable path
//   costs a product twice (half features: C / 1024 clocks by mma.sync at half the rate of wgmma; float32: C / 128 by
//   multiply-adds), the probabilities written and read (8 bytes at 15 to 20 a clock: 0.4), and their product with the
//   values in columns of 64 (0.5). So for half features 4 launches cost no more whatever C is, and for float32 of three
//   terms 10 do not; predicted, not measured.
#include <climits>
#include <type_traits>

#include "common/dispatch.h"
#include "hopper/eligibility.cuh"
#include "hopper/operands.cuh"
#include "mask_weight.cuh"
#include "pack_tiles.cuh"
#include "transfer/transfer_common.cuh"
#include "transfer/transfer_hopper_kernel.cuh"

namespace cosegflow::transfer_cuda {
namespace {

constexpr int kMostPlanes = 4, kMostValues = 2 * kMostPlanes;  // of a launch
constexpr int kGatherThreads = 256;

struct GatherArgs {
  View4 values;
  const int *index, *count;  // of compact targets: (B, Nb), (B)
  int64_t positions_b, pitch_b;
  int value_channels, width_b, batch;
  Place* planes;  // (ceil(V / 2), B, pitch_b)

  View3 mask_a;
  int64_t positions_a;
  int width_a;
  float* out;  // (B, V, Na)
};

template <class S>
__device__ __forceinline__ void gather_pair(const GatherArgs& args, int64_t block) {
  const int64_t blocks = args.pitch_b / kGatherThreads;  // of an image and plane
  const int64_t b = block / blocks % args.batch, plane = block / blocks / args.batch;
  const int row = static_cast<int>(block % blocks) * kGatherThreads + static_cast<int>(threadIdx.x);
  const int count = args.count[b];
  if (row / hopper::kCols > max(count - 1, 0) / hopper::kCols) return;  // in no tile that is read
  Place pair = {0.0f, 0.0f};
  if (row < count) {
    const int pixel = args.index[b * args.positions_b + row];
    const View4& v = args.values;
    const S* const from = static_cast<const S*>(v.data) + b * v.stride[0] + 2 * plane * v.stride[1] +
                          pixel / args.width_b * v.stride[2] + pixel % args.width_b * v.stride[3];
    pair.x = to_float(from[0]);
    if (2 * plane + 1 < args.value_channels) pair.y = to_float(from[v.stride[1]]);
  }
  args.planes[(plane * args.batch + b) * args.pitch_b + row] = pair;
}

__device__ __forceinline__ void clear_excluded(const GatherArgs& args, int64_t block) {
  const int64_t i = block * kGatherThreads + threadIdx.x, b = i / args.positions_a, pixel = i % args.positions_a;
  if (b >= args.batch) return;
  if (mask_weight<float>(args.mask_a, b, pixel / args.width_a, pixel % args.width_a).weight > 0) return;
  for (int v = 0; v < args.value_channels; ++v) args.out[(b * args.value_channels + v) * args.positions_a + pixel] = 0;
}

template <class S>
__global__ void __launch_bounds__(kGatherThreads)
    transfer_hopper_gather_kernel(const __grid_constant__ GatherArgs args, int64_t gather_blocks) {
  const int64_t block = blockIdx.x;
  if (block < gather_blocks) {
    gather_pair<S>(args, block);
  } else {
    clear_excluded(args, block - gather_blocks);
  }
}

int planes_of(int64_t values) { return values > 4 ? 4 : (values > 2 ? 2 : 1); }

template <class T>
struct HopperSpace {
  TileSide<T> a, b;
  int64_t row_tiles, passes;
  int64_t counters;  // of one launch
  int* counter;
  hopper::Plan plan;
  Place* planes;   // (ceil(V / 2), B, pitch_b)
  float* partial;  // the states of one launch's fragments
  size_t bytes;

  HopperSpace(const TransferParams& p, void* base) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    a = take_tile_side<T>(arena, p.batch, na, p.channels, terms_of(p.fa.dtype, p.precision));
    b = take_tile_side<T>(arena, p.batch, nb, p.channels, terms_of(p.fa.dtype, p.precision));
    row_tiles = ceil_div(na, hopper::kRows);
    const bool masked = p.mask_a.data != nullptr || p.mask_b.data != nullptr;
    plan = hopper::plan(p.batch, row_tiles, nb, a.depth, masked, multiprocessors());
    passes = ceil_div(p.value_channels, kMostValues);
    counters = p.batch * row_tiles * 2;
    counter = arena.take<int>(passes * counters);
    planes = arena.take<Place>(ceil_div(p.value_channels, 2) * p.batch * b.pitch);
    partial = arena.take<float>(plan.fragments * p.batch * na * (2 + 2 * planes_of(p.value_channels)));
    bytes = arena.bytes();
  }
};

template <class T>
Status gather(const TransferParams& p, const HopperSpace<T>& space, Stream stream) {
  GatherArgs args;
  args.values = p.values;
  args.index = space.b.index, args.count = space.b.count;
  args.positions_b = space.b.positions, args.pitch_b = space.b.pitch;
  args.value_channels = static_cast<int>(p.value_channels);
  args.width_a = static_cast<int>(p.width_a), args.width_b = static_cast<int>(p.width_b);
  args.batch = static_cast<int>(p.batch);
  args.planes = space.planes;
  args.mask_a = p.mask_a, args.positions_a = space.a.positions, args.out = static_cast<float*>(p.out.data);
  const int64_t pairs = ceil_div(p.value_channels, 2) * p.batch * (space.b.pitch / kGatherThreads);
  const int64_t pixels = p.mask_a.data == nullptr ? 0 : ceil_div(p.batch * space.a.positions, kGatherThreads);
  if (pairs + pixels > INT32_MAX) return {"transfer: too many values for one launch"};
  return dispatch_floating(p.values.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    if constexpr (sizeof(S) > sizeof(float)) {
      return {"transfer: values need to be float64 if and only if fa is"};
    } else {
      return launch(&transfer_hopper_gather_kernel<S>, dim3(static_cast<unsigned>(pairs + pixels)),
                    dim3(kGatherThreads), 0, stream, args, pairs);
    }
  });
}

// The pass-th 8 values.
template <int kPlanes, class T>
Status launch_pass(const TransferParams& p, const HopperSpace<T>& space, int64_t pass, const hopper::Maps& maps,
                   Stream stream) {
  const int64_t first = pass * kMostValues, planes = ceil_div(p.value_channels, 2);
  HopperArgs<kPlanes> args;
  args.stream.count_a = space.a.count, args.stream.count_b = space.b.count;
  args.stream.images = static_cast<int>(p.batch), args.stream.most_fragments = space.plan.fragments;
  args.stream.slabs = space.plan.slabs;
  args.stream.pitch_b = space.b.pitch, args.stream.scale_b = space.b.scale;
  for (int v = 0; v < kPlanes; ++v) {  // beyond the last one any will do: no result is made of it
    const int64_t plane = first / 2 + v < planes ? first / 2 + v : planes - 1;
    args.stream.plane_b[v] = space.planes + plane * p.batch * space.b.pitch;
  }
  args.rows = {space.a.scale, space.a.pitch, p.beta, nullptr, 0.0f};
  args.counters = {space.counter + pass * space.counters, static_cast<int>(space.row_tiles)};
  args.positions_a = space.a.positions, args.index_a = space.a.index;
  args.partial = reinterpret_cast<typename HopperArgs<kPlanes>::State*>(space.partial);
  args.out = static_cast<float*>(p.out.data) + first * space.a.positions;
  args.value_channels = p.value_channels;
  args.values = static_cast<int>(p.value_channels - first < kMostValues ? p.value_channels - first : kMostValues);
  args.lse = pass == 0 ? static_cast<float*>(p.lse.data) : nullptr;
  return launch_hopper(&transfer_hopper_kernel<T, kPlanes>, dim3(static_cast<unsigned>(space.plan.blocks)),
                       dim3(hopper::kThreads), sizeof(HopperShared<kPlanes>), stream, maps.a, maps.b, args);
}

template <class T>
Status forward(const TransferParams& p, void* workspace, Stream stream) {
  const HopperSpace<T> space(p, workspace);
  const TileSource source_a{p.fa, p.mask_a, p.width_a, p.height_a, p.normalize, SplitRole::kFirst};
  const TileSource source_b{p.fb, p.mask_b, p.width_b, p.height_b, p.normalize, SplitRole::kSecond};
  PackExtras extras;
  extras.a.lse = p.lse;
  extras.counters = space.counter, extras.counter_count = space.passes * space.counters;
  if (Status s = pack_tiles(source_a, source_b, space.a, space.b, extras, stream); !s.ok()) return s;
  if (Status s = gather(p, space, stream); !s.ok()) return s;

  hopper::Maps maps;
  if (Status s = hopper::make_maps(maps, space.a, space.b); !s.ok()) return s;
  for (int64_t pass = 0; pass < space.passes; ++pass) {
    const auto launch_with = [&](auto planes) {
      return launch_pass<decltype(planes)::value>(p, space, pass, maps, stream);
    };
    Status s;
    switch (planes_of(p.value_channels - pass * kMostValues)) {
      case 1: s = launch_with(std::integral_constant<int, 1>{}); break;
      case 2: s = launch_with(std::integral_constant<int, 2>{}); break;
      default: s = launch_with(std::integral_constant<int, kMostPlanes>{}); break;
    }
    if (!s.ok()) return s;
  }
  return {};
}

}  // namespace

const char* why_not_hopper(const TransferParams& p, int capability) {
  if (const char* reason = hopper::why_not(p, capability)) return reason;
  if (p.fa.dtype == DType::kFloat32 && p.value_channels > 10 * kMostValues) {
    return "over 80 values of float32 features: their probabilities, once, are cheaper than scores for every 8";
  }
  if (p.fa.dtype != DType::kFloat32 && p.value_channels > 4 * kMostValues) {
    return "over 32 values of half features: their probabilities, once, are cheaper than scores for every 8";
  }
  return nullptr;
}

size_t hopper_forward_bytes(const TransferParams& p) {
  return hopper::dispatch_packed(p, [&](auto tag) { return HopperSpace<decltype(tag)>(p, nullptr).bytes; });
}

Status hopper_forward(const TransferParams& p, void* workspace, Stream stream) {
  return hopper::dispatch_packed(p, [&](auto tag) { return forward<decltype(tag)>(p, workspace, stream); });
}

}  // namespace cosegflow::transfer_cuda

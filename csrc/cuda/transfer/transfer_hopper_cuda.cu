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
#include "half_gradient.cuh"
#include "hopper/eligibility.cuh"
#include "hopper/operands.cuh"
#include "mask_weight.cuh"
#include "transfer/transfer_common.cuh"
#include "transfer/transfer_hopper_passes.cuh"

namespace cosegflow::transfer_cuda {
namespace {

constexpr int kGatherThreads = 256;

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
  if (args.largest != nullptr) raise_bound(args.largest, b, max_of(fabsf(pair.x), fabsf(pair.y)));
}

__device__ __forceinline__ void clear_excluded(const GatherArgs& args, int64_t block) {
  const int64_t i = block * kGatherThreads + threadIdx.x, b = i / args.positions_a, pixel = i % args.positions_a;
  if (b >= args.batch) return;
  if (mask_weight<float>(args.mask_a, b, pixel / args.width_a, pixel % args.width_a).weight > 0) return;
  for (int v = 0; v < args.value_channels; ++v)
    args.cleared[(b * args.value_channels + v) * args.positions_a + pixel] = 0;
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

// The pass-th 8 values.
template <int kPlanes, class T>
Status launch_pass(const Passes<T>& passes, const Output& out, int64_t pass, const hopper::Maps& maps, Stream stream) {
  const int64_t first = pass * kMostValues, planes = ceil_div(out.value_channels, 2);
  const TileSide<T>&a = passes.a, &b = passes.b;
  HopperArgs<kPlanes> args;
  args.stream.count_a = a.count, args.stream.count_b = b.count;
  args.stream.images = static_cast<int>(a.batch), args.stream.most_fragments = passes.plan.fragments;
  args.stream.slabs = passes.plan.slabs;
  args.stream.pitch_b = b.pitch, args.stream.scale_b = passes.columns;
  for (int v = 0; v < kPlanes; ++v) {  // beyond the last one any will do: no result is made of it
    const int64_t plane = first / 2 + v < planes ? first / 2 + v : planes - 1;
    args.stream.plane_b[v] = passes.planes + plane * b.batch * b.pitch;
  }
  args.rows = {a.scale, a.pitch, passes.beta, nullptr, 0.0f};
  args.counters = {passes.counters + pass * a.batch * passes.row_tiles * 2, static_cast<int>(passes.row_tiles)};
  args.positions_a = a.positions, args.index_a = a.index;
  args.partial = reinterpret_cast<typename HopperArgs<kPlanes>::State*>(passes.partial);
  args.out = out;
  args.out.values = static_cast<char*>(out.values) + first * a.positions * element_size(out.type);
  if (pass > 0) args.out.lse = nullptr;
  args.values = static_cast<int>(out.value_channels - first < kMostValues ? out.value_channels - first : kMostValues);
  return launch_hopper(&transfer_hopper_kernel<T, kPlanes>, dim3(static_cast<unsigned>(passes.plan.blocks)),
                       dim3(hopper::kThreads), sizeof(HopperShared<kPlanes>), stream, maps.a, maps.b, args);
}

template <class T>
struct HopperSpace {
  TileSide<T> a, b;
  int64_t counter_count;
  int* counters;
  Place* planes;  // (ceil(V / 2), B, pitch_b)
  Passes<T> passes;
  size_t bytes;

  HopperSpace(const TransferParams& p, void* base) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    a = take_tile_side<T>(arena, p.batch, na, p.channels, terms_of(p.fa.dtype, p.precision));
    b = take_tile_side<T>(arena, p.batch, nb, p.channels, terms_of(p.fa.dtype, p.precision));
    counter_count = Passes<T>::counter_count(p.batch, na, p.value_channels);
    counters = arena.take<int>(counter_count);
    planes = arena.take<Place>(ceil_div(p.value_channels, 2) * p.batch * b.pitch);
    const bool masked = p.mask_a.data != nullptr || p.mask_b.data != nullptr;
    passes.take(arena, a, b, masked, p.value_channels, multiprocessors());
    passes.columns = b.scale, passes.planes = planes, passes.beta = p.beta, passes.counters = counters;
    bytes = arena.bytes();
  }
};

template <class T>
Status forward(const TransferParams& p, void* workspace, Stream stream) {
  const HopperSpace<T> space(p, workspace);
  const TileSource source_a{p.fa, p.mask_a, p.width_a, p.height_a, p.normalize, SplitRole::kFirst};
  const TileSource source_b{p.fb, p.mask_b, p.width_b, p.height_b, p.normalize, SplitRole::kSecond};
  PackExtras extras;
  extras.a.lse = p.lse;
  extras.counters = space.counters, extras.counter_count = space.counter_count;
  if (Status s = pack_tiles(source_a, source_b, space.a, space.b, extras, stream); !s.ok()) return s;

  GatherArgs gather;
  gather.values = p.values;
  gather.index = space.b.index, gather.count = space.b.count;
  gather.positions_b = space.b.positions, gather.pitch_b = space.b.pitch;
  gather.value_channels = static_cast<int>(p.value_channels), gather.width_b = static_cast<int>(p.width_b);
  gather.batch = static_cast<int>(p.batch);
  gather.planes = space.planes;
  if (p.mask_a.data != nullptr) gather.cleared = static_cast<float*>(p.out.data);
  gather.mask_a = p.mask_a, gather.positions_a = space.a.positions, gather.width_a = static_cast<int>(p.width_a);
  if (Status s = launch_gather(gather, stream); !s.ok()) return s;

  Output out;
  out.values = p.out.data, out.value_channels = p.value_channels, out.lse = static_cast<float*>(p.lse.data);
  return run_passes(space.passes, out, stream);
}

}  // namespace

Status launch_gather(const GatherArgs& args, Stream stream) {
  const int64_t pairs = ceil_div(args.value_channels, 2) * args.batch * (args.pitch_b / kGatherThreads);
  const int64_t pixels = args.cleared == nullptr ? 0 : ceil_div(args.batch * args.positions_a, kGatherThreads);
  if (pairs + pixels > INT32_MAX) return {"transfer: too many values for one launch"};
  return dispatch_floating(args.values.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    if constexpr (sizeof(S) > sizeof(float)) {
      return {"transfer: values need to be float64 if and only if fa is"};
    } else {
      return launch(&transfer_hopper_gather_kernel<S>, dim3(static_cast<unsigned>(pairs + pixels)),
                    dim3(kGatherThreads), 0, stream, args, pairs);
    }
  });
}

template <class T>
Status run_passes(const Passes<T>& passes, const Output& out, Stream stream) {
  hopper::Maps maps;
  if (Status s = hopper::make_maps(maps, passes.a, passes.b); !s.ok()) return s;
  for (int64_t pass = 0; pass < passes_of(out.value_channels); ++pass) {
    const auto launch_with = [&](auto planes) {
      return launch_pass<decltype(planes)::value>(passes, out, pass, maps, stream);
    };
    Status s;
    switch (planes_of(out.value_channels - pass * kMostValues)) {
      case 1: s = launch_with(std::integral_constant<int, 1>{}); break;
      case 2: s = launch_with(std::integral_constant<int, 2>{}); break;
      default: s = launch_with(std::integral_constant<int, kMostPlanes>{}); break;
    }
    if (!s.ok()) return s;
  }
  return {};
}
template Status run_passes(const Passes<Half>&, const Output&, Stream);
template Status run_passes(const Passes<BFloat16>&, const Output&, Stream);

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

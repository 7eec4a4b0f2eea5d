// match forward on Hopper, the host's side: one launch packs both images (pack_tiles.cuh), one computes and merges
// (match_hopper_kernel.cuh). Where the most probable target is wanted, a small third one computes its score, and with a
// window around it the product runs once more.
//
// match_hopper_score: a warp a row multiplies the two packed rows: 2 depth halves read, 1 / Nb of what the tiles
// compute.
#include <climits>

#include "entry_checks.cuh"
#include "hopper/operands.cuh"
#include "match/match_common.cuh"
#include "match/match_hopper_kernel.cuh"
#include "match/match_pack.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::match_cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(256)
    match_hopper_score_kernel(Outputs out, TileSide<T> a, TileSide<T> b, const int* best, Place* centre) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32;
  const int64_t image = row / a.positions;
  if (image >= a.batch || row % a.positions >= a.count[image]) return;  // a whole warp
  const int pixel = a.index[row], lane = threadIdx.x % 32, target = best[row];
  if (lane == 0 && centre != nullptr) {  // a row of NaN has no target, and stays one wherever its window is
    centre[image * a.pitch + row % a.positions] = b.place[image * b.pitch + max(target, 0)];
  }
  if (target < 0) {
    if (lane == 0) write_most_probable(out, image, pixel, -1, minus_infinity<float>());
    return;
  }
  const T* const from_a = a.features + row * a.depth;
  const T* const from_b = b.features + (image * b.positions + target) * b.depth;
  float dot = 0.0f;
  for (int64_t c = lane; c < a.depth; c += 32) dot = fma_of(to_float(from_a[c]), to_float(from_b[c]), dot);
  dot = warp_reduce_sum(dot);
  if (lane != 0) return;
  const float norm_a = a.scale[image * a.pitch + row % a.positions].inv_norm;
  write_most_probable(out, image, pixel, b.index[image * b.positions + target],
                      dot * norm_a * b.scale[image * b.pitch + target].inv_norm);
}

template <class T>
struct HopperSpace {
  TileSide<T> a, b;
  HopperArgs args;
  Place* centre = nullptr;  // of windows
  int64_t counters;         // of one launch; there is room for two
  hopper::Plan plan;
  size_t bytes;

  HopperSpace(const MatchParams& p, void* base) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    a = take_tile_side<T>(arena, p.batch, na, p.channels, terms_of(p.fa.dtype, p.precision));
    b = take_tile_side<T>(arena, p.batch, nb, p.channels, terms_of(p.fa.dtype, p.precision));
    const int64_t row_tiles = ceil_div(na, hopper::kRows);
    const bool masked = p.mask_a.data != nullptr || p.mask_b.data != nullptr;
    plan = hopper::plan(p.batch, row_tiles, nb, a.depth, masked, multiprocessors());
    counters = p.batch * row_tiles * 2;
    args.stream = {a.count, b.count,  static_cast<int>(p.batch), plan.fragments, plan.slabs, b.pitch,
                   b.scale, {b.place}};
    args.rows = {a.scale, a.pitch, p.beta, nullptr, 0.0f};
    args.counters = {arena.take<int>(2 * counters), static_cast<int>(row_tiles)};
    args.positions_a = na, args.index_a = a.index;
    args.partial = arena.take<RowState>(plan.fragments * p.batch * na);
    args.best = p.index == nullptr ? nullptr : arena.take<int>(plan.fragments * p.batch * na);
    if (p.kernel_sigma > 0) {
      centre = arena.take<Place>(p.batch * a.pitch);
      const float rate = window_rate<float>(p.kernel_sigma);
      args.rows.centre = centre, args.rows.window_rate = rate < FLT_MAX / 2 ? rate * 1.4426950408889634f : FLT_MAX;
    }
    args.out = outputs_of(p);
    bytes = arena.bytes();
  }
};

template <class T, Variant kVariant>
Status launch_match(const HopperSpace<T>& space, const HopperArgs& args, const hopper::Maps& maps, Stream stream) {
  return launch_hopper(&match_hopper_kernel<T, kVariant>, dim3(static_cast<unsigned>(space.plan.blocks)),
                       dim3(hopper::kThreads), sizeof(hopper::Shared<1>), stream, maps.a, maps.b, args);
}

template <class T>
Status forward(const MatchParams& p, void* workspace, Stream stream) {
  const HopperSpace<T> space(p, workspace);
  HopperArgs args = space.args;
  if (Status s = pack_match(p, space.a, space.b, args.counters.counters, 2 * space.counters, stream); !s.ok()) return s;

  hopper::Maps maps;
  if (Status s = hopper::make_maps(maps, space.a, space.b); !s.ok()) return s;
  if (p.index == nullptr) return launch_match<T, Variant::kPlain>(space, args, maps, stream);

  if (Status s = launch_match<T, Variant::kIndexed>(space, args, maps, stream); !s.ok()) return s;
  const int64_t blocks = ceil_div(p.batch * space.a.positions, 8);
  if (blocks > INT32_MAX) return {"match: too many source pixels for one launch"};
  if (Status s = launch(&match_hopper_score_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream,
                        args.out, space.a, space.b, static_cast<const int*>(args.best), space.centre);
      !s.ok()) {
    return s;
  }
  if (!(p.kernel_sigma > 0)) return {};
  args.counters.counters += space.counters;
  return launch_match<T, Variant::kWindowed>(space, args, maps, stream);
}

}  // namespace

size_t hopper_forward_bytes(const MatchParams& p) {
  return hopper::dispatch_packed(p, [&](auto tag) { return HopperSpace<decltype(tag)>(p, nullptr).bytes; });
}

Status hopper_forward(const MatchParams& p, void* workspace, Stream stream) {
  return hopper::dispatch_packed(p, [&](auto tag) { return forward<decltype(tag)>(p, workspace, stream); });
}

}  // namespace cosegflow::match_cuda

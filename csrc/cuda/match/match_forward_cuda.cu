// match forward, the tiled path: pack both sides, tiles with an online softmax (match_forward_kernel.cuh), and the
// small kernels here.
//
// clear: only where mask_a is given, every source pixel starts as excluded. One thread a pixel. Not where halves are
//   packed: that does it.
// finish: one thread a compact row merges the states of the splits and scatters the results to the raster: 16 bytes in
//   per split, 16 bytes out. Both are bound by memory and take microseconds; not measured yet.
// most_probable: only where wanted, a warp a compact row picks the best target of the splits and computes its score
//   again, from two packed rows: 2 C elements in, 1/Nb of what the tiles compute.
#include "common/dispatch.h"
#include "match/match_common.cuh"
#include "match/match_outputs.cuh"
#include "match/match_pack.cuh"
#include "primitives/most_probable.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::match_cuda {
namespace {

template <class Acc>
__global__ void __launch_bounds__(256) match_clear_kernel(Outputs out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= out.batch * out.positions) return;
  const int64_t b = i / out.positions;
  const int pixel = static_cast<int>(i % out.positions);
  write_match(out, b, pixel, Acc(0), Acc(0), minus_infinity<Acc>(), Acc(0));
  if (out.index != nullptr) write_most_probable(out, b, pixel, -1, minus_infinity<Acc>());
}

template <class Acc>
__global__ void __launch_bounds__(256) match_finish_kernel(Outputs out, const int* count, const int* index, int splits,
                                                           const OnlineSoftmax<Acc>* partial) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= out.batch * out.positions) return;
  const int64_t b = i / out.positions;
  if (i % out.positions >= count[b]) return;
  OnlineSoftmax<Acc> all = partial[i];
  for (int s = 1; s < splits; ++s) all.merge(partial[s * out.batch * out.positions + i]);
  const int pixel = index[i];
  write_state(out, b, pixel, all, all.mean_x(), all.mean_y());
}

template <class T>
__global__ void __launch_bounds__(256) match_most_probable_kernel(Outputs out, ForwardArgs<T> args) {
  using Acc = accumulate_t<T>;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 8 + threadIdx.x / 32, rows = out.batch * out.positions;
  const int64_t b = row / out.positions;
  if (row >= rows || row % out.positions >= args.a.count[b]) return;  // a whole warp
  MostProbable<Acc, int> best;
  best.clear();
  for (int s = 0; s < args.splits; ++s) {
    best.merge({args.partial[s * rows + row].peak, Acc(0), args.best[s * rows + row]});
  }
  const int pixel = args.a.index[row], lane = threadIdx.x % 32;
  if (best.index < 0) {
    if (lane == 0) write_most_probable(out, b, pixel, -1, minus_infinity<Acc>());
    return;
  }
  const int64_t target = b * args.b.positions + best.index;
  const T* const from_a = args.a.features + row * args.a.depth;
  const T* const from_b = args.b.features + target * args.b.depth;
  Acc dot = Acc(0);
  for (int64_t c = lane; c < args.a.depth; c += 32) {
    dot = fma_of(static_cast<Acc>(to_float(from_a[c])), static_cast<Acc>(to_float(from_b[c])), dot);
  }
  dot = warp_reduce_sum(dot);
  if (lane == 0) {
    write_most_probable(
        out, b, pixel, args.b.index[target],
        dot * args.a.inv_norm[args.a.at(b, row % out.positions)] * args.b.inv_norm[args.b.at(b, best.index)]);
  }
}

// T is what is multiplied: the features' type, or the bfloat16 terms of float32.
template <class T>
struct ForwardSpace {
  // Halves are packed as for Hopper: in one launch, which also writes the results of excluded pixels.
  using Side = std::conditional_t<sizeof(T) == 2, TileSide<T>, PackedSide<T>>;
  Side a, b;
  ForwardArgs<T> args;
  size_t bytes;

  ForwardSpace(const MatchParams& p, void* base) {
    using Acc = accumulate_t<T>;
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    if constexpr (sizeof(T) == 2) {
      a = take_tile_side<T>(arena, p.batch, na, p.channels, terms_of(p.fa.dtype, p.precision));
      b = take_tile_side<T>(arena, p.batch, nb, p.channels, terms_of(p.fa.dtype, p.precision));
    } else {
      a = take_packed_side<T>(arena, p.batch, na, p.channels);
      b = take_packed_side<T>(arena, p.batch, nb, p.channels);
    }
    args.a = a, args.b = b;
    args.width_b = static_cast<int>(p.width_b), args.height_b = static_cast<int>(p.height_b);
    args.beta = p.beta;
    args.row_tiles = static_cast<int>(ceil_div(na, TileExtent<T>::kRows));
    args.splits = choose_splits(p.batch * args.row_tiles, ceil_div(nb, TileExtent<T>::kCols), 16);
    args.partial = arena.take<OnlineSoftmax<Acc>>(args.splits * p.batch * na);
    if (p.index != nullptr) args.best = arena.take<int>(args.splits * p.batch * na);
    bytes = arena.bytes();
  }
};

template <class T>
Status pack_forward(const MatchParams& p, const ForwardSpace<T>& space, const Outputs& out, Stream stream) {
  if constexpr (sizeof(T) == 2) {
    return pack_match(p, space.a, space.b, nullptr, 0, stream);
  } else {
    if (Status s = pack(space.a, p.fa, p.mask_a, p.width_a, p.normalize, stream); !s.ok()) return s;
    if (Status s = pack(space.b, p.fb, p.mask_b, p.width_b, p.normalize, stream); !s.ok()) return s;
    if (p.mask_a.data == nullptr) return {};
    return launch(&match_clear_kernel<accumulate_t<T>>,
                  dim3(static_cast<unsigned>(ceil_div(out.batch * out.positions, 256))), dim3(256), 0, stream, out);
  }
}

template <class T>
Status forward(const MatchParams& p, void* workspace, Stream stream) {
  using Acc = accumulate_t<T>;
  const ForwardSpace<T> space(p, workspace);
  const ForwardArgs<T>& args = space.args;
  const int64_t rows = p.batch * args.a.positions;
  if (ceil_div(rows, 256) > INT32_MAX) return {"match: too many source pixels for one launch"};
  const Outputs out = outputs_of(p);
  if (Status s = pack_forward(p, space, out, stream); !s.ok()) return s;
  if (Status s = launch_forward(args, stream); !s.ok()) return s;
  if (p.index != nullptr) {
    if (ceil_div(rows, 8) > INT32_MAX) return {"match: too many source pixels for one launch"};
    if (Status s = launch(&match_most_probable_kernel<T>, dim3(static_cast<unsigned>(ceil_div(rows, 8))), dim3(256), 0,
                          stream, out, args);
        !s.ok()) {
      return s;
    }
  }
  return launch(&match_finish_kernel<Acc>, dim3(static_cast<unsigned>(ceil_div(rows, 256))), dim3(256), 0, stream, out,
                args.a.count, args.a.index, args.splits, args.partial);
}

// Calls body(tag) with the type that is multiplied.
template <class Body>
Status dispatch_multiplied(const MatchParams& p, const Body& body) {
  if (p.fa.dtype == DType::kFloat32 && p.precision != Precision::kHighest) return body(BFloat16{});
  return dispatch_floating(p.fa.dtype, [&](auto tag) { return body(typename decltype(tag)::type{}); });
}

}  // namespace

size_t tiled_forward_bytes(const MatchParams& p) {
  size_t bytes = 0;
  (void)dispatch_multiplied(p, [&](auto tag) {
    bytes = ForwardSpace<decltype(tag)>(p, nullptr).bytes;
    return Status{};
  });
  return bytes;
}

Status tiled_forward(const MatchParams& p, void* workspace, Stream stream) {
  return dispatch_multiplied(p, [&](auto tag) { return forward<decltype(tag)>(p, workspace, stream); });
}

}  // namespace cosegflow::match_cuda

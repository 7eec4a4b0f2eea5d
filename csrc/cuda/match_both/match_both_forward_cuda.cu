// match_both forward, the tiled path: pack both sides; then, for chunks of row tiles whose column states fit the
// workspace, tiles with two online softmaxes (match_both_forward_kernel.cuh) and the merge of the columns; then
// results.
//
// clear: only where a mask is given, every pixel of its image starts as excluded. One thread a pixel.
// merge: one thread a compact column adds the states of the chunk's row tiles to its own, in order: 16 bytes a tile.
// finish: one thread a compact pixel merges its parts (of splits, or the one of a column) and scatters to the raster.
// All are bound by memory and take microseconds; not measured yet.
#include "common/dispatch.h"
#include "match/match_outputs.cuh"
#include "match_both/match_both_common.cuh"

namespace cosegflow::match_both_cuda {
namespace {

using match_cuda::Outputs;
using match_cuda::outputs_of;

template <class Acc>
__global__ void __launch_bounds__(256) match_both_clear_kernel(Outputs out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= out.batch * out.positions) return;
  write_match(out, i / out.positions, static_cast<int>(i % out.positions), Acc(0), Acc(0), minus_infinity<Acc>(),
              Acc(0));
}

// all (B, Nb) = or merged with the states of the chunk's row tiles.
template <class T, class Acc = accumulate_t<T>>
__global__ void __launch_bounds__(256)
    match_both_merge_kernel(ForwardArgs<T> args, int tile_rows, OnlineSoftmax<Acc>* all) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x, positions = args.b.positions;
  if (i >= args.b.batch * positions) return;
  const int64_t b = i / positions, j = i % positions;
  if (j >= args.b.count[b]) return;
  OnlineSoftmax<Acc> state;
  state.clear();
  if (args.tile_begin > 0) state = all[i];
  const int live = args.a.count[b] - args.tile_begin * tile_rows;
  for (int tile = 0; tile < args.row_tiles && tile * tile_rows < live; ++tile) {
    state.merge(args.columns[(b * args.row_tiles + tile) * positions + j]);
  }
  all[i] = state;
}

template <class Acc>
__global__ void __launch_bounds__(256) match_both_finish_kernel(Outputs out, const int* count, const int* index,
                                                                int parts, const OnlineSoftmax<Acc>* part) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= out.batch * out.positions) return;
  const int64_t b = i / out.positions;
  if (i % out.positions >= count[b]) return;
  OnlineSoftmax<Acc> all = part[i];
  for (int s = 1; s < parts; ++s) all.merge(part[s * out.batch * out.positions + i]);
  write_state(out, b, index[i], all, all.mean_x(), all.mean_y());
}

template <class T>
struct ForwardSpace {
  using Acc = accumulate_t<T>;
  ForwardArgs<T> args;
  int all_tiles;                // of rows
  OnlineSoftmax<Acc>* columns;  // (B, Nb)
  size_t bytes;

  ForwardSpace(const MatchBothParams& p, void* base) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    args.a = take_packed_side<T>(arena, p.batch, na, p.channels);
    args.b = take_packed_side<T>(arena, p.batch, nb, p.channels);
    args.width_a = static_cast<int>(p.width_a), args.height_a = static_cast<int>(p.height_a);
    args.width_b = static_cast<int>(p.width_b), args.height_b = static_cast<int>(p.height_b);
    args.beta = p.beta;
    all_tiles = static_cast<int>(ceil_div(na, TileExtent<T>::kRows));
    const int64_t tile_bytes = p.batch * nb * static_cast<int64_t>(sizeof(OnlineSoftmax<Acc>));
    const int64_t fit = static_cast<int64_t>(p.chunk_bytes == 0 ? kDefaultChunkBytes : p.chunk_bytes) / tile_bytes;
    args.row_tiles = static_cast<int>(fit < 1 ? 1 : (fit < all_tiles ? fit : all_tiles));
    args.splits = choose_splits(p.batch * args.row_tiles, ceil_div(nb, TileExtent<T>::kCols), 16);
    args.rows = arena.take<OnlineSoftmax<Acc>>(args.splits * p.batch * na);
    args.columns = arena.take<OnlineSoftmax<Acc>>(args.row_tiles * p.batch * nb);
    columns = arena.take<OnlineSoftmax<Acc>>(p.batch * nb);
    bytes = arena.bytes();
  }
};

template <class T>
Status forward(const MatchBothParams& p, void* workspace, Stream stream) {
  using Acc = accumulate_t<T>;
  ForwardSpace<T> space(p, workspace);
  ForwardArgs<T>& args = space.args;
  const int64_t blocks_a = ceil_div(p.batch * args.a.positions, 256);
  const int64_t blocks_b = ceil_div(p.batch * args.b.positions, 256);
  if (blocks_a > INT32_MAX || blocks_b > INT32_MAX) return {"match_both: too many pixels for one launch"};
  const dim3 grid_a(static_cast<unsigned>(blocks_a)), grid_b(static_cast<unsigned>(blocks_b)), block(256);
  const Outputs out_a = outputs_of(a_to_b(p)), out_b = outputs_of(b_to_a(p));
  if (Status s = pack(args.a, p.fa, p.mask_a, p.width_a, p.normalize, stream); !s.ok()) return s;
  if (Status s = pack(args.b, p.fb, p.mask_b, p.width_b, p.normalize, stream); !s.ok()) return s;
  if (p.mask_a.data != nullptr) {
    if (Status s = launch(&match_both_clear_kernel<Acc>, grid_a, block, 0, stream, out_a); !s.ok()) return s;
  }
  if (p.mask_b.data != nullptr) {
    if (Status s = launch(&match_both_clear_kernel<Acc>, grid_b, block, 0, stream, out_b); !s.ok()) return s;
  }
  const int chunk = args.row_tiles;
  for (args.tile_begin = 0; args.tile_begin < space.all_tiles; args.tile_begin += chunk) {
    args.row_tiles = chunk < space.all_tiles - args.tile_begin ? chunk : space.all_tiles - args.tile_begin;
    if (Status s = launch_forward(args, stream); !s.ok()) return s;
    if (Status s = launch(&match_both_merge_kernel<T>, grid_b, block, 0, stream, args,
                          static_cast<int>(TileExtent<T>::kRows), space.columns);
        !s.ok()) {
      return s;
    }
  }
  if (Status s = launch(&match_both_finish_kernel<Acc>, grid_a, block, 0, stream, out_a, args.a.count, args.a.index,
                        args.splits, args.rows);
      !s.ok()) {
    return s;
  }
  return launch(&match_both_finish_kernel<Acc>, grid_b, block, 0, stream, out_b, args.b.count, args.b.index, 1,
                space.columns);
}

}  // namespace

size_t tiled_forward_bytes(const MatchBothParams& p) {
  size_t bytes = 0;
  (void)dispatch_floating(p.fa.dtype, [&](auto tag) {
    bytes = ForwardSpace<typename decltype(tag)::type>(p, nullptr).bytes;
    return Status{};
  });
  return bytes;
}

Status tiled_forward(const MatchBothParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype,
                           [&](auto tag) { return forward<typename decltype(tag)::type>(p, workspace, stream); });
}

}  // namespace cosegflow::match_both_cuda

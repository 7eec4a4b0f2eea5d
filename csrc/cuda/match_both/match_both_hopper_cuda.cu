// match_both forward on Hopper, the host's side: one launch packs both images (pack_tiles.cuh), one computes the scores
// and the matches of a (match_both_hopper_kernel.cuh), one those of b from the states that it left of the columns. Row
// tiles whose states do not fit the workspace come in chunks, the last two launches again for each.
//
// columns: a warp merges the states of 32 columns over an eighth of the half row tiles, then one of the 8 warps merges
//   the eighths, in order; 16 bytes read a state, 512 contiguous. Bound by memory: 1/8 byte a score.
// chunk_rows: one thread an image and chunk.
// Fractions of the limit reached: not measured yet.
#include "entry_checks.cuh"
#include "hopper/operands.cuh"
#include "match_both/match_both_common.cuh"
#include "match_both/match_both_hopper_kernel.cuh"
#include "pack_tiles.cuh"

namespace cosegflow::match_both_cuda {
namespace {

// rows (chunks, images): how many of an image's rows are in a chunk.
__global__ void __launch_bounds__(256)
    match_both_hopper_chunk_rows_kernel(const int* count, int images, int chunks, int chunk_rows, int* rows) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= static_cast<int64_t>(chunks) * images) return;
  const int64_t left = count[i % images] - i / images * chunk_rows;
  rows[i] = static_cast<int>(left < 0 ? 0 : (left < chunk_rows ? left : chunk_rows));
}

struct ColumnArgs {
  match_cuda::Outputs out;
  const int *rows, *count, *index;  // (images): of a in this chunk, of b; (images, Nb)
  const Scale* scale;               // (images, pitch)
  int64_t pitch;
  int halves;          // of row tiles
  const State* state;  // (images, halves, pitch)
  State* all;          // (images, pitch): over the chunks before this one; used where there are several
  bool first, last;    // of the chunks
};

__global__ void __launch_bounds__(256) match_both_hopper_columns_kernel(ColumnArgs args) {
  constexpr int kParts = 8;
  using Parts = State[kParts][32];
  CSF_SHARED(Parts, parts);
  const int64_t groups = (args.out.positions + 31) / 32, image = blockIdx.x / groups;
  const int lane = static_cast<int>(threadIdx.x) % 32, part = static_cast<int>(threadIdx.x) / 32;
  const int64_t column = blockIdx.x % groups * 32 + lane;
  if (blockIdx.x % groups * 32 >= args.count[image]) return;  // the whole block
  const bool live = column < args.count[image];
  const int halves = (args.rows[image] + hopper::kWarpgroupRows - 1) / hopper::kWarpgroupRows;
  const int each = (halves + kParts - 1) / kParts, end = min(halves, (part + 1) * each);
  State state;
  state.clear();
  if (live) {
    for (int half = part * each; half < end; ++half) {
      state.merge(args.state[(image * args.halves + half) * args.pitch + column]);
    }
  }
  parts[part][lane] = state;
  __syncthreads();
  if (part != 0 || !live) return;
  Match all;
  all.clear();
  State* const before = args.all + image * args.pitch + column;
  if (!args.first) all.merge(*before);
#pragma unroll
  for (int p = 0; p < kParts; ++p) all.merge(parts[p][lane]);
  if (!args.last) {
    *before = all;
    return;
  }
  all.log_weight = args.scale[image * args.pitch + column].log_weight;
  write_state(args.out, image, args.index[image * args.out.positions + column], all, all.mean(0), all.mean(1));
}

template <class T>
struct HopperSpace {
  TileSide<T> a, b;
  HopperArgs args;      // of the first chunk
  ColumnArgs columns;   // of the first chunk
  int64_t chunk_tiles;  // row tiles of a chunk
  int chunks;
  hopper::Plan plan;          // of a chunk
  int* chunk_rows = nullptr;  // (chunks, B); null where one chunk is all
  int64_t counters;           // of a chunk
  size_t bytes;

  HopperSpace(const MatchBothParams& p, void* base) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    const int terms = terms_of(p.fa.dtype, p.precision);
    a = take_tile_side<T>(arena, p.batch, na, p.channels, terms);
    b = take_tile_side<T>(arena, p.batch, nb, p.channels, terms);
    const int64_t row_tiles = ceil_div(na, hopper::kRows);
    const int64_t tile_bytes = p.batch * 2 * b.pitch * static_cast<int64_t>(sizeof(State));
    const int64_t fit = static_cast<int64_t>(p.chunk_bytes == 0 ? kDefaultChunkBytes : p.chunk_bytes) / tile_bytes;
    chunk_tiles = fit < 1 ? 1 : (fit < row_tiles ? fit : row_tiles);
    chunks = static_cast<int>(ceil_div(row_tiles, chunk_tiles));

    const bool masked = p.mask_a.data != nullptr || p.mask_b.data != nullptr;
    plan = hopper::plan(p.batch, chunk_tiles, nb, a.depth, masked, multiprocessors());
    counters = p.batch * chunk_tiles * 2;
    if (chunks > 1) chunk_rows = arena.take<int>(chunks * p.batch);
    args.stream = {chunk_rows == nullptr ? a.count : chunk_rows,
                   b.count,
                   static_cast<int>(p.batch),
                   plan.fragments,
                   plan.slabs,
                   b.pitch,
                   b.scale,
                   {b.place}};
    args.rows = {a.scale, a.pitch, p.beta, nullptr, 0.0f};
    args.place_a = a.place;
    args.counters = {arena.take<int>(chunks * counters), static_cast<int>(chunk_tiles)};
    args.positions_a = na, args.index_a = a.index;
    args.partial = arena.take<State>(plan.fragments * p.batch * na);
    args.columns = arena.take<State>(p.batch * 2 * chunk_tiles * b.pitch);
    args.out = match_cuda::outputs_of(a_to_b(p));
    columns = {match_cuda::outputs_of(b_to_a(p)),
               args.stream.count_a,
               b.count,
               b.index,
               b.scale,
               b.pitch,
               static_cast<int>(2 * chunk_tiles),
               args.columns,
               chunks == 1 ? nullptr : arena.take<State>(p.batch * b.pitch),
               true,
               chunks == 1};
    bytes = arena.bytes();
  }
};

template <class T>
Status forward(const MatchBothParams& p, void* workspace, Stream stream) {
  const HopperSpace<T> space(p, workspace);
  const int64_t column_blocks = p.batch * ceil_div(space.b.positions, 32);
  const int64_t chunk_row_blocks = ceil_div(space.chunks * p.batch, 256);
  if (column_blocks > INT32_MAX || chunk_row_blocks > INT32_MAX) {
    return {"match_both: too many pixels for one launch"};
  }
  const TileSource source_a{p.fa, p.mask_a, p.width_a, p.height_a, p.normalize, SplitRole::kFirst};
  const TileSource source_b{p.fb, p.mask_b, p.width_b, p.height_b, p.normalize, SplitRole::kSecond};
  PackExtras extras;
  extras.a = {p.ab.flow, p.ab.lse, p.ab.confidence, nullptr, {}};
  extras.b = {p.ba.flow, p.ba.lse, p.ba.confidence, nullptr, {}};
  extras.counters = space.args.counters.counters, extras.counter_count = space.chunks * space.counters;
  if (Status s = pack_tiles(source_a, source_b, space.a, space.b, extras, stream); !s.ok()) return s;
  if (space.chunks > 1) {
    const int chunk_rows = static_cast<int>(space.chunk_tiles * hopper::kRows);
    if (Status s =
            launch(&match_both_hopper_chunk_rows_kernel, dim3(static_cast<unsigned>(chunk_row_blocks)), dim3(256), 0,
                   stream, space.a.count, static_cast<int>(p.batch), space.chunks, chunk_rows, space.chunk_rows);
        !s.ok()) {
      return s;
    }
  }

  hopper::Maps maps;
  if (Status s = hopper::make_maps(maps, space.a, space.b); !s.ok()) return s;
  for (int chunk = 0; chunk < space.chunks; ++chunk) {
    const int64_t row = chunk * space.chunk_tiles * hopper::kRows;
    HopperArgs args = space.args;
    ColumnArgs columns = space.columns;
    args.stream.first_row = static_cast<int>(row);
    args.rows.scale_a += row, args.place_a += row, args.index_a += row;
    args.stream.count_a += chunk * p.batch, columns.rows += chunk * p.batch;
    args.counters.counters += chunk * space.counters;
    columns.first = chunk == 0, columns.last = chunk == space.chunks - 1;
    if (Status s = launch_hopper(&match_both_hopper_kernel<T>, dim3(static_cast<unsigned>(space.plan.blocks)),
                                 dim3(hopper::kThreads), sizeof(HopperShared), stream, maps.a, maps.b, args);
        !s.ok()) {
      return s;
    }
    if (Status s = launch(&match_both_hopper_columns_kernel, dim3(static_cast<unsigned>(column_blocks)), dim3(256), 0,
                          stream, columns);
        !s.ok()) {
      return s;
    }
  }
  return {};
}

}  // namespace

size_t hopper_forward_bytes(const MatchBothParams& p) {
  return hopper::dispatch_packed(p, [&](auto tag) { return HopperSpace<decltype(tag)>(p, nullptr).bytes; });
}

Status hopper_forward(const MatchBothParams& p, void* workspace, Stream stream) {
  return hopper::dispatch_packed(p, [&](auto tag) { return forward<decltype(tag)>(p, workspace, stream); });
}

}  // namespace cosegflow::match_both_cuda

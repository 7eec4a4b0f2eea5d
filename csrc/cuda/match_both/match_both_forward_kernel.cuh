// match_both forward over a tile engine: each tile of scores feeds an online softmax of its rows and one of its
// columns.
//
// Block: as in match_forward_kernel.cuh, a tile of rows (pixels of a) against a run of tiles of columns (pixels of b).
// Registers: the accumulators, which hold beta * s in the epilogue, and the states of the thread's rows. Columns are
//   reduced in groups of four (float32, float64: two): over the thread's rows, then over the lanes that share them,
//   where an exchange hands half of the columns to the other lane, so that four columns cost four exchanges, not
//   twelve.
// Shared memory: the engine's ring (and parked states); the rows and the columns (place, norm, log weight), of two
//   tiles; one state of a column per warp, which are merged in the order of the warps and written, 16 bytes a column:
//   1/8 byte a score. The same array merges the rows at the end.
// Pipeline: the engine's. Two exponentials a score where two calls of match compute the product twice: 2 Na Nb C FLOPs
//   instead of 4. Bound by the product for large C. Fraction of the limit reached: not measured yet.
// Every state has one writer and every merge one order: the bits are the same on every run.
#pragma once

#include "match/match_forward_kernel.cuh"
#include "match_both/match_both_common.cuh"

namespace cosegflow::match_both_cuda {

template <class Acc>
__device__ __forceinline__ OnlineSoftmax<Acc> other_lane(const OnlineSoftmax<Acc>& mine, int lanes) {
  OnlineSoftmax<Acc> other;
  other.peak = __shfl_xor_sync(0xffffffffu, mine.peak, lanes);
  other.total = __shfl_xor_sync(0xffffffffu, mine.total, lanes);
  other.x = __shfl_xor_sync(0xffffffffu, mine.x, lanes);
  other.y = __shfl_xor_sync(0xffffffffu, mine.y, lanes);
  return other;
}

// Merges the states of kCount columns over the lanes that share them, kFirst and up. On return the first `left` states
// are those of columns offset, offset + 1, ... of this lane; lanes with the same columns have the same bits.
template <int kFirst, int kCount, class Acc>
__device__ __forceinline__ void merge_shared_columns(OnlineSoftmax<Acc> (&state)[kCount], int& offset, int& left) {
  offset = 0, left = kCount;
#pragma unroll
  for (int lanes = kFirst; lanes < 32; lanes *= 2) {
    const bool upper = (threadIdx.x & lanes) != 0;
    if (left == 1) {  // in the same order in both lanes, so that their copies have the same bits
      const OnlineSoftmax<Acc> other = other_lane(state[0], lanes), mine = state[0];
      state[0] = upper ? other : mine;
      state[0].merge(upper ? mine : other);
      continue;
    }
    left /= 2;
#pragma unroll
    for (int k = 0; k < kCount / 2; ++k) {
      if (k >= left) break;
      const OnlineSoftmax<Acc> give = upper ? state[k] : state[k + left];
      if (upper) state[k] = state[k + left];
      state[k].merge(other_lane(give, lanes));
    }
    if (upper) offset += left;
  }
}

template <class T, class Engine>
__global__ void __launch_bounds__(256, Engine::kForwardBlocksPerSm) match_both_forward_kernel(ForwardArgs<T> args) {
  using Acc = accumulate_t<T>;
  using Columns = Column<Acc>[2][Engine::kCols];
  using Rows = Column<Acc>[Engine::kRows];
  using States = OnlineSoftmax<Acc>[Engine::kColWarps][Engine::kCols];
  static_assert(Engine::kRowWarps <= Engine::kColWarps && Engine::kRows <= Engine::kCols, "one array merges both");
  constexpr int kR = Engine::kThreadRows, kC = Engine::kThreadCols;
  constexpr int kSharing = 32 / Engine::kRowLanes, kGroup = kSharing < 4 ? kSharing : 4;
  static_assert(kC % kGroup == 0, "columns are reduced in groups");
  CSF_DYNAMIC_SHARED(unsigned char, ring);
  CSF_SHARED(Columns, columns);
  CSF_SHARED(Rows, rows_of_tile);
  CSF_SHARED(States, states);
  CSF_SHARED(int64_t, columns_out);  // what only the end of an epilogue needs had better not stay in registers

  const BlockPlace place = block_place(args.row_tiles, args.splits);
  const int64_t b = place.b;
  const int first_row = (args.tile_begin + place.row_tile) * Engine::kRows;
  const int64_t row0 = b * args.a.positions + first_row;
  const int count_a = args.a.count[b], rows = min(Engine::kRows, count_a - first_row);
  if (rows <= 0) return;
  const int count = args.b.count[b];

  if (threadIdx.x == 0) columns_out = (b * args.row_tiles + place.row_tile) * args.b.positions;
  if (threadIdx.x < Engine::kRows) {  // published by the engine's barriers
    rows_of_tile[threadIdx.x] =
        load_column(args.a, b, first_row + static_cast<int>(threadIdx.x), count_a, args.width_a, args.height_a);
  }
  OnlineSoftmax<Acc> state[kR];
#pragma unroll
  for (int r = 0; r < kR; ++r) state[r].clear();
  match_cuda::RowStates<Acc, kR, Engine::kParkStates> row_states(ring + Engine::kSharedBytes);
  row_states.store(state);

  typename Engine::Strip strip;
  strip.a = args.a.features + row0 * args.a.padded_channels;
  strip.b = args.b.features + b * args.b.positions * args.b.padded_channels;
  strip.rows = rows;
  strip.count = count;
  strip.depth = static_cast<int>(args.a.padded_channels);
  split_range((count + Engine::kCols - 1) / Engine::kCols, args.splits, place.split, strip.first, strip.end);

  const auto begin = [&](int tile) {
    if (threadIdx.x < Engine::kCols) {
      columns[tile % 2][threadIdx.x] = load_column(args.b, b, tile * Engine::kCols + static_cast<int>(threadIdx.x),
                                                   count, args.width_b, args.height_b);
    }
  };
  const auto epilogue = [&](int tile, typename Engine::Accumulators& acc) {
    const Column<Acc>* const column = columns[tile % 2];
    const Acc beta = static_cast<const Acc*>(args.beta.data)[b * args.beta.stride[0]];
    {  // rows, whose targets are the columns
      OnlineSoftmax<Acc> state[kR];
      row_states.load(state);
      Acc peak[kR];
#pragma unroll
      for (int r = 0; r < kR; ++r) peak[r] = state[r].peak;
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        const Column<Acc> target = column[Engine::col(c)];
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          Acc& value = Engine::value(acc, r, c);
          value = beta * (value * rows_of_tile[Engine::row(r)].inv_norm * target.inv_norm);
          peak[r] = max_of(peak[r], value + target.log_weight);
        }
        fence_loads();
      }
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const Acc rescale = exp_of(state[r].peak - OnlineSoftmax<Acc>::base_of(peak[r]));
        state[r].total *= rescale, state[r].x *= rescale, state[r].y *= rescale;
        state[r].peak = peak[r];
      }
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        const Column<Acc> target = column[Engine::col(c)];
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const Acc e =
              exp_of((Engine::value(acc, r, c) + target.log_weight) - OnlineSoftmax<Acc>::base_of(state[r].peak));
          state[r].total += e;
          state[r].x = fma_of(e, target.x, state[r].x);
          state[r].y = fma_of(e, target.y, state[r].y);
        }
        fence_loads();
      }
      row_states.store(state);
    }
#pragma unroll
    for (int c0 = 0; c0 < kC; c0 += kGroup) {  // columns, whose targets are the rows
      fence_loads();
      OnlineSoftmax<Acc> mine[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        mine[c].clear();
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const Acc logit = Engine::value(acc, r, c0 + c) + rows_of_tile[Engine::row(r)].log_weight;
          Engine::value(acc, r, c0 + c) = logit;
          mine[c].peak = max_of(mine[c].peak, logit);
        }
        const Acc base = OnlineSoftmax<Acc>::base_of(mine[c].peak);
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const Column<Acc>& target = rows_of_tile[Engine::row(r)];
          const Acc e = exp_of(Engine::value(acc, r, c0 + c) - base);
          mine[c].total += e;
          mine[c].x = fma_of(e, target.x, mine[c].x);
          mine[c].y = fma_of(e, target.y, mine[c].y);
        }
      }
      int offset, left;
      merge_shared_columns<Engine::kRowLanes>(mine, offset, left);
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        if (c < left) states[Engine::col_warp()][Engine::col(c0 + offset + c)] = mine[c];
      }
    }
    __syncthreads();
    // Read before the next epilogue writes them: the engine's barriers are in between.
    const int col = static_cast<int>(threadIdx.x), target = tile * Engine::kCols + col;
    if (col < Engine::kCols && target < count) {
      OnlineSoftmax<Acc> all = states[0][col];
#pragma unroll
      for (int w = 1; w < Engine::kColWarps; ++w) all.merge(states[w][col]);
      args.columns[columns_out + target] = all;
    }
  };
  Engine::run(ring, strip, begin, epilogue);

  __syncthreads();  // the states of the last tile's columns have been read
  row_states.load(state);
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    state[r].template merge_lanes<Engine::kRowLanes>();
    if (threadIdx.x % Engine::kRowLanes == 0) states[Engine::row_warp()][Engine::row(r)] = state[r];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < rows) {
    OnlineSoftmax<Acc> all = states[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < Engine::kRowWarps; ++w) all.merge(states[w][threadIdx.x]);
    args.rows[static_cast<int64_t>(place.split) * args.a.batch * args.a.positions + row0 + threadIdx.x] = all;
  }
}

template <class T, class Engine>
Status launch_forward_with(const ForwardArgs<T>& args, Stream stream) {
  const int64_t blocks = args.a.batch * args.row_tiles * args.splits;
  if (blocks > INT32_MAX) return {"match_both: too many pixels for one launch"};
  return launch(&match_both_forward_kernel<T, Engine>, dim3(static_cast<unsigned>(blocks)), dim3(256),
                match_cuda::forward_shared_bytes<Engine, false>(), stream, args);
}

}  // namespace cosegflow::match_both_cuda

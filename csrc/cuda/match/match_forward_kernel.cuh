// match forward over a tile engine: online softmax whose value is the coordinate.
//
// Block: a tile of source rows against a run of target tiles (all of them, or one of `splits` parts). Each tile of
//   scores is computed by the engine in registers and reduced on the spot: it is never written.
// Registers: the accumulators, and for each row that a thread holds (peak, total, x, y) over the thread's own columns;
//   the lanes and warps that share a row merge only once, at the end. The float32 and float64 engines hold more rows:
//   they park these states in shared memory, a private slot per thread, while a product runs.
// Shared memory: the engine's ring; the norms of the rows; the columns (x, y, inv_norm, log m) of two tiles: those of
//   the next tile are loaded by begin() while slower warps still read those of this one.
// kIndexed: each row's state also holds the target with the largest logit, the first one on ties: within a thread
//   targets ascend, between lanes, warps and splits the lower one wins.
// Pipeline: the engine's copies of the next tile run during the softmax of this one.
// Moves Na/128 * Nb * C elements (from L2 mostly), 2 Na Nb C FLOPs and Na Nb exponentials: bound by the product for
// C >= 64. Fraction of the limit reached: not measured yet.
#pragma once

#include "match/match_common.cuh"
#include "primitives/most_probable.cuh"

namespace cosegflow::match_cuda {

// The states of a thread's rows between two tiles.
template <class Acc, int kR, bool kParked>
struct RowStates {
  OnlineSoftmax<Acc> state[kR];
  explicit __device__ __forceinline__ RowStates(void*) {}
  __device__ __forceinline__ Acc peak(int r) const { return state[r].peak; }
  __device__ __forceinline__ void load(OnlineSoftmax<Acc> (&to)[kR]) const {
#pragma unroll
    for (int r = 0; r < kR; ++r) to[r] = state[r];
  }
  __device__ __forceinline__ void store(const OnlineSoftmax<Acc> (&from)[kR]) {
#pragma unroll
    for (int r = 0; r < kR; ++r) state[r] = from[r];
  }
};
template <class Acc, int kR>
struct RowStates<Acc, kR, true> {
  Acc* slot;  // [row][4][thread]: neighbouring threads use neighbouring banks
  explicit __device__ __forceinline__ RowStates(void* parked) : slot(static_cast<Acc*>(parked) + threadIdx.x) {}
  __device__ __forceinline__ Acc peak(int r) const { return slot[r * 1024]; }
  __device__ __forceinline__ void load(OnlineSoftmax<Acc> (&to)[kR]) const {
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      to[r] = {slot[r * 1024], slot[r * 1024 + 256], slot[r * 1024 + 512], slot[r * 1024 + 768]};
    }
  }
  __device__ __forceinline__ void store(const OnlineSoftmax<Acc> (&from)[kR]) {
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      slot[r * 1024] = from[r].peak, slot[r * 1024 + 256] = from[r].total;
      slot[r * 1024 + 512] = from[r].x, slot[r * 1024 + 768] = from[r].y;
    }
  }
};

// The most probable targets of a thread's rows, as tile * kThreadCols + column of the thread; -1: none. Always parked:
// they are written rarely and read once.
template <class Acc>
struct RowBests {
  Acc* slot;  // [row][thread]: the places of RowStates go on, so that one address serves both
  explicit __device__ __forceinline__ RowBests(void* parked) : slot(static_cast<Acc*>(parked) + threadIdx.x) {}
  __device__ __forceinline__ int& operator[](int r) { return *reinterpret_cast<int*>(slot + r * 256); }
};

template <class Engine>
constexpr size_t parked_states_bytes() {
  return Engine::kParkStates ? sizeof(OnlineSoftmax<typename Engine::Acc>) * Engine::kThreadRows * 256 : 0;
}
template <class Engine, bool kIndexed>
constexpr size_t forward_shared_bytes() {
  return Engine::kSharedBytes + parked_states_bytes<Engine>() +
         (kIndexed ? sizeof(typename Engine::Acc) * Engine::kThreadRows * 256 : 0);
}

template <class T, class Engine, bool kIndexed>
__global__ void __launch_bounds__(256, Engine::kForwardBlocksPerSm) match_forward_kernel(ForwardArgs<T> args) {
  using Acc = accumulate_t<T>;
  using Columns = Column<Acc>[2][Engine::kCols];
  using Merged = OnlineSoftmax<Acc>[Engine::kRowWarps][Engine::kRows];
  constexpr int kR = Engine::kThreadRows, kC = Engine::kThreadCols;
  CSF_DYNAMIC_SHARED(unsigned char, ring);
  CSF_SHARED(Columns, columns);
  CSF_SHARED(Merged, merged);
  using RowNorms = Acc[Engine::kRows];
  CSF_SHARED(RowNorms, inv_norm);

  const BlockPlace place = block_place(args.row_tiles, args.splits);
  const int64_t b = place.b, row0 = b * args.a.positions + static_cast<int64_t>(place.row_tile) * Engine::kRows;
  const int rows = min(Engine::kRows, args.a.count[b] - place.row_tile * Engine::kRows);
  if (rows <= 0) return;
  const int count = args.b.count[b];

  if (threadIdx.x < Engine::kRows) {  // published by the engine's barriers
    inv_norm[threadIdx.x] = static_cast<int>(threadIdx.x) < rows
                                ? args.a.inv_norm[args.a.at(b, place.row_tile * Engine::kRows + threadIdx.x)]
                                : Acc(0);
  }
  OnlineSoftmax<Acc> state[kR];
#pragma unroll
  for (int r = 0; r < kR; ++r) state[r].clear();
  RowStates<Acc, kR, Engine::kParkStates> states(ring + Engine::kSharedBytes);
  states.store(state);
  RowBests<Acc> bests(ring + Engine::kSharedBytes + parked_states_bytes<Engine>());
  if constexpr (kIndexed) {
#pragma unroll
    for (int r = 0; r < kR; ++r) bests[r] = -1;
  }

  typename Engine::Strip strip;
  strip.a = args.a.features + row0 * args.a.depth;
  strip.b = args.b.features + b * args.b.positions * args.b.depth;
  strip.rows = rows;
  strip.count = count;
  strip.depth = static_cast<int>(args.a.depth);
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
    Acc peak[kR], norm[kR];
#pragma unroll
    for (int r = 0; r < kR; ++r) peak[r] = states.peak(r), norm[r] = inv_norm[Engine::row(r)];
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      const Column<Acc> target = column[Engine::col(c)];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        Acc& value = Engine::value(acc, r, c);
        value = fma_of(beta, value * norm[r] * target.inv_norm, target.log_weight);
        peak[r] = max_of(peak[r], value);
      }
    }
    if constexpr (kIndexed) {  // rare: a row has a new peak in about one of k tiles at the k-th
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        if (!(peak[r] > states.peak(r))) continue;
        int at = kC - 1;
#pragma unroll
        for (int c = kC - 2; c >= 0; --c) at = Engine::value(acc, r, c) == peak[r] ? c : at;
        bests[r] = tile * kC + at;
      }
    }
    OnlineSoftmax<Acc> state[kR];
    states.load(state);
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const Acc base = OnlineSoftmax<Acc>::base_of(peak[r]);
      const Acc rescale = exp_of(state[r].peak - base);
      state[r].total *= rescale, state[r].x *= rescale, state[r].y *= rescale;
      state[r].peak = peak[r];
      peak[r] = base;
    }
#pragma unroll
    for (int c = 0; c < kC; ++c) {
      const Column<Acc> target = column[Engine::col(c)];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const Acc e = exp_of(Engine::value(acc, r, c) - peak[r]);
        state[r].total += e;
        state[r].x = fma_of(e, target.x, state[r].x);
        state[r].y = fma_of(e, target.y, state[r].y);
      }
    }
    states.store(state);
  };
  Engine::run(ring, strip, begin, epilogue);

  states.load(state);
  using MergedBests = MostProbable<Acc, int>[kIndexed ? Engine::kRowWarps : 1][kIndexed ? Engine::kRows : 1];
  CSF_SHARED(MergedBests, merged_best);
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    if constexpr (kIndexed) {
      const int at = bests[r];
      MostProbable<Acc, int> best{state[r].peak, Acc(0), at < 0 ? -1 : at / kC * Engine::kCols + Engine::col(at % kC)};
      best.template merge_lanes<Engine::kRowLanes>();
      if (threadIdx.x % Engine::kRowLanes == 0) merged_best[Engine::row_warp()][Engine::row(r)] = best;
    }
    state[r].template merge_lanes<Engine::kRowLanes>();
    if (threadIdx.x % Engine::kRowLanes == 0) merged[Engine::row_warp()][Engine::row(r)] = state[r];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < rows) {
    OnlineSoftmax<Acc> all = merged[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < Engine::kRowWarps; ++w) all.merge(merged[w][threadIdx.x]);
    const int64_t at = static_cast<int64_t>(place.split) * args.a.batch * args.a.positions + row0 + threadIdx.x;
    args.partial[at] = all;
    if constexpr (kIndexed) {
      MostProbable<Acc, int> best = merged_best[0][threadIdx.x];
#pragma unroll
      for (int w = 1; w < Engine::kRowWarps; ++w) best.merge(merged_best[w][threadIdx.x]);
      args.best[at] = best.index;
    }
  }
}

template <class T, class Engine>
Status launch_forward_with(const ForwardArgs<T>& args, Stream stream) {
  const int64_t blocks = args.a.batch * args.row_tiles * args.splits;
  if (blocks > INT32_MAX) return {"match: too many source pixels for one launch"};
  const dim3 grid(static_cast<unsigned>(blocks));
  return args.best == nullptr ? launch(&match_forward_kernel<T, Engine, false>, grid, dim3(256),
                                       forward_shared_bytes<Engine, false>(), stream, args)
                              : launch(&match_forward_kernel<T, Engine, true>, grid, dim3(256),
                                       forward_shared_bytes<Engine, true>(), stream, args);
}

}  // namespace cosegflow::match_cuda

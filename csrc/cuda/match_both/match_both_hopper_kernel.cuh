// match_both forward on Hopper: match's pipeline (match/match_hopper_kernel.cuh), where each tile of scores feeds two
// online softmaxes in the registers that it was accumulated in: of its rows and of its columns.
//
// Block: as there, a run of tiles of 256 x 128; a producer warp and two consumer warpgroups of 128 rows each.
// Registers: 128 accumulators a consumer thread; the states of its 4 rows, and their weights and places as targets.
// Shared memory: the ring and the columns' numbers, then for each warp a state of each column: 4 warps are merged in
//   order, by one thread a column, and written: 16 bytes a column and 128 rows, 1/8 byte a score.
// Pipeline: match's. The softmaxes of one warpgroup run under the products of the other.
// A score costs 2 C FLOPs of the tensor cores, as one of match, and in both softmaxes together 17.8 instructions,
//   one of them an exponential (both_softmax.cuh; 20 and two where rows or columns of a tile are far apart), and 0.9
//   shuffles: 0.14 clocks of a multiprocessor. docs/kernels/match.md has the model of all units.
// Fraction of the limit reached: not measured yet.
// A row tile may be in fragments, but each (half a row tile, column) has one writer: the columns need no atomics.
#pragma once

#include "hopper/fragments.cuh"
#include "hopper/parked_line.cuh"
#include "hopper/pipeline.cuh"
#include "match/match_outputs.cuh"
#include "match_both/both_softmax.cuh"

namespace cosegflow::match_both_cuda {

// A match, all of whose logits had the pixel's own weight in them.
struct Match : State {
  float log_weight;
  __device__ __forceinline__ float log_sum_exp() const { return State::log_sum_exp() - log_weight; }
};

struct HopperShared {
  hopper::Shared<1> ring;
  State columns[2][4][hopper::kCols];  // of a warpgroup, of a warp
  hopper::ParkedLine lines[hopper::kConsumerWarps];
};
static_assert(sizeof(HopperShared) <= 227 * 1024, "a block has 227 KB of shared memory");

// One chunk of row tiles of all images; rows are counted from its first on.
struct HopperArgs {
  hopper::StreamArgs<1> stream;
  hopper::RowArgs rows;
  const Place* place_a;  // (B, pitch_a)
  hopper::FragmentCounters counters;
  int64_t positions_a;  // rows that an image has room for
  const int* index_a;   // (B, Na)
  State* partial;       // (fragments, B, Na)
  State* columns;       // (B, 2 row tiles, pitch_b)
  match_cuda::Outputs out;
};

// The states of a column of all warps of the warpgroup, in order.
__device__ __forceinline__ State merge_warps(const State (&states)[4][hopper::kCols], int column) {
  State all = states[0][column];
  float peak = all.peak;
#pragma unroll
  for (int w = 1; w < 4; ++w) peak = max_of(peak, states[w][column].peak);
  all.raise(peak);
#pragma unroll
  for (int w = 1; w < 4; ++w) {
    State other = states[w][column];
    other.raise(peak);
    all.total += other.total, all.value[0] += other.value[0], all.value[1] += other.value[1];
  }
  return all;
}

// The warpgroup's rows of a strip.
__device__ __forceinline__ void finish_rows(const HopperArgs& args, HopperShared& shared, int number,
                                            BothSoftmax& softmax, const hopper::Strip& strip) {
  Match mine;
  softmax.finish(mine);
  const int64_t first = static_cast<int64_t>(strip.row_tile) * hopper::kRows + number * hopper::kWarpgroupRows;
  const int row = hopper::ThreadTile::own_row(), rows = strip.rows - number * hopper::kWarpgroupRows;
  const int64_t plane = args.stream.images * args.positions_a, at = strip.image * args.positions_a + first + row;
  if (strip.fragments > 1) {
    if (row < rows) args.partial[strip.fragment * plane + at] = mine;
    if (!hopper::last_fragment(args.counters, strip, number, shared.ring.last[number])) return;
    if (row < rows) {
      static_cast<State&>(mine) = hopper::load_fragment(args.partial + at);
      for (int f = 1; f < strip.fragments; ++f) mine.merge(hopper::load_fragment(args.partial + f * plane + at));
    }
  }
  if (row >= rows) return;
  if (args.stream.count_b[strip.image] == 0) mine.clear();  // a NaN of the row times the zeros of no target
  mine.log_weight = args.rows.scale_a[strip.image * args.rows.pitch_a + first + row].log_weight;
  write_state(args.out, strip.image, args.index_a[at], mine, mine.mean(0), mine.mean(1));
}

template <class T>
__device__ __forceinline__ void consume(const HopperArgs& args, HopperShared& shared, const hopper::WorkLine& start) {
  hopper::Consumer<T, 1> ring(shared.ring, args.stream.slabs);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  hopper::ParkedLine& line = shared.lines[threadIdx.x / 32 - 4];
  line.start(start);
  State(&states)[4][hopper::kCols] = shared.columns[ring.number()];
  BothSoftmax softmax;
  while (line.next()) {
    const hopper::Strip strip = line.strip();
    const int rows = strip.rows - ring.number() * hopper::kWarpgroupRows;
    ring.begin_strip();
    if (rows <= 0) {
      for (int tile = strip.first; tile < strip.end; ++tile) {
        ring.skip();
        ring.end_tile();
      }
      continue;
    }
    const int half = strip.row_tile * 2 + ring.number();
    const int64_t first = static_cast<int64_t>(half) * hopper::kWarpgroupRows;
    softmax.begin(args.rows, args.place_a, strip.image, first);
    State* columns = args.columns +
                     (static_cast<int64_t>(strip.image) * 2 * args.counters.row_tiles + half) * args.stream.pitch_b +
                     strip.first * static_cast<int64_t>(hopper::kCols) + thread;
    for (int tile = strip.first; tile < strip.end; ++tile, columns += hopper::kCols) {
      hopper::ThreadTile::Accumulators acc;
      ring.multiply(acc);
      const int live = args.stream.count_b[line.strip().image] - tile * hopper::kCols;
      softmax.add(acc, ring.columns(), states[thread / 32], live);
      ring.end_tile();
      named_barrier_sync(1 + ring.number(), 128);
      if (thread < live) *columns = merge_warps(states, thread);
      named_barrier_sync(1 + ring.number(), 128);  // the next tile's states are written
    }
    finish_rows(args, shared, ring.number(), softmax, line.strip());
  }
}

template <class T>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    match_both_hopper_kernel(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                             const __grid_constant__ HopperArgs args) {
#if defined(CSF_HOPPER_CODE)
  CSF_HOPPER_SHARED(HopperShared, shared);
  hopper::start(shared->ring, map_a, map_b);
  const hopper::WorkLine line(args.stream);
  if (threadIdx.x < 128) {
    give_registers<hopper::kProducerRegisters>();
    if (threadIdx.x < 32 && elect_one()) hopper::produce(args.stream, map_a, map_b, shared->ring, line);
  } else {
    take_registers<hopper::kConsumerRegisters>();
    consume<T>(args, *shared, line);
  }
#else
  __trap();  // the host takes this kernel only where there is code for sm_90a
#endif
}

}  // namespace cosegflow::match_both_cuda

// match forward on Hopper: tensor-core products of a warp-specialised pipeline, each tile reduced by an online softmax
// in the registers that it was accumulated in.
//
// Block: runs of tiles of 256 rows (pixels of a) x 128 columns (pixels of b), see hopper/work_line.cuh; a producer warp
//   and two consumer warpgroups of 128 rows each, see hopper/pipeline.cuh.
// Registers: a consumer thread holds 4 rows x 32 columns of a tile, 128 accumulators, and for each of its rows (peak,
//   total, x, y) over its own columns; the 4 lanes that share a row merge once a strip. 232 registers.
// Shared memory: a ring of 4 stages (192 KB; hopper/tile_shape.cuh), the numbers of the columns of 4 tiles.
// Pipeline: TMA runs up to 4 slabs ahead, across tiles and strips; the softmax of one consumer runs under the products
//   of the other.
// A score costs 2 C FLOPs of the tensor cores (C / 2048 clocks of a multiprocessor) and, in the softmax, 8 instructions
//   (scale, logit, maximum; then exponent, exponential, total, x, y), a quarter of a load and what a tile needs once:
//   8.8, which is 0.069 clocks, of which the special-function unit is busy 0.0625. An exponential by polynomial would
//   relieve a unit that is hardly the bottleneck at the price of ten instructions, which are: not done.
//   docs/kernels/match.md has the model of all units, shared memory and the second-level cache among them.
// Fraction of the limit reached: not measured yet.
// A row tile that blocks share leaves a state for each fragment; who comes last merges them, in the order of columns.
#pragma once

#include "cosegflow/match.h"
#include "hopper/fragments.cuh"
#include "hopper/pipeline.cuh"
#include "hopper/row_softmax.cuh"
#include "match/match_outputs.cuh"

namespace cosegflow::match_cuda {

using hopper::Variant;
using RowState = hopper::RowSoftmax<1, Variant::kPlain>::State;

struct HopperArgs {
  hopper::StreamArgs<1> stream;
  hopper::RowArgs rows;
  hopper::FragmentCounters counters;
  int64_t positions_a;  // rows that an image has room for
  const int* index_a;   // (B, Na)
  RowState* partial;    // (fragments, B, Na)
  int* best;            // (fragments, B, Na): most probable compact target; kIndexed
  Outputs out;
};

template <class T, Variant kVariant>
__device__ __forceinline__ void consume(const HopperArgs& args, hopper::Shared<1>& shared, hopper::WorkLine line) {
  hopper::Consumer<T, 1> ring(shared, args.stream.slabs);
  hopper::RowSoftmax<1, kVariant> softmax;
  hopper::Strip strip;
  while (line.next(strip)) {
    const int rows = strip.rows - ring.number() * hopper::kWarpgroupRows;
    ring.begin_strip();
    if (rows <= 0) {
      for (int tile = strip.first; tile < strip.end; ++tile) {
        ring.skip();
        ring.end_tile();
      }
      continue;
    }
    const int64_t first = static_cast<int64_t>(strip.row_tile) * hopper::kRows + ring.number() * hopper::kWarpgroupRows;
    softmax.begin(args.rows, strip.image, first, rows);
    for (int tile = strip.first; tile < strip.end; ++tile) {
      hopper::ThreadTile::Accumulators acc;
      ring.multiply(acc);
      softmax.add(acc, ring.columns(), tile);
      ring.end_tile();
    }

    RowState mine;
    typename hopper::RowSoftmax<1, kVariant>::Best best;
    softmax.finish(mine, best);
    const int row = hopper::ThreadTile::own_row();
    const int64_t plane = args.stream.images * args.positions_a, at = strip.image * args.positions_a + first + row;
    if (strip.fragments > 1) {
      if (row < rows) {
        args.partial[strip.fragment * plane + at] = mine;
        if constexpr (kVariant == Variant::kIndexed) args.best[strip.fragment * plane + at] = best.index;
      }
      if (!hopper::last_fragment(args.counters, strip, ring.number(), shared.last[ring.number()])) continue;
      if (row < rows) {
        mine = hopper::load_fragment(args.partial + at);
        if constexpr (kVariant == Variant::kIndexed) best = {mine.peak, 0.0f, __ldcg(args.best + at)};
        for (int f = 1; f < strip.fragments; ++f) {
          const RowState other = hopper::load_fragment(args.partial + f * plane + at);
          if constexpr (kVariant == Variant::kIndexed) {
            best.merge({other.peak, 0.0f, __ldcg(args.best + f * plane + at)});
          }
          mine.merge(other);
        }
      }
    }
    if (row >= rows) continue;
    if (args.stream.count_b[strip.image] == 0) mine.clear();  // a NaN of the row times the zeros of no target
    if constexpr (kVariant == Variant::kIndexed) args.best[at] = best.index;
    write_state(args.out, strip.image, args.index_a[at], mine, mine.mean(0), mine.mean(1));
  }
}

template <class T, Variant kVariant>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    match_hopper_kernel(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                        const __grid_constant__ HopperArgs args) {
#if defined(CSF_HOPPER_CODE)
  CSF_HOPPER_SHARED(hopper::Shared<1>, shared);
  hopper::start(*shared, map_a, map_b);
  const hopper::WorkLine line(args.stream);
  if (threadIdx.x < 128) {
    give_registers<hopper::kProducerRegisters>();
    if (threadIdx.x < 32 && elect_one()) hopper::produce(args.stream, map_a, map_b, *shared, line);
  } else {
    take_registers<hopper::kConsumerRegisters>();
    consume<T, kVariant>(args, *shared, line);
  }
#else
  __trap();  // the host takes this kernel only where there is code for sm_90a
#endif
}

}  // namespace cosegflow::match_cuda

// transfer forward on Hopper: match's pipeline and online softmax with other values, in one pass over the scores. The
// probabilities stay in registers: neither their matrix nor a second product is needed.
//
// Block: a run of tiles of 256 rows (pixels of a) x 128 columns (pixels of b), see hopper/work_line.cuh; a producer
//   warp and two consumer warpgroups of 128 rows each, see hopper/pipeline.cuh. Up to 8 values a launch, as kPlanes
//   planes of pairs; more values take more launches, each with the product again (transfer_hopper_cuda.cu says up to
//   how many that pays).
// Registers: a consumer thread holds 4 rows x 32 columns of a tile, 128 accumulators, and for each of its rows (peak,
//   total, 2 kPlanes sums) over its own columns: 40 numbers for 8 values. The 4 lanes that share a row merge once a
//   strip. 232 registers, and for 8 values none to spare: what only the ends of a strip need is in shared memory.
// Shared memory: a ring of 4 stages (192 KB; hopper/tile_shape.cuh), scale and planes of the columns of 4 tiles, a line
//   (hopper/parked_line.cuh) for each warp.
// Pipeline: TMA runs up to 4 slabs ahead, across tiles and strips; the softmax of one consumer runs under the products
//   of the other.
// A score costs 2 C FLOPs of the tensor cores (C / 2048 clocks of a multiprocessor) and, for 2, 4 or 8 values, 8, 10 or
//   14 instructions of the softmax. With the loads and what a tile needs once the code has 9.0, 11.2 or 15.6, which is
//   0.071, 0.088 or 0.122 clocks. They overlap; docs/kernels/match.md has the model of all units.
// Fraction of the limit reached: not measured yet.
// The backward takes the same kernel for what values get, sum_i p_ij g_i = m_j sum_i exp(beta s_ij - lse_i) g_i: rows
// are
//   pixels of b, columns pixels of a with -lse for the logarithm of their weight and the incoming gradient for values.
//   So all of it is float32, whatever the type of the values is, and needs no matrix of p.
// A row tile that blocks share leaves a state for each fragment; who comes last merges them, in the order of columns.
#pragma once

#include "hopper/fragments.cuh"
#include "hopper/parked_line.cuh"
#include "hopper/pipeline.cuh"
#include "hopper/row_softmax.cuh"

namespace cosegflow::transfer_cuda {

constexpr int kMostPlanes = 4, kMostValues = 2 * kMostPlanes;  // of a launch

// Where the rows' results go.
struct Output {
  void* values = nullptr;  // (B, value_channels, Na)
  DType type = DType::kFloat32;
  int64_t value_channels = 0;
  float* lse = nullptr;   // (B, Na), or null where another launch writes it
  bool gradient = false;  // of values: sums of p g instead of means
};

template <int kPlanes>
struct HopperArgs {
  using State = ValueSoftmax<2 * kPlanes>;
  hopper::StreamArgs<kPlanes> stream;
  hopper::RowArgs rows;
  hopper::FragmentCounters counters;
  int64_t positions_a;  // rows that an image has room for
  const int* index_a;   // (B, Na)
  State* partial;       // (fragments, B, Na)
  Output out;           // from the launch's first value on
  int values;           // that it has, at most 2 kPlanes
};

__device__ __forceinline__ void store_value(const Output& out, int64_t at, float value) {
  switch (out.type) {
    case DType::kFloat16: static_cast<Half*>(out.values)[at] = from_float<Half>(value); break;
    case DType::kBFloat16: static_cast<BFloat16*>(out.values)[at] = from_float<BFloat16>(value); break;
    default: static_cast<float*>(out.values)[at] = value;
  }
}

// log_weight: the row's own, which only the gradient of values knows.
template <int kPlanes>
__device__ __forceinline__ void write_row(const HopperArgs<kPlanes>& args, int64_t image, int64_t pixel,
                                          float log_weight, const typename HopperArgs<kPlanes>::State& state) {
  float factor = state.empty() ? 0.0f : 1.0f / state.total;
  if (args.out.gradient && !state.empty()) {
    // exp of the log-sum-exp of log p. No p is above 1: where logits are so large that rounding says otherwise, it
    // is 1.
    factor *= exp_of(state.log_sum_exp() + log_weight - max_of(state.peak + log_weight, 0.0f));
  }
  const int64_t first = image * args.out.value_channels * args.positions_a + pixel;
#pragma unroll
  for (int v = 0; v < 2 * kPlanes; ++v) {
    if (v < args.values) store_value(args.out, first + v * args.positions_a, state.value[v] * factor);
  }
  if (args.out.lse != nullptr) args.out.lse[image * args.positions_a + pixel] = state.log_sum_exp();
}

template <int kPlanes>
struct HopperShared {
  hopper::Shared<kPlanes> ring;
  hopper::ParkedLine line[hopper::kConsumerWarps];
};

// Writes the warpgroup's rows of a strip, or its fragment of them.
template <int kPlanes>
__device__ __forceinline__ void finish_rows(const HopperArgs<kPlanes>& args, const hopper::Strip& strip, int warpgroup,
                                            typename HopperArgs<kPlanes>::State& mine, int& last) {
  const int row = hopper::ThreadTile::own_row(), rows = strip.rows - warpgroup * hopper::kWarpgroupRows;
  const int64_t first = static_cast<int64_t>(strip.row_tile) * hopper::kRows + warpgroup * hopper::kWarpgroupRows;
  const int64_t plane = args.stream.images * args.positions_a, at = strip.image * args.positions_a + first + row;
  if (strip.fragments > 1) {
    if (row < rows) args.partial[strip.fragment * plane + at] = mine;
    if (!hopper::last_fragment(args.counters, strip, warpgroup, last)) return;
    if (row < rows) {
      mine = hopper::load_fragment(args.partial + at);
      for (int f = 1; f < strip.fragments; ++f) mine.merge(hopper::load_fragment(args.partial + f * plane + at));
    }
  }
  if (row >= rows) return;
  if (args.stream.count_b[strip.image] == 0) mine.clear();  // a NaN of the row times the zeros of no target
  const Scale& scale = args.rows.scale_a[strip.image * args.rows.pitch_a + first + row];
  write_row(args, strip.image, args.index_a[at], args.out.gradient ? scale.log_weight : 0.0f, mine);
}

template <class T, int kPlanes>
__device__ __forceinline__ void consume(const HopperArgs<kPlanes>& args, HopperShared<kPlanes>& shared) {
  using RowSoftmax = hopper::RowSoftmax<kPlanes, hopper::Variant::kPlain>;
  hopper::ParkedLine& line = shared.line[threadIdx.x / 32 - 4];
  line.start(hopper::WorkLine(args.stream));
  hopper::Consumer<T, kPlanes> ring(shared.ring, args.stream.slabs);
  RowSoftmax softmax;
  while (line.next()) {
    const hopper::Strip& strip = line.strip();
    const int rows = strip.rows - ring.number() * hopper::kWarpgroupRows, end = strip.end;
    int tile = strip.first;
    ring.begin_strip();
    if (rows <= 0) {
      for (; tile < end; ++tile) {
        ring.skip();
        ring.end_tile();
      }
      continue;
    }
    const int64_t first = static_cast<int64_t>(strip.row_tile) * hopper::kRows + ring.number() * hopper::kWarpgroupRows;
    softmax.begin(args.rows, strip.image, first, rows);
    for (; tile < end; ++tile) {
      hopper::ThreadTile::Accumulators acc;
      ring.multiply(acc);
      softmax.add(acc, ring.columns(), tile);
      ring.end_tile();
    }
    typename RowSoftmax::State mine;
    typename RowSoftmax::Best unused;
    softmax.finish(mine, unused);
    finish_rows(args, strip, ring.number(), mine, shared.ring.last[ring.number()]);
  }
}

template <class T, int kPlanes>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    transfer_hopper_kernel(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                           const __grid_constant__ HopperArgs<kPlanes> args) {
  static_assert(sizeof(HopperShared<kPlanes>) <= 227 * 1024, "what a block may have");
#if defined(CSF_HOPPER_CODE)
  CSF_HOPPER_SHARED(HopperShared<kPlanes>, shared);
  hopper::start(shared->ring, map_a, map_b);
  if (threadIdx.x < 128) {
    give_registers<hopper::kProducerRegisters>();
    if (threadIdx.x >= 32) return;
    const hopper::WorkLine line(args.stream);
    if (elect_one()) hopper::produce(args.stream, map_a, map_b, shared->ring, line);
  } else {
    take_registers<hopper::kConsumerRegisters>();
    consume<T, kPlanes>(args, *shared);
  }
#else
  __trap();  // the host takes this kernel only where there is code for sm_90a
#endif
}

}  // namespace cosegflow::transfer_cuda

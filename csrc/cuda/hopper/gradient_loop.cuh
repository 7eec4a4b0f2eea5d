// A block that turns the tiles of a chunk into ds: the pipeline of the forwards, whatever the operation makes of a
// tile.
//
//   template <class T, ...> __global__ void __launch_bounds__(kThreads, 1) some_backward_hopper_kernel(
//       const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
//       const __grid_constant__ Args args) {
//     CSF_HOPPER_SHARED(hopper::GradientShared<kPlanes>, shared);
//     hopper::gradient_block<T, SomeGradient>(args, map_a, map_b, *shared);
//
// Args has stream (StreamArgs) and row_room, the rows of ds that an image has room for. SomeGradient has
//   begin(args, image, row, rows): of a strip; `row` is the warpgroup's first in the image, of `rows` live ones;
//   write(acc, columns, args, at, tile): `at` is the warpgroup's first row of ds, counted through the images.
#pragma once

#include "hopper/parked_line.cuh"
#include "hopper/pipeline.cuh"
#include "hopper/thread_tile.cuh"

namespace cosegflow::hopper {

template <int kPlanes>
struct GradientShared {
  Shared<kPlanes> ring;
  ParkedLine line[kConsumerWarps];
};

template <class T, class Gradient, int kPlanes, class Args>
__device__ __forceinline__ void consume_gradient(const Args& args, Shared<kPlanes>& shared, ParkedLine& line) {
  line.start(WorkLine(args.stream));
  Consumer<T, kPlanes> ring(shared, args.stream.slabs);
  Gradient gradient;
  while (line.next()) {
    const Strip& strip = line.strip();
    const int first = strip.row_tile * kRows + ring.number() * kWarpgroupRows;  // of the chunk
    const int rows = strip.rows - ring.number() * kWarpgroupRows, end = strip.end;
    int tile = strip.first;
    ring.begin_strip();
    if (rows <= 0) {
      for (; tile < end; ++tile) {
        ring.skip();
        ring.end_tile();
      }
      continue;
    }
    gradient.begin(args, strip.image, args.stream.first_row + first, rows);
    const unsigned at = static_cast<unsigned>(strip.image * args.row_room + first);  // rows of ds fit 32 bits
    for (; tile < end; ++tile) {
      ThreadTile::Accumulators acc;
      ring.multiply(acc);
      gradient.write(acc, ring.columns(), args, at, tile);
      ring.end_tile();
    }
  }
}

template <class T, class Gradient, int kPlanes, class Args>
__device__ __forceinline__ void gradient_block(const Args& args, const TensorMap& map_a, const TensorMap& map_b,
                                               GradientShared<kPlanes>& shared) {
  static_assert(sizeof(GradientShared<kPlanes>) <= 227 * 1024, "what a block may have");
  start(shared.ring, map_a, map_b);
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x >= 32) return;
    const WorkLine line(args.stream);
    if (elect_one()) produce(args.stream, map_a, map_b, shared.ring, line);
  } else {
    take_registers<kConsumerRegisters>();
    consume_gradient<T, Gradient>(args, shared.ring, shared.line[threadIdx.x / 32 - 4]);
  }
}

}  // namespace cosegflow::hopper

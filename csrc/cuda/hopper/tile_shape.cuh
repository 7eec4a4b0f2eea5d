// The shape of a tile on Hopper, and what lies where in shared memory. One table; this is where its numbers come from.
//
//   rows x cols = 256 x 128, two consumer warpgroups of 128 x 128. Each is 2 x m64n128k16: 128 accumulators a thread,
//   of
//     232 registers. 64 x 256 (m64n256k16) has as many, but a thread then holds 2 rows instead of 4, and reads the
//     columns' numbers from shared memory twice as often: a load for 2 scores instead of one for 4.
//   depth = 64 halves: 128 bytes, the widest swizzle of TMA and wgmma.
//   stages = 4: 48 KB each, 192 KB. The second warpgroup follows the first by two (kLead); two more are on their way.
//   A slab of a tile is 2 * 256 * 128 * 64 = 4.2 MFLOP, 1024 clocks of a multiprocessor's tensor cores (4096 FLOP a
//     clock), and moves 48 KB from L2: 48 bytes a clock. Up to kResidentSlabs slabs (C <= 256) the rows stay in shared
//     memory for the whole strip: 16 bytes a clock. Operands of wgmma take 96 of the 128 bytes a clock that shared
//     memory moves, the copies the same 48 or 16 more: at the full rate of the tensor cores shared memory is the limit.
//   Rejected: 128 x 256 (the same bytes from L2 when it streams, twice as many when the rows are resident; 128 instead
//   of
//     144 bytes of shared memory a clock, but twice the loads of columns' numbers); 192 x 256 with three consumers (37
//     bytes a clock, but 160 registers a thread and three stages); for now clusters that share rows by multicast (32
//     bytes a clock from L2): the blocks of a cluster would have to agree on their strips.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pack_tiles.cuh"
#include "primitives/bulk_copy.cuh"
#include "primitives/launch.cuh"
#include "primitives/mbarrier.cuh"

// Whether this pass of the compiler makes code for an architecture that has wgmma and setmaxnreg.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(COSEGFLOW_HOSTSIM)
#define CSF_HOPPER_CODE 1
#endif

namespace cosegflow::hopper {

constexpr int kRows = 256, kCols = 128, kDepth = kTileDepth, kStages = 4;
constexpr int kWarpgroupRows = 128;  // of a consumer warpgroup: two m64
constexpr int kThreads = 384;        // a producer warpgroup, then two consumers
constexpr int kConsumerWarps = 8;
constexpr int kResidentSlabs = kStages;                           // rows of up to so many slabs stay for a strip
constexpr int kLead = 2;                                          // slabs that the second consumer follows the first by
constexpr int kColumnSlots = 4;                                   // tiles whose columns' numbers are there at a time
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;  // 128 * 40 + 256 * 232 = 384 * 168

constexpr unsigned kBytesA = kRows * kDepth * 2, kBytesB = kCols * kDepth * 2;
constexpr unsigned kColumnBytes = kCols * 8;  // of scale, and of each plane of values

// Where things lie in dynamic shared memory (CSF_HOPPER_SHARED): tiles first, because they start at multiples of 1024.
template <int kPlanes>
struct Shared {
  unsigned char a[kStages][kBytesA];
  unsigned char b[kStages][kBytesB];
  struct Columns {
    Scale scale[kCols];
    Place plane[kPlanes][kCols];
  };
  Columns columns[kColumnSlots];
  Mbarrier full[kStages], empty[kStages];
  Mbarrier columns_empty[kColumnSlots];
  Mbarrier turn[2];  // of a consumer warpgroup to start a tile
  int last[2];       // whether the block is the last one to finish a warpgroup's rows of a strip
};
}  // namespace cosegflow::hopper

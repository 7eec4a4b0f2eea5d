// The two roles that share a ring of slabs: a producer that fills it by TMA, consumers that multiply what is in it.
//
// Full barriers count the bytes of a stage, empty ones an arrival of each consumer warp. The numbers of a tile's
// columns arrive on the full barrier of its first slab, and have empty barriers of their own, because they are read for
// longer. The two consumers take turns: the second may start a tile when the first has issued kLead slabs of it, and
// the first may start its next tile when the second has done so too. So while one is busy with the softmax of a tile,
// the other has the tensor cores to itself, and neither runs away from the other by more than the ring holds. Every
// ring position is counted from the block's first slab on: stage = n % kStages, phase = n / kStages % 2.
#pragma once

#include "hopper/tile_shape.cuh"
#include "hopper/work_line.cuh"
#include "primitives/bulk_copy.cuh"
#include "primitives/warpgroup.cuh"
#include "primitives/wgmma.cuh"

namespace cosegflow::hopper {

// What the ring is filled from. The maps are kernel parameters of their own.
template <int kPlanes>
struct StreamArgs {
  const int *count_a, *count_b;  // (images)
  int images, most_fragments;
  int slabs;             // of a row of features
  int64_t pitch_b;       // of an image in scale and planes
  const Scale* scale_b;  // (images, pitch_b)
  const Place* plane_b[kPlanes];
  int first_row = 0;  // of a, in the image, where rows are counted from a later one on
};

// All threads of the block, first of all.
template <int kPlanes>
__device__ __forceinline__ void start(Shared<kPlanes>& shared, const TensorMap& map_a, const TensorMap& map_b) {
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&map_a);
    prefetch_tensor_map(&map_b);
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(&shared.full[s], 1);
      mbarrier_init(&shared.empty[s], kConsumerWarps);
    }
#pragma unroll
    for (int s = 0; s < kColumnSlots; ++s) mbarrier_init(&shared.columns_empty[s], kConsumerWarps);
    mbarrier_init(&shared.turn[0], kConsumerWarps / 2);
    mbarrier_init(&shared.turn[1], kConsumerWarps / 2);
    fence_proxy_async();
  }
  __syncthreads();
}

// One thread.
template <int kPlanes>
__device__ __forceinline__ void produce(const StreamArgs<kPlanes>& args, const TensorMap& map_a, const TensorMap& map_b,
                                        Shared<kPlanes>& shared, WorkLine line) {
  const bool resident = args.slabs <= kResidentSlabs;
  unsigned n = 0, tiles = 0, loads_a = 0;
  Strip strip;
  while (line.next(strip)) {
    for (int tile = strip.first; tile < strip.end; ++tile, ++tiles) {
      const unsigned slot = tiles % kColumnSlots;
      mbarrier_wait(&shared.columns_empty[slot], (tiles / kColumnSlots & 1) ^ 1);
      const bool with_rows = !resident || tile == strip.first;
      for (int slab = 0; slab < args.slabs; ++slab, ++n) {
        const unsigned stage = n % kStages;
        Mbarrier* const full = &shared.full[stage];
        mbarrier_wait(&shared.empty[stage], (n / kStages & 1) ^ 1);
        mbarrier_arrive_expect_bytes(
            full, kBytesB + (with_rows ? kBytesA : 0) + (slab == 0 ? (1 + kPlanes) * kColumnBytes : 0));
        if (with_rows) {
          // Resident rows have a ring of their own. The slab that lay in a place was last read kStages or more slabs
          // ago: at the same slab of the previous strip's last tile, or before.
          const unsigned place = resident ? loads_a++ % kStages : stage;
          bulk_load_tile(shared.a[place], &map_a, full, slab * kDepth, args.first_row + strip.row_tile * kRows,
                         strip.image);
        }
        bulk_load_tile(shared.b[stage], &map_b, full, slab * kDepth, tile * kCols, strip.image);
        if (slab == 0) {
          const int64_t at = strip.image * args.pitch_b + static_cast<int64_t>(tile) * kCols;
          bulk_load(shared.columns[slot].scale, args.scale_b + at, kColumnBytes, full);
#pragma unroll
          for (int v = 0; v < kPlanes; ++v) {
            bulk_load(shared.columns[slot].plane[v], args.plane_b[v] + at, kColumnBytes, full);
          }
        }
      }
    }
  }
}

// A consumer warpgroup's view of the ring.
template <class T, int kPlanes>
class Consumer {
 public:
  using Columns = typename Shared<kPlanes>::Columns;

  __device__ __forceinline__ Consumer(Shared<kPlanes>& shared, int slabs)
      : shared_(shared), slabs_(slabs), number_(static_cast<int>(threadIdx.x) / 128 - 1) {}

  __device__ __forceinline__ int number() const { return number_; }  // 0 or 1
  // At the start of a strip, where resident rows are loaded anew.
  __device__ __forceinline__ void begin_strip() {
    if (slabs_ <= kResidentSlabs) resident_ = loads_a_, loads_a_ += slabs_;
  }

  // The tile's scores: acc[m] holds rows 64 m + ... of this warpgroup.
  __device__ __forceinline__ void multiply(float (&acc)[2][64]) {
    wait_for_turn();
    keep_in_registers(acc[0]);
    keep_in_registers(acc[1]);
    for (int slab = 0; slab < slabs_; ++slab, ++n_) {
      const unsigned stage = n_ % kStages;
      mbarrier_wait(&shared_.full[stage], n_ / kStages & 1);
      const unsigned place = slabs_ <= kResidentSlabs ? (resident_ + slab) % kStages : stage;
      const SharedOperand top = shared_operand(shared_.a[place] + number_ * kWarpgroupRows * kDepth * 2);
      const SharedOperand bottom = shared_operand(shared_.a[place] + (number_ * kWarpgroupRows + 64) * kDepth * 2);
      const SharedOperand b = shared_operand(shared_.b[stage]);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kDepth / 16; ++k) {
        wgmma_m64n128k16<T>(acc[0], at_depth(top, k), at_depth(b, k), slab > 0 || k > 0);
        wgmma_m64n128k16<T>(acc[1], at_depth(bottom, k), at_depth(b, k), slab > 0 || k > 0);
      }
      wgmma_commit();
      pass_turn(slab);
      if (slab > 0) {
        wgmma_wait<1>();
        release(n_ - 1);
      }
    }
    wgmma_wait<0>();
    keep_in_registers(acc[0]);
    keep_in_registers(acc[1]);
    release(n_ - 1);
  }

  // Instead of multiply(), where the warpgroup has no live rows: keeps the ring going. A branch within multiply() would
  // make ptxas serialise the wgmma, because the accumulators would have two origins.
  __device__ __forceinline__ void skip() {
    wait_for_turn();
    for (int slab = 0; slab < slabs_; ++slab, ++n_) {
      mbarrier_wait(&shared_.full[n_ % kStages], n_ / kStages & 1);
      pass_turn(slab);
      __syncwarp();
      release(n_);
    }
  }

  // The numbers of the tile's columns; then, when all lanes have read them:
  __device__ __forceinline__ const Columns& columns() const { return shared_.columns[tiles_ % kColumnSlots]; }
  __device__ __forceinline__ void end_tile() {
    fence_proxy_async();  // reads before the copy engine writes over it
    __syncwarp();
    if (lane() == 0) mbarrier_arrive(&shared_.columns_empty[tiles_ % kColumnSlots]);
    ++tiles_;
  }

 private:
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ __forceinline__ void release(unsigned n) {
    if (lane() == 0) mbarrier_arrive(&shared_.empty[n % kStages]);
  }
  __device__ __forceinline__ void wait_for_turn() {
    mbarrier_wait(&shared_.turn[number_], (tiles_ & 1) ^ (number_ == 0));
  }
  __device__ __forceinline__ void pass_turn(int slab) {
    if (slab == min(kLead, slabs_) - 1 && lane() == 0) mbarrier_arrive(&shared_.turn[1 - number_]);
  }

  Shared<kPlanes>& shared_;
  const int slabs_, number_;
  unsigned n_ = 0, tiles_ = 0, loads_a_ = 0, resident_ = 0;
};

}  // namespace cosegflow::hopper

// correlation forward on Hopper: tensor-core products of a warp-specialised pipeline, each tile of the volume stored
// from the registers that it was accumulated in.
//
// Block: one after the other, tiles of 256 rows (pixels of a) x 128 columns (pixels of b); a producer warp and two
//   consumer warpgroups of 128 rows each.
// Operands: Major::kK, rows of features, channels fastest, as pack_tiles.cuh leaves them; Major::kMn, the planes of a
//   contiguous feature map as they are, pixels fastest: boxes of 64 x 64 that wgmma reads turned, without any copy.
// Registers: a consumer thread holds 4 rows x 32 columns of a tile, 128 accumulators of 232 registers.
// Shared memory: a ring of 4 stages of 64 channels, 48 KB each, and the norms of each consumer's tile.
//   Up to 256 channels the rows stay while a block walks over their columns, and only columns stream.
// Pipeline: TMA runs up to 4 slabs ahead, across tiles. The consumers take turns, as in hopper/pipeline.cuh: the second
//   may start a tile when the first has issued kLead slabs of it, and the first its next one when the second has; so
//   one stores while the other has the tensor cores.
// A slab of a tile takes 1024 clocks of a multiprocessor's tensor cores, and moves 112 bytes a clock in shared memory
//   where rows stay, 144 where they are streamed, of 128 that it can.
// A score takes about 6 instructions of a thread, 0.05 clocks of a multiprocessor.
// The volume leaves once: at 4 TB/s that takes as long as the products of C = 240 at 1.83 GHz.
// Fraction of the limit reached: see docs/kernels/correlation.md.
#pragma once

#include <cstdint>

#include "correlation/correlation_store.cuh"
#include "hopper/thread_tile.cuh"
#include "hopper/tile_shape.cuh"
#include "primitives/warpgroup.cuh"
#include "primitives/wgmma.cuh"

namespace cosegflow::correlation_cuda {

using hopper::kBytesA;
using hopper::kBytesB;
using hopper::kCols;
using hopper::kConsumerWarps;
using hopper::kDepth;
using hopper::kLead;
using hopper::kResidentSlabs;
using hopper::kRows;
using hopper::kStages;
using hopper::kWarpgroupRows;

// Which tiles a block computes, and when. All tiles of all images lie on a line, cut into runs that are dealt to the
// blocks in turn. In an image, bands of `band` row tiles follow each other; within a band row tiles come fastest.
//   Rows resident: a band of one row tile, and one run for each block: rows are loaded once or twice by all.
//   Rows streamed: bands of 8 and runs of one tile, so that the blocks work at one time on about 8 row tiles x 16
//   column tiles: each slab of either is wanted by 8 or 16 blocks at about the same time, and all that is wanted of an
//   image until its band is done are 8 row tiles and all columns.
struct TileOrder {
  int row_tiles, col_tiles;  // of an image
  int tiles;                 // of all images, at most 2^30
  int run, band;
};

struct TilePlace {
  int image = 0, row_tile = 0, col_tile = 0;
  bool new_rows = true;  // other rows than those of the block's tile before
};

class TileWalk {
 public:
  explicit __device__ __forceinline__ TileWalk(const TileOrder& order)
      : order_(order), run_(static_cast<int>(blockIdx.x) * order.run), at_(run_) {}

  // On to the block's next tile; false at its end.
  __device__ __forceinline__ bool next() {
    if (at_ == run_ + order_.run) run_ += static_cast<int>(gridDim.x) * order_.run, at_ = run_;
    if (at_ >= order_.tiles) return false;
    if (at_ > run_ && order_.band == 1) {
      step();
    } else {
      find();
    }
    ++at_;
    return true;
  }
  __device__ __forceinline__ const TilePlace& place() const { return place_; }

 private:
  __device__ __forceinline__ void step() {
    place_.new_rows = ++place_.col_tile == order_.col_tiles;
    if (!place_.new_rows) return;
    place_.col_tile = 0;
    if (++place_.row_tile == order_.row_tiles) place_.row_tile = 0, ++place_.image;
  }
  __device__ __forceinline__ void find() {
    const int of_image = order_.row_tiles * order_.col_tiles, of_band = order_.band * order_.col_tiles;
    place_.image = at_ / of_image;
    const int local = at_ - place_.image * of_image, band = local / of_band, within = local - band * of_band;
    const int rows = min(order_.band, order_.row_tiles - band * order_.band);
    place_.col_tile = within / rows;
    place_.row_tile = band * order_.band + (within - place_.col_tile * rows);
    place_.new_rows = true;
  }

  const TileOrder& order_;
  int run_, at_;  // where the block's run starts, the next tile
  TilePlace place_;
};

template <class Out>
struct HopperArgs {
  TileOrder order;
  int slabs;                 // of 64 channels
  int64_t rows, cols;        // pixels of an image of a, of b
  const Scale* scale_a;      // (images, pitch_a), inv_norm alone; null: no norms
  const Scale* scale_b;      // (images, pitch_b)
  int64_t pitch_a, pitch_b;  // multiples of kTileRowStep
  Out* corr;                 // (images, rows, cols)
  bool relu, vectors;        // VolumeTile
};

struct SharedRing {
  unsigned char a[kStages][kBytesA];
  unsigned char b[kStages][kBytesB];
  struct Norms {  // 1 / norm
    alignas(8) float column[kCols];
    float row[kWarpgroupRows];
  };
  Norms norms[2];  // of each consumer's tile
  Mbarrier full[kStages], empty[kStages];
  Mbarrier turn[2];  // of a consumer to start a tile
};

// Whether rows stay in shared memory while a block walks over their columns.
__host__ __device__ __forceinline__ constexpr bool rows_stay(int slabs) { return slabs <= kResidentSlabs; }

constexpr int kPlaneBox = kTurnedRows;  // pixels of a box of planes

// A slab of `kTileRows` rows of an operand.
template <Major kMajor, int kTileRows>
__device__ __forceinline__ void load_slab(unsigned char* to, const TensorMap& map, Mbarrier* full, int slab, int row,
                                          int image) {
  if constexpr (kMajor == Major::kK) {
    bulk_load_tile(to, &map, full, slab * kDepth, row, image);
  } else {
#pragma unroll
    for (int box = 0; box < kTileRows / kPlaneBox; ++box) {
      bulk_load_tile(to + box * kTurnedBox, &map, full, row + box * kPlaneBox, slab * kDepth, image);
    }
  }
}

// One thread.
template <Major kMajor>
__device__ __forceinline__ void produce(const TileOrder& order, int slabs, const TensorMap& map_a,
                                        const TensorMap& map_b, SharedRing& shared) {
  const bool resident = rows_stay(slabs);
  unsigned n = 0, loads_a = 0;
  TileWalk walk(order);
  while (walk.next()) {
    const TilePlace& tile = walk.place();
    const bool with_rows = !resident || tile.new_rows;
    for (int slab = 0; slab < slabs; ++slab, ++n) {
      const unsigned stage = n % kStages;
      Mbarrier* const full = &shared.full[stage];
      mbarrier_wait(&shared.empty[stage], (n / kStages & 1) ^ 1);
      mbarrier_arrive_expect_bytes(full, kBytesB + (with_rows ? kBytesA : 0));
      if (with_rows) {
        // Resident rows have a ring of their own. The slab that lay in a place was last read kStages or more slabs ago.
        const unsigned place = resident ? loads_a++ % kStages : stage;
        load_slab<kMajor, kRows>(shared.a[place], map_a, full, slab, tile.row_tile * kRows, tile.image);
      }
      load_slab<kMajor, kCols>(shared.b[stage], map_b, full, slab, tile.col_tile * kCols, tile.image);
    }
  }
}

// A consumer warpgroup's view of the ring.
template <class T, Major kMajor>
class RingConsumer {
 public:
  __device__ __forceinline__ RingConsumer(SharedRing& shared, int slabs)
      : shared_(shared), slabs_(slabs), number_(static_cast<int>(threadIdx.x) / 128 - 1) {}

  __device__ __forceinline__ int number() const { return number_; }  // 0 or 1
  // Where resident rows are loaded anew.
  __device__ __forceinline__ void begin_rows() {
    if (rows_stay(slabs_)) resident_ = loads_a_, loads_a_ += slabs_;
  }

  // The tile's scores: acc[m] holds rows 64 m + ... of this warpgroup.
  __device__ __forceinline__ void multiply(hopper::ThreadTile::Accumulators& acc) {
    wait_for_turn();
    keep_in_registers(acc[0]);
    keep_in_registers(acc[1]);
    for (int slab = 0; slab < slabs_; ++slab, ++n_) {
      const unsigned stage = n_ % kStages;
      mbarrier_wait(&shared_.full[stage], n_ / kStages & 1);
      const unsigned place = rows_stay(slabs_) ? (resident_ + slab) % kStages : stage;
      const unsigned char* const rows = shared_.a[place] + number_ * (kBytesA / 2);
      const auto top = shared_operand<kMajor>(rows), bottom = shared_operand<kMajor>(rows + kBytesA / 4);
      const auto b = shared_operand<kMajor>(shared_.b[stage]);
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
    ++tiles_;
  }

  // Instead of multiply(), where the warpgroup has no rows: keeps the ring going.
  __device__ __forceinline__ void skip() {
    wait_for_turn();
    for (int slab = 0; slab < slabs_; ++slab, ++n_) {
      mbarrier_wait(&shared_.full[n_ % kStages], n_ / kStages & 1);
      pass_turn(slab);
      __syncwarp();
      release(n_);
    }
    ++tiles_;
  }

 private:
  static __device__ __forceinline__ bool arrives() { return threadIdx.x % 32 == 0; }
  __device__ __forceinline__ void release(unsigned n) {
    if (arrives()) mbarrier_arrive(&shared_.empty[n % kStages]);
  }
  __device__ __forceinline__ void wait_for_turn() {
    mbarrier_wait(&shared_.turn[number_], (tiles_ & 1) ^ (number_ == 0));
  }
  __device__ __forceinline__ void pass_turn(int slab) {
    if (slab == min(kLead, slabs_) - 1 && arrives()) mbarrier_arrive(&shared_.turn[1 - number_]);
  }

  SharedRing& shared_;
  const int slabs_, number_;
  unsigned n_ = 0, tiles_ = 0, loads_a_ = 0, resident_ = 0;
};

template <class T, class Out, Major kMajor>
__device__ __forceinline__ void consume(const HopperArgs<Out>& args, SharedRing& shared) {
  using Tile = hopper::ThreadTile;
  RingConsumer<T, kMajor> ring(shared, args.slabs);
  const int thread = static_cast<int>(threadIdx.x) % 128;
  auto& norms = shared.norms[ring.number()];
  TileWalk walk(args.order);
  while (walk.next()) {
    const TilePlace& tile = walk.place();
    const int64_t row = static_cast<int64_t>(tile.row_tile) * kRows + ring.number() * kWarpgroupRows;
    const int64_t column = static_cast<int64_t>(tile.col_tile) * kCols;
    if (tile.new_rows) ring.begin_rows();
    if (row >= args.rows) {
      ring.skip();
      continue;
    }
    // A thread brings the norm of one row and of one or two columns, while the products are computed.
    constexpr int kEach = (kCols + 127) / 128;
    float of_row = 1.0f, of_column[kEach];
#pragma unroll
    for (float& f : of_column) f = 1.0f;
    if (args.scale_a != nullptr) {
      if (row + thread < args.rows) of_row = args.scale_a[tile.image * args.pitch_a + row + thread].inv_norm;
#pragma unroll
      for (int n = 0; n < kEach; ++n) {
        const int64_t c = column + n * 128 + thread;
        if (n * 128 + thread < kCols && c < args.cols) {
          of_column[n] = args.scale_b[tile.image * args.pitch_b + c].inv_norm;
        }
      }
    }
    Tile::Accumulators acc;
    ring.multiply(acc);
    named_barrier_sync(1 + ring.number(), 128);  // all have read the norms of the tile before
    norms.row[thread] = of_row;
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      if (n * 128 + thread < kCols) norms.column[n * 128 + thread] = of_column[n];
    }
    named_barrier_sync(1 + ring.number(), 128);
    float scale_a[Tile::kRows];
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) scale_a[r] = norms.row[Tile::row(r)];
    const auto scale_b = [&](int c) { return *reinterpret_cast<const float2*>(norms.column + Tile::column(c)); };
    const auto left = [](int64_t n, int most) { return static_cast<int>(n < most ? n : most); };
    const VolumeTile<Out> to = {args.corr + (tile.image * args.rows + row) * args.cols + column,
                                args.cols,
                                left(args.rows - row, kWarpgroupRows),
                                left(args.cols - column, kCols),
                                args.relu,
                                args.vectors};
    store_tile<Tile, Out>(acc, scale_a, scale_b, to);
  }
}

template <class T, class Out, Major kMajor>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    correlation_hopper_kernel(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                              const __grid_constant__ HopperArgs<Out> args) {
#if defined(CSF_HOPPER_CODE)
  CSF_HOPPER_SHARED(SharedRing, shared);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&map_a);
    prefetch_tensor_map(&map_b);
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(&shared->full[s], 1);
      mbarrier_init(&shared->empty[s], kConsumerWarps);
    }
    mbarrier_init(&shared->turn[0], kConsumerWarps / 2);
    mbarrier_init(&shared->turn[1], kConsumerWarps / 2);
    fence_proxy_async();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<hopper::kProducerRegisters>();
    if (threadIdx.x < 32 && elect_one()) produce<kMajor>(args.order, args.slabs, map_a, map_b, *shared);
  } else {
    take_registers<hopper::kConsumerRegisters>();
    consume<T, Out, kMajor>(args, *shared);
  }
#else
  __trap();  // the host takes this kernel only where there is code for sm_90a
#endif
}

}  // namespace cosegflow::correlation_cuda

// The gradient products on Hopper (gradient_product.cuh): TMA, wgmma, a warp-specialised pipeline.
//
// Block: one after the other, tiles of 256 rows x 128 channels of out_a or out_b; a producer warp, two consumer
//   warpgroups of 128 x 128 each.
// Registers: 128 accumulators a consumer thread. Shared memory: a ring of 4 slabs of 64 in depth, 192 KB.
// What lies turned is multiplied turned: features are channels fastest while the sum runs over pixels, so b operands
// are
//   MN-major; so are the a operands of out_b, which read ds by columns. No transposed copy is made.
// Pipeline: TMA runs up to 4 slabs ahead, also into the next tile while this one's accumulators are stored.
// A slab is 4.2 MFLOP, 1024 clocks of a multiprocessor's tensor cores, and moves 48 KB from L2: where ds fits there,
// the
//   memory is hardly read. ds is read channels / 128 times, features rows / 256 times.
// Fraction of the limit reached: see docs/kernels/backward.md.
#include <algorithm>
#include <climits>

#include "entry_checks.cuh"
#include "hopper/gradient_product.cuh"
#include "hopper/thread_tile.cuh"
#include "primitives/warpgroup.cuh"
#include "primitives/wgmma.cuh"

namespace cosegflow::hopper {
namespace {

constexpr int kBox = 64;  // rows of a tensor map's box, but for whole row tiles of ds

struct SharedRing {
  unsigned char a[kStages][kBytesA];
  unsigned char b[kStages][kBytesB];
  Mbarrier full[kStages], empty[kStages];
};

struct KernelArgs {
  ProductSide a, b;
  int images;
  int64_t channels;
  int units_a, units;  // of out_a, of both: (image, split, row tile, channel tile), channel tiles fastest
  int row_tiles_a, row_tiles_b, channel_tiles;
};

// A tile and a part of its depth.
struct Unit {
  bool of_a;
  int image, split, row, channel;  // row and channel: the first
  int rows;                        // that there are, at most kRows; none: nothing to do
  int first_slab, slabs;
};

template <class Args>
__device__ __forceinline__ Unit unit_at(const Args& args, int number) {
  Unit u;
  u.of_a = number < args.units_a;
  const ProductSide& side = u.of_a ? args.a : args.b;
  const int row_tiles = u.of_a ? args.row_tiles_a : args.row_tiles_b;
  int rest = u.of_a ? number : number - args.units_a;
  u.channel = rest % args.channel_tiles * kCols, rest /= args.channel_tiles;
  u.row = rest % row_tiles * kRows, rest /= row_tiles;
  u.split = rest % side.splits;
  u.image = rest / side.splits;
  u.rows = min(kRows, side.rows[u.image] - u.row);
  const int slabs = (side.depth[u.image] + kDepth - 1) / kDepth, each = (slabs + side.splits - 1) / side.splits;
  u.first_slab = min(slabs, u.split * each);
  u.slabs = min(slabs, u.first_slab + each) - u.first_slab;
  return u;
}

// A template, as what follows, since only code for sm_90a has a use of it.
template <unsigned kPlaces>
struct RingPlaceOf {
  unsigned n = 0;
  __device__ __forceinline__ unsigned stage() const { return n % kPlaces; }
  __device__ __forceinline__ unsigned phase() const { return n / kPlaces & 1; }
};
using RingPlace = RingPlaceOf<kStages>;

// One thread.
template <class Ring>
__device__ __forceinline__ void produce(const KernelArgs& args, const TensorMap& ds_rows, const TensorMap& ds_columns,
                                        const TensorMap& features_a, const TensorMap& features_b, Ring& shared) {
  RingPlace place;
  for (int number = static_cast<int>(blockIdx.x); number < args.units; number += static_cast<int>(gridDim.x)) {
    const Unit u = unit_at(args, number);
    if (u.rows <= 0) continue;
    const TensorMap* const features = u.of_a ? &features_b : &features_a;
    const int first_depth = (u.of_a ? args.a : args.b).first_depth;
    for (int slab = u.first_slab; slab < u.first_slab + u.slabs; ++slab, ++place.n) {
      const unsigned stage = place.stage();
      Mbarrier* const full = &shared.full[stage];
      mbarrier_wait(&shared.empty[stage], place.phase() ^ 1);
      mbarrier_arrive_expect_bytes(full, kBytesA + kBytesB);
      if (u.of_a) {
        bulk_load_tile(shared.a[stage], &ds_rows, full, slab * kDepth, u.row, u.image);
      } else {
#pragma unroll
        for (int box = 0; box < kRows / kBox; ++box) {
          bulk_load_tile(shared.a[stage] + box * kTurnedBox, &ds_columns, full, u.row + box * kBox, slab * kDepth,
                         u.image);
        }
      }
#pragma unroll
      for (int box = 0; box < kCols / kBox; ++box) {
        bulk_load_tile(shared.b[stage] + box * kTurnedBox, features, full, u.channel + box * kBox,
                       first_depth + slab * kDepth, u.image);
      }
    }
  }
}

// acc[m] = rows 64 m + ... of this warpgroup, over the unit's slabs (at least one).
template <class T, Major kMajorA>
__device__ __forceinline__ void multiply(float (&acc)[2][64], SharedRing& shared, int slabs, int number,
                                         RingPlace& place) {
  const bool arrives = threadIdx.x % 32 == 0;
  keep_in_registers(acc[0]);
  keep_in_registers(acc[1]);
  for (int slab = 0; slab < slabs; ++slab, ++place.n) {
    const unsigned stage = place.stage();
    mbarrier_wait(&shared.full[stage], place.phase());
    const auto top = shared_operand<kMajorA>(shared.a[stage] + number * (kBytesA / 2));
    const auto bottom = shared_operand<kMajorA>(shared.a[stage] + number * (kBytesA / 2) + kBytesA / 4);
    const auto b = shared_operand<Major::kMn>(shared.b[stage]);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) {
      wgmma_m64n128k16<T>(acc[0], at_depth(top, k), at_depth(b, k), slab > 0 || k > 0);
      wgmma_m64n128k16<T>(acc[1], at_depth(bottom, k), at_depth(b, k), slab > 0 || k > 0);
    }
    wgmma_commit();
    if (slab > 0) {
      wgmma_wait<1>();
      if (arrives) mbarrier_arrive(&shared.empty[(place.n - 1) % kStages]);
    }
  }
  wgmma_wait<0>();
  keep_in_registers(acc[0]);
  keep_in_registers(acc[1]);
  if (arrives) mbarrier_arrive(&shared.empty[(place.n - 1) % kStages]);
}

// value(r, c): the thread's number in its row r and column c, see ThreadTile.
template <class Value>
__device__ __forceinline__ void store(const KernelArgs& args, const Unit& u, int number, const Value& value) {
  const ProductSide& side = u.of_a ? args.a : args.b;
  const int channels = static_cast<int>(args.channels);
  const bool pairs = channels % 2 == 0;
#pragma unroll
  for (int r = 0; r < ThreadTile::kRows; ++r) {
    const int row = number * kWarpgroupRows + ThreadTile::row(r);
    if (row >= u.rows) continue;
    float* const line = side.out + side.partial * u.split + (u.image * side.out_rows + u.row + row) * args.channels;
#pragma unroll
    for (int c = 0; c < ThreadTile::kColumns; c += 2) {
      const int channel = u.channel + ThreadTile::column(c);
      if (channel >= channels) continue;
      float2 two = {value(r, c), value(r, c + 1)};
      if (pairs) {
        float2* const at = reinterpret_cast<float2*>(line + channel);
        if (side.accumulate) two.x += at->x, two.y += at->y;
        *at = two;
      } else {
        if (side.accumulate) two.x += line[channel];
        line[channel] = two.x;
        if (channel + 1 >= channels) continue;
        if (side.accumulate) two.y += line[channel + 1];
        line[channel + 1] = two.y;
      }
    }
  }
}

template <class T, Major kMajorA>
__device__ __forceinline__ void multiply_and_store(const KernelArgs& args, const Unit& u, SharedRing& shared,
                                                   int number, RingPlace& place) {
  ThreadTile::Accumulators acc;
  multiply<T, kMajorA>(acc, shared, u.slabs, number, place);
  store(args, u, number, [&](int r, int c) { return ThreadTile::value(acc, r, c); });
}

template <class T>
__device__ __forceinline__ void consume(const KernelArgs& args, SharedRing& shared) {
  const int warpgroup = static_cast<int>(threadIdx.x) / 128 - 1;
  RingPlace place;
  for (int number = static_cast<int>(blockIdx.x); number < args.units; number += static_cast<int>(gridDim.x)) {
    const Unit u = unit_at(args, number);
    if (u.rows <= 0) continue;
    if (u.slabs == 0) {
      store(args, u, warpgroup, [](int, int) { return 0.0f; });
    } else if (u.of_a) {
      multiply_and_store<T, Major::kK>(args, u, shared, warpgroup, place);
    } else {
      multiply_and_store<T, Major::kMn>(args, u, shared, warpgroup, place);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    gradient_product_hopper_kernel(const __grid_constant__ TensorMap ds_rows,
                                   const __grid_constant__ TensorMap ds_columns,
                                   const __grid_constant__ TensorMap features_a,
                                   const __grid_constant__ TensorMap features_b,
                                   const __grid_constant__ KernelArgs args) {
#if defined(CSF_HOPPER_CODE)
  CSF_HOPPER_SHARED(SharedRing, shared);
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&ds_rows);
    prefetch_tensor_map(&ds_columns);
    prefetch_tensor_map(&features_a);
    prefetch_tensor_map(&features_b);
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(&shared->full[s], 1);
      mbarrier_init(&shared->empty[s], kConsumerWarps);
    }
    fence_proxy_async();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    give_registers<kProducerRegisters>();
    if (threadIdx.x < 32 && elect_one()) produce(args, ds_rows, ds_columns, features_a, features_b, *shared);
  } else {
    take_registers<kConsumerRegisters>();
    consume<T>(args, *shared);
  }
#else
  __trap();  // the host takes this kernel only where there is code for sm_90a
#endif
}

__global__ void __launch_bounds__(256) add_parts_kernel(PartsArgs args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= args.row_bound * args.channels || i / args.channels >= *args.rows) return;
  float sum = args.parts[i];
  for (int part = 1; part < args.splits; ++part) sum += args.parts[part * args.partial + i];
  args.out[i] = sum;
}

}  // namespace

Status launch_add_parts(const PartsArgs& args, Stream stream) {
  const int64_t blocks = ceil_div(args.row_bound * args.channels, 256);
  if (blocks > INT_MAX) return {"cosegflow: a chunk of gradients is too large for one launch"};
  return launch(&add_parts_kernel, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
}

template <class T>
Status launch_gradient_products(const GradientProductArgs<T>& args, Stream stream) {
  KernelArgs k{args.a, args.b, static_cast<int>(args.images), args.channels, 0, 0, 0, 0, 0};
  k.channel_tiles = static_cast<int>(ceil_div(args.channels, kCols));
  k.row_tiles_a = static_cast<int>(ceil_div(args.a.row_bound, kRows));
  k.row_tiles_b = static_cast<int>(ceil_div(args.b.row_bound, kRows));
  const auto units_of = [&](const ProductSide& side) {
    return side.out == nullptr ? 0 : product_tiles(args.images, side.row_bound, args.channels) * side.splits;
  };
  const int64_t units_a = units_of(args.a), units = units_a + units_of(args.b);
  if (units == 0) return {};
  if (units > INT_MAX - 65536) return {"cosegflow: the gradient products have over 2^31 tiles"};
  k.units_a = static_cast<int>(units_a), k.units = static_cast<int>(units);

  TensorMap ds_rows, ds_columns, a, b;
  if (Status s = make_tensor_map(ds_rows, args.ds, args.pitch, args.row_room, args.images, kRows); !s.ok()) return s;
  if (Status s = make_tensor_map(ds_columns, args.ds, args.pitch, args.row_room, args.images, kBox); !s.ok()) return s;
  if (Status s = make_tensor_map(a, args.features_a, args.feature_depth, args.feature_rows_a, args.images, kBox);
      !s.ok()) {
    return s;
  }
  if (Status s = make_tensor_map(b, args.features_b, args.feature_depth, args.feature_rows_b, args.images, kBox);
      !s.ok()) {
    return s;
  }
  const int64_t blocks = std::min<int64_t>(units, multiprocessors());
  return launch_hopper(&gradient_product_hopper_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                       sizeof(SharedRing), stream, ds_rows, ds_columns, a, b, k);
}

template Status launch_gradient_products<Half>(const GradientProductArgs<Half>&, Stream);
template Status launch_gradient_products<BFloat16>(const GradientProductArgs<BFloat16>&, Stream);

}  // namespace cosegflow::hopper

// correlation forward on Hopper, the host's side: what the product reads, and the norms.
//
// Contiguous halves, an image of which is a multiple of 8 pixels: the product reads the planes as they are, so one
// launch does, and with normalize another one before it (correlation_norm_kernel). All else is packed first, in one
// launch (pack_tiles.cuh): other layouts, odd sizes, and float32 as its terms of bfloat16.
//
// correlation_norm_kernel: a block takes 64 pixels of one image and sums the squares of all channels. A thread has 8
//   pixels of every 32nd channel, 16 bytes a load, 8 loads in flight; a warp reads 128 neighbouring bytes of 4
//   channels. Sums meet by shuffles, then in 2 KB of shared memory. Moves 2 N C + 8 N bytes a side, 2 FLOPs an element:
//   bound by memory; 64 registers, so four blocks a multiprocessor keep 128 KB on their way. Fraction of the bandwidth
//   reached: not measured yet.
#include <algorithm>
#include <climits>

#include "common/arena.h"
#include "correlation/correlation_dispatch.cuh"
#include "correlation/correlation_hopper_kernel.cuh"
#include "entry_checks.cuh"
#include "pack_tiles.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::correlation_cuda {
namespace {

constexpr int kNormPixels = 64, kNormThreads = 256, kNormWarps = kNormThreads / 32;
constexpr int kOctets = kNormPixels / 8, kSlices = kNormThreads / kOctets;  // of 8 pixels; of every kSlices-th channel

struct NormSide {
  const void* features;  // (images, channels, positions), contiguous, 16-byte aligned; positions a multiple of 8
  int64_t positions, pitch;
  Scale* scale;  // (images, pitch); {0, 0} beyond the positions
};
struct NormArgs {
  NormSide side[2];
  int64_t blocks_a, channels;
};

template <class T>
__global__ void __launch_bounds__(kNormThreads, 4) correlation_norm_kernel(const __grid_constant__ NormArgs args) {
  using Sums = float[kNormWarps][kNormPixels];
  CSF_SHARED(Sums, sums);
  const bool in_a = blockIdx.x < args.blocks_a;
  const NormSide& side = args.side[in_a ? 0 : 1];
  const int64_t block = blockIdx.x - (in_a ? 0 : args.blocks_a), tiles = side.pitch / kNormPixels;
  const int64_t b = block / tiles, first = block % tiles * kNormPixels;
  const int octet = static_cast<int>(threadIdx.x) % kOctets, slice = static_cast<int>(threadIdx.x) / kOctets;
  const T* const from = static_cast<const T*>(side.features) + b * args.channels * side.positions + first + octet * 8;
  float squares[8] = {};
  if (first + octet * 8 < side.positions) {
    constexpr int kLoads = 8;
    for (int64_t c0 = slice; c0 < args.channels; c0 += kLoads * kSlices) {
      uint4 raw[kLoads];
#pragma unroll
      for (int n = 0; n < kLoads; ++n) {
        const int64_t c = c0 + n * kSlices;
        raw[n] = make_uint4(0, 0, 0, 0);
        if (c < args.channels) raw[n] = *reinterpret_cast<const uint4*>(from + c * side.positions);
      }
#pragma unroll
      for (int n = 0; n < kLoads; ++n) {
        const uint32_t word[4] = {raw[n].x, raw[n].y, raw[n].z, raw[n].w};
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float value = to_float(T{static_cast<uint16_t>(word[e / 2] >> e % 2 * 16)});
          squares[e] = fmaf(value, value, squares[e]);
        }
      }
    }
  }
#pragma unroll
  for (int e = 0; e < 8; ++e) {
#pragma unroll
    for (int lanes = kOctets; lanes < 32; lanes *= 2) squares[e] += __shfl_xor_sync(0xffffffffu, squares[e], lanes);
  }
  if (threadIdx.x % 32 < kOctets) {
#pragma unroll
    for (int e = 0; e < 8; ++e) sums[threadIdx.x / 32][octet * 8 + e] = squares[e];
  }
  __syncthreads();
  if (threadIdx.x >= kNormPixels) return;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kNormWarps; ++w) sum += sums[w][threadIdx.x];
  const float norm = sqrtf(sum), clamped = norm < 1e-12f ? 1e-12f : norm;  // keeps a NaN
  const int64_t pixel = first + threadIdx.x;
  side.scale[b * side.pitch + pixel] = {pixel < side.positions ? 1.0f / clamped : 0.0f, 0.0f};
}

template <class T>
Status launch_norms(const CorrelationParams& p, Scale* scale_a, int64_t pitch_a, Scale* scale_b, int64_t pitch_b,
                    Stream stream) {
  const NormArgs args{
      {{p.fa.data, p.height_a * p.width_a, pitch_a, scale_a}, {p.fb.data, p.height_b * p.width_b, pitch_b, scale_b}},
      p.batch * (pitch_a / kNormPixels),
      p.channels};
  const int64_t blocks = args.blocks_a + p.batch * (pitch_b / kNormPixels);
  if (blocks > INT_MAX) return {"correlation: the features are too many for one launch"};
  return launch(&correlation_norm_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kNormThreads), 0, stream, args);
}

// Whether TMA can read the planes as they lie.
bool dense_planes(const View4& v, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const int64_t positions = height * width;
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && positions % 8 == 0 && (width == 1 || v.stride[3] == 1) &&
         (height == 1 || v.stride[2] == width) && (channels == 1 || v.stride[1] == positions) &&
         (batch == 1 || v.stride[0] == channels * positions);
}
bool reads_planes(const CorrelationParams& p) {
  return half_type(p.fa.dtype) && dense_planes(p.fa, p.batch, p.channels, p.height_a, p.width_a) &&
         dense_planes(p.fb, p.batch, p.channels, p.height_b, p.width_b);
}

TileOrder order_of(int64_t images, int64_t rows, int64_t cols, int slabs) {
  TileOrder order;
  order.row_tiles = static_cast<int>(ceil_div(rows, kRows)), order.col_tiles = static_cast<int>(ceil_div(cols, kCols));
  order.tiles = static_cast<int>(images) * order.row_tiles * order.col_tiles;
  const bool resident = slabs <= kResidentSlabs;
  order.run = resident ? static_cast<int>(ceil_div(order.tiles, multiprocessors())) : 1;
  order.band = resident ? 1 : 8;
  return order;
}

template <class T, class Out>
struct HopperSpace {
  bool planes;
  TileSide<T> a, b;  // where planes are not read as they are
  Scale *scale_a = nullptr, *scale_b = nullptr;
  HopperArgs<Out> args;
  size_t bytes;

  HopperSpace(const CorrelationParams& p, void* base) : planes(reads_planes(p)) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    int64_t depth = p.channels;
    args.pitch_a = round_up(na, kTileRowStep), args.pitch_b = round_up(nb, kTileRowStep);
    if (!planes) {
      a = take_tile_side<T>(arena, p.batch, na, p.channels, terms_of(p.fa.dtype, p.precision));
      b = take_tile_side<T>(arena, p.batch, nb, p.channels, terms_of(p.fa.dtype, p.precision));
      depth = a.depth, scale_a = a.scale, scale_b = b.scale;
    } else if (p.normalize) {
      scale_a = arena.take<Scale>(p.batch * args.pitch_a), scale_b = arena.take<Scale>(p.batch * args.pitch_b);
    }
    args.slabs = static_cast<int>(ceil_div(depth, kDepth));
    args.order = order_of(p.batch, na, nb, args.slabs);
    args.rows = na, args.cols = nb;
    args.scale_a = p.normalize ? scale_a : nullptr, args.scale_b = p.normalize ? scale_b : nullptr;
    args.corr = static_cast<Out*>(p.corr);
    args.relu = p.relu;
    args.vectors = reinterpret_cast<uintptr_t>(p.corr) % 16 == 0 && nb * sizeof(Out) % 16 == 0;
    bytes = arena.bytes();
  }
};

// Of operands (images, lines, depth); lines of planes are channels, else pixels.
struct Operands {
  const void *a, *b;
  int64_t lines_a, lines_b, depth_a, depth_b;
};

template <Major kMajor, class T, class Out>
Status launch_product(const HopperSpace<T, Out>& space, const Operands& o, int64_t images, Stream stream) {
  constexpr bool kPlanes = kMajor == Major::kMn;
  TensorMap map_a, map_b;
  Status s = make_tensor_map(map_a, o.a, o.depth_a, o.lines_a, images, kPlanes ? kPlaneBox : kRows);
  if (s.ok()) s = make_tensor_map(map_b, o.b, o.depth_b, o.lines_b, images, kPlanes ? kPlaneBox : kCols);
  if (!s.ok()) return s;
  const int blocks = std::min(space.args.order.tiles, multiprocessors());
  return launch_hopper(&correlation_hopper_kernel<T, Out, kMajor>, dim3(static_cast<unsigned>(blocks)),
                       dim3(hopper::kThreads), sizeof(SharedRing), stream, map_a, map_b, space.args);
}

template <class T, class Out>
Status forward(const CorrelationParams& p, void* workspace, Stream stream) {
  const HopperSpace<T, Out> space(p, workspace);
  const HopperArgs<Out>& args = space.args;
  if (space.planes) {
    if constexpr (sizeof(Out) == 2) {
      if (p.normalize) {
        const Status s = launch_norms<T>(p, space.scale_a, args.pitch_a, space.scale_b, args.pitch_b, stream);
        if (!s.ok()) return s;
      }
      const Operands planes{p.fa.data, p.fb.data, p.channels, p.channels, args.rows, args.cols};
      return launch_product<Major::kMn>(space, planes, p.batch, stream);
    }
  }
  const Status packed = pack_tiles<T>({p.fa, View3{}, p.width_a, p.height_a, p.normalize, SplitRole::kFirst},
                                      {p.fb, View3{}, p.width_b, p.height_b, p.normalize, SplitRole::kSecond}, space.a,
                                      space.b, PackExtras{}, stream);
  if (!packed.ok()) return packed;
  const Operands rows{space.a.features, space.b.features, args.rows, args.cols, space.a.depth, space.b.depth};
  return launch_product<Major::kK>(space, rows, p.batch, stream);
}

// Calls body with tags of the types that are multiplied and stored.
template <class Body>
auto dispatch_types(const CorrelationParams& p, const Body& body) {
  if (p.fa.dtype == DType::kFloat16) return body(Half{}, Half{});
  return p.fa.dtype == DType::kBFloat16 ? body(BFloat16{}, BFloat16{}) : body(BFloat16{}, float{});
}

}  // namespace

size_t hopper_forward_bytes(const CorrelationParams& p) {
  return dispatch_types(p, [&](auto t, auto out) { return HopperSpace<decltype(t), decltype(out)>(p, nullptr).bytes; });
}

Status hopper_forward(const CorrelationParams& p, void* workspace, Stream stream) {
  return dispatch_types(p, [&](auto t, auto out) { return forward<decltype(t), decltype(out)>(p, workspace, stream); });
}

}  // namespace cosegflow::correlation_cuda

// The products of the backward passes for half types, on tensor cores (mma.sync), batched, with device-side counts:
//   out[b](i, c) (+)= sum_k lhs[b](i, k) * rhs[b](k, c)
// The same as product_cuda.cuh, with lhs a matrix of halves, k along its rows or (transposed: both gradients come from
// one matrix) along its columns. lhs is the gradient of the volume of correlation, 0 where relu clipped it (`gate`), or
// the gradient of the scores that another kernel has written in T; there the factors 1 / norm of both sides belong into
// lhs, so that rhs are features as they are, and a power of two that keeps it within the range of T (UnscaledGradient
// of normalize_backward.cuh: `folded`, `unscale`). Sums are float32.
//
// Block: a 128 x 128 tile of out, all of k or one of `splits` parts of it; 4 warps as 2 x 2, each 64 x 64.
// Registers: 4 x 8 mma tiles a warp, 128 accumulators a thread, beside 32 of fragments: two blocks an SM.
// Shared memory: a ring of 4 stages (3 with a gate) of 32 k of lhs (and gate) and rhs, 16 (24) KiB each: 64 (72) KiB.
//   16-byte chunks are swizzled so that the 8 rows that an ldmatrix reads together touch all banks once. What is stored
//   with k as the slow index is read by ldmatrix.trans: no transposed copy is made.
// Pipeline: cp.async runs three (two) slabs ahead; one barrier a slab publishes the slab that has landed and frees the
//   one before it. Rows of lhs that are not aligned to 16 bytes are copied by 8 or 4, or through registers.
// For each slab a warp issues 64 mma.m16n8k16, 16 ldmatrix.x4 (24 with a gate) and 8 (12) cp.async, 196 (286)
//   instructions in all (SASS of sm_90a). Shared memory is busy 384 (512) clocks of a slab, tensor cores of sm_80 512.
//   For each 128 x 128 tile and k a block reads 512 bytes from L2, 64 FLOPs a byte.
// Only live rows are touched: i < rows, row_begin + i < row_count[b], and the same for k; a block without one returns.
// Deterministic: one block owns a tile, and sums over k in order.
// Fraction of the limit reached: not measured yet.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/half.h"
#include "common/round_up.h"
#include "primitives/async_copy.cuh"
#include "primitives/launch.cuh"
#include "primitives/mma.cuh"
#include "product_cuda.cuh"

namespace cosegflow {

// Of image b: value (i, k) is data[b * batch_stride + i * pitch + k], or for the transposed product k * pitch + i.
template <class T>
struct HalfLhs {
  const T* data = nullptr;
  int64_t pitch = 0, batch_stride = 0;
  const T* gate = nullptr;  // of the same layout: lhs counts as 0 where gate <= 0; null: no gate
};

// Few tiles and much depth: part s of `count` of the depth goes to out + s * stride, for a later kernel to add up in
// order (NormalizeBackwardArgs::partials, or launch_gradient_product_in_parts).
struct ProductSplits {
  int count = 1;
  int64_t stride = 0;
};

namespace gradient_product_mma {

constexpr int kThreads = 128, kRows = 128, kCols = 128, kDepth = 32;
constexpr int kWarpRows = 64, kWarpCols = 64, kTilesM = kWarpRows / 16, kTilesN = kWarpCols / 8;

struct alignas(16) Chunk {
  uint16_t bits[8];
};
constexpr int kChunks = kRows * kDepth / 8;  // of a slab of lhs, and of rhs
static_assert(kCols == kRows, "slabs of both operands are equally large");

// How lhs comes: rows aligned to 16 bytes, without or with a gate; or rows of any alignment, with or without.
enum class Source { kAligned, kGated, kAny };

template <Source kSource>
struct Ring {
  static constexpr int kStages = kSource == Source::kAligned ? 4 : 3;
  static constexpr int kStride = (kSource == Source::kAligned ? 2 : 3) * kChunks;  // chunks of a stage
  static constexpr size_t kBytes = static_cast<size_t>(kStages) * kStride * sizeof(Chunk);
};

// Where chunk t of a slab lies. k fastest: 4 chunks of k for each of 128 rows; else 16 chunks for each of 32 k.
template <bool kDepthFastest>
__device__ __forceinline__ int place(int t) {
  return kDepthFastest ? (t & ~3) | ((t % 4) ^ (t / 8 % 4)) : (t & ~15) | ((t % 16) ^ (t / 16 % 8));
}

// Eight elements, of which the first `bytes` / 2 are there and the others become 0. `width`: the bytes that the source
// is aligned to.
template <bool kAligned, class T>
__device__ __forceinline__ void copy_chunk(Chunk* to, const T* from, int bytes, int width) {
  if (kAligned || width == 16) {
    cp_async<16>(to, from, bytes);
  } else if (width == 8) {
#pragma unroll
    for (int p = 0; p < 2; ++p) cp_async<8>(to->bits + 4 * p, from + 4 * p, max(0, min(bytes - 8 * p, 8)));
  } else if (width == 4) {
#pragma unroll
    for (int p = 0; p < 4; ++p) cp_async<4>(to->bits + 2 * p, from + 2 * p, max(0, min(bytes - 4 * p, 4)));
  } else {
    Chunk chunk{};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (2 * e < bytes) chunk.bits[e] = from[e].bits;
    }
    *to = chunk;
  }
}

// Two neighbours of lhs, each 0 where its gate is <= 0. A gate of NaN lets pass.
__device__ __forceinline__ uint32_t gated(uint32_t lhs, uint32_t gate, Half) {
#if defined(__CUDA_ARCH__)
  __half2 value;
  memcpy(&value, &gate, 4);
  return lhs & __hgtu2_mask(value, __half2half2(__ushort_as_half(0)));
#else
  if (to_float(Half{static_cast<uint16_t>(gate & 0xffffu)}) <= 0.0f) lhs &= 0xffff0000u;
  if (to_float(Half{static_cast<uint16_t>(gate >> 16)}) <= 0.0f) lhs &= 0x0000ffffu;
  return lhs;
#endif
}
__device__ __forceinline__ uint32_t gated(uint32_t lhs, uint32_t gate, BFloat16) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  __nv_bfloat162 value;
  memcpy(&value, &gate, 4);
  return lhs & __hgtu2_mask(value, __bfloat162bfloat162(__ushort_as_bfloat16(0)));
#else  // sm_80 cannot compare bfloat16. By integers: the sign is 0 and the rest is not, as in any NaN that it makes.
  const uint32_t positive = ((gate & 0x7fff7fffu) + 0x7fff7fffu) & ~gate & 0x80008000u;
  return lhs & (positive | (positive - (positive >> 15)));
#endif
}

template <class T, bool kTransposed, Source kSource>
__global__ void __launch_bounds__(kThreads, 2)
    gradient_product_mma_kernel(ProductArgs<T> args, HalfLhs<T> lhs, ProductSplits splits, int width) {
  using Stages = Ring<kSource>;
  constexpr bool kAligned = kSource != Source::kAny;
  CSF_DYNAMIC_SHARED(Chunk, ring);  // of each stage lhs, rhs, gate
  const bool has_gate = kSource == Source::kGated || (kSource == Source::kAny && lhs.gate != nullptr);
  const int col_tiles = static_cast<int>((args.channels + kCols - 1) / kCols);
  const int row_tiles = static_cast<int>((args.rows + kRows - 1) / kRows);
  const int c0 = static_cast<int>(blockIdx.x % col_tiles) * kCols;
  const int i0 = static_cast<int>(blockIdx.x / col_tiles % row_tiles) * kRows;
  const int split = static_cast<int>(blockIdx.x / col_tiles / row_tiles % splits.count);
  const int64_t b = blockIdx.x / col_tiles / row_tiles / splits.count;
  const int rows = static_cast<int>(live_rows(args.row_count, b, args.row_begin, args.rows));
  if (i0 >= rows) return;
  const int depth = static_cast<int>(live_rows(args.depth_count, b, args.depth_begin, args.depth));
  const int slabs_each = ((depth + kDepth - 1) / kDepth + splits.count - 1) / splits.count;
  const int k_first = split * slabs_each * kDepth, k_end = min(depth, k_first + slabs_each * kDepth);
  if (k_first >= k_end && args.accumulate) return;

  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int pitch = static_cast<int>(args.padded_channels);

  // A thread copies chunks thread + 128 n of the slabs; pointers to the first of them walk along k.
  const int lhs_row = kTransposed ? thread / 16 : thread / 4, lhs_at = kTransposed ? thread % 16 * 8 : thread % 4 * 8;
  const int64_t lhs_from = b * lhs.batch_stride + (kTransposed ? (k_first + lhs_row) * lhs.pitch + i0 + lhs_at
                                                               : (i0 + lhs_row) * lhs.pitch + k_first + lhs_at);
  const int64_t lhs_step = kTransposed ? kDepth * lhs.pitch : kDepth;
  const int lhs_next = (kTransposed ? 8 : 32) * static_cast<int>(lhs.pitch);
  const T* lhs_data = lhs.data + lhs_from;
  const T* lhs_gate = has_gate ? lhs.gate + lhs_from : nullptr;
  const int rhs_row = thread / 16, rhs_at = thread % 16 * 8;
  const T* rhs = args.rhs + (b * args.rhs_rows + args.depth_begin + k_first + rhs_row) * pitch + c0 + rhs_at;
  const int lhs_to = place<!kTransposed>(thread), rhs_to = kChunks + place<false>(thread);  // 128 n later: + 128 n
  int copy_k = k_first;
  const auto copy_next = [&](int stage) {
    Chunk* const to = ring + stage * Stages::kStride;
    if (copy_k < k_end) {
      const int left = kTransposed ? rows - i0 - lhs_at : k_end - copy_k - lhs_at, bytes = 2 * max(0, min(left, 8));
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const bool inside = kTransposed ? copy_k + lhs_row + 8 * n < k_end : i0 + lhs_row + 32 * n < rows;
        const int64_t from = n * lhs_next;
        copy_chunk<kAligned>(to + lhs_to + kThreads * n, lhs_data + from, inside ? bytes : 0, width);
        if (has_gate) {
          copy_chunk<kAligned>(to + 2 * kChunks + lhs_to + kThreads * n, lhs_gate + from, inside ? bytes : 0, width);
        }
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const bool inside = copy_k + rhs_row + 8 * n < k_end && c0 + rhs_at < pitch;
        cp_async_16(to + rhs_to + kThreads * n, rhs + n * 8 * pitch, inside);
      }
      lhs_data += lhs_step;
      if (has_gate) lhs_gate += lhs_step;
      rhs += kDepth * pitch;
      copy_k += kDepth;
    }
    cp_async_commit();  // an empty group at the end keeps the count
  };

  // Where this lane's rows of the ldmatrix tiles are, in chunks; see mma.cuh for the order of the four tiles. From one
  // tile to the next a few bits of a swizzled place change, or a constant is added.
  const int warp_row = warp / 2 * kWarpRows, warp_col = warp % 2 * kWarpCols, quarter = lane / 8;
  const bool active = i0 + warp_row < rows && c0 + warp_col < args.channels;
  const int lhs_lane = kTransposed ? place<false>((quarter / 2 * 8 + lane % 8) * 16 + warp_row / 8 + quarter % 2)
                                   : place<true>((warp_row + lane % 16) * 4 + lane / 16);
  const int rhs_lane = kChunks + place<false>((quarter % 2 * 8 + lane % 8) * 16 + warp_col / 8 + quarter / 2);
  const auto lhs_tile = [&](int m, int k) {
    return kTransposed ? (lhs_lane ^ (m * 2)) + k * 16 : (lhs_lane ^ (k / 8)) + m * 64;
  };
  const auto rhs_tile = [&](int n, int k) { return (rhs_lane ^ (n * 2)) + k * 16; };

  float acc[kTilesM][kTilesN][4] = {};
  for (int s = 0; s < Stages::kStages - 1; ++s) copy_next(s);
  int stage = 0;
  for (int k0 = k_first; k0 < k_end; k0 += kDepth) {
    cp_async_wait<Stages::kStages - 2>();
    __syncthreads();
    copy_next(stage == 0 ? Stages::kStages - 1 : stage - 1);  // the stage that everybody has finished reading
    const Chunk* const from = ring + stage * Stages::kStride;
    if (active) {
#pragma unroll
      for (int k = 0; k < kDepth; k += 16) {
        uint32_t left[kTilesM][4];
#pragma unroll
        for (int m = 0; m < kTilesM; ++m) {
          if constexpr (kTransposed) {
            ldmatrix_x4_trans(left[m], from + lhs_tile(m, k));
          } else {
            ldmatrix_x4(left[m], from + lhs_tile(m, k));
          }
          if (has_gate) {
            uint32_t gate[4];
            if constexpr (kTransposed) {
              ldmatrix_x4_trans(gate, from + 2 * kChunks + lhs_tile(m, k));
            } else {
              ldmatrix_x4(gate, from + 2 * kChunks + lhs_tile(m, k));
            }
#pragma unroll
            for (int r = 0; r < 4; ++r) left[m][r] = gated(left[m][r], gate[r], T{});
          }
        }
#pragma unroll
        for (int n = 0; n < kTilesN / 2; ++n) {
          uint32_t both[4];
          ldmatrix_x4_trans(both, from + rhs_tile(n, k));
          const uint32_t first[2] = {both[0], both[1]}, second[2] = {both[2], both[3]};
#pragma unroll
          for (int m = 0; m < kTilesM; ++m) {
            mma_m16n8k16<T>(acc[m][2 * n], left[m], first);
            mma_m16n8k16<T>(acc[m][2 * n + 1], left[m], second);
          }
        }
      }
    }
    stage = stage + 1 == Stages::kStages ? 0 : stage + 1;
  }
  cp_async_wait<0>();

  struct alignas(8) Two {
    float value[2];
  };
  float* const out = args.out + split * splits.stride + (b * args.out_rows + args.row_begin + i0) * args.channels + c0;
  const bool pairs = args.channels % 2 == 0;  // and out is aligned: every second channel is at a multiple of 8 bytes
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = warp_row + m * 16 + r * 8 + lane / 4;
      if (i0 + i >= rows) continue;
      float* const line = out + i * args.channels;
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        const int c = warp_col + n * 8 + lane % 4 * 2;
        Two sum{{acc[m][n][2 * r], acc[m][n][2 * r + 1]}};
        if (pairs) {
          if (c0 + c >= args.channels) continue;
          Two* const at = reinterpret_cast<Two*>(line + c);
          if (args.accumulate) {
            const Two before = *at;
            sum.value[0] += before.value[0], sum.value[1] += before.value[1];
          }
          *at = sum;
        } else {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (c0 + c + e < args.channels) line[c + e] = args.accumulate ? line[c + e] + sum.value[e] : sum.value[e];
          }
        }
      }
    }
  }
}

// What adds up the parts of a product, whose rows begin at row 0 of `parts` and at row row_begin of `out`.
struct PartsArgs {
  const float* parts;  // (count, rows, channels)
  ProductSplits splits;
  const int* row_count;  // (1) or null: as in ProductArgs
  int64_t row_begin, rows, channels;
  float* out;  // (out_rows, channels)
};

// A thread adds kWidth neighbouring channels of a row, the parts in order: (count + 1) * 4 bytes a channel, of L2.
template <int kWidth>
__global__ void __launch_bounds__(256) gradient_product_add_kernel(PartsArgs args) {
  struct alignas(4 * kWidth) Vector {
    float value[kWidth];
  };
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) * kWidth;
  if (i >= live_rows(args.row_count, 0, args.row_begin, args.rows) * args.channels) return;
  Vector sum = *reinterpret_cast<const Vector*>(args.parts + i);
  for (int part = 1; part < args.splits.count; ++part) {
    const Vector more = *reinterpret_cast<const Vector*>(args.parts + part * args.splits.stride + i);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) sum.value[e] += more.value[e];
  }
  *reinterpret_cast<Vector*>(args.out + args.row_begin * args.channels + i) = sum;
}

}  // namespace gradient_product_mma

// How many parts of the depth fill ~132 multiprocessors with two blocks each, of at least 512 k.
template <class T>
int choose_product_splits(int64_t batch, int64_t rows, int64_t channels, int64_t depth) {
  using namespace gradient_product_mma;
  static_assert(sizeof(T) == 2, "tensor cores multiply halves");
  const int64_t tiles = batch * ceil_div(rows, kRows) * ceil_div(channels, kCols);
  const int64_t wanted = tiles == 0 ? 1 : 264 / tiles, most = depth / 512;
  const int64_t splits = wanted < most ? wanted : most;
  return splits < 1 ? 1 : static_cast<int>(splits);
}

// args.scale is null, args.out aligned to 8 bytes, and each of rows, depth and 128 * the pitch of lhs below 2^31.
template <bool kTransposed, class T>
Status launch_gradient_product(const ProductArgs<T>& args, const HalfLhs<T>& lhs, Stream stream,
                               const ProductSplits& splits = {}) {
  using namespace gradient_product_mma;
  static_assert(sizeof(T) == 2, "tensor cores multiply halves");
  const int64_t blocks = ceil_div(args.channels, kCols) * ceil_div(args.rows, kRows) * args.batch * splits.count;
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {"cosegflow: the gradient product needs more than 2^31 blocks"};
  int width = 16;
  for (const int64_t bytes : {static_cast<int64_t>(reinterpret_cast<uintptr_t>(lhs.data)),
                              static_cast<int64_t>(reinterpret_cast<uintptr_t>(lhs.gate)), 2 * lhs.pitch,
                              args.batch == 1 ? 0 : 2 * lhs.batch_stride}) {
    while (bytes % width != 0) width /= 2;
  }
  const auto run = [&](auto* kernel, size_t bytes) {
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), bytes, stream, args, lhs, splits, width);
  };
  if (width < 16) return run(&gradient_product_mma_kernel<T, kTransposed, Source::kAny>, Ring<Source::kAny>::kBytes);
  if (lhs.gate != nullptr) {
    return run(&gradient_product_mma_kernel<T, kTransposed, Source::kGated>, Ring<Source::kGated>::kBytes);
  }
  return run(&gradient_product_mma_kernel<T, kTransposed, Source::kAligned>, Ring<Source::kAligned>::kBytes);
}

// Of a window of rows of one image: the product in parts, which are then added up in its rows of args.out. A later
// kernel then has one sum to read, and parts need room for the window only. `parts`: (splits.count, rows, channels),
// aligned to 16 bytes, as is args.out.
template <bool kTransposed, class T>
Status launch_gradient_product_in_parts(const ProductArgs<T>& args, const HalfLhs<T>& lhs, float* parts, int count,
                                        Stream stream) {
  using namespace gradient_product_mma;
  ProductArgs<T> product = args;
  product.out = parts - args.row_begin * args.channels;  // row row_begin is the first of a part
  const ProductSplits splits{count, args.rows * args.channels};
  if (Status s = launch_gradient_product<kTransposed>(product, lhs, stream, splits); !s.ok()) return s;
  const PartsArgs sum{parts, splits, args.row_count, args.row_begin, args.rows, args.channels, args.out};
  const bool wide = args.channels % 4 == 0;
  const int64_t blocks = ceil_div(args.rows * args.channels, wide ? 1024 : 256);
  if (blocks > INT32_MAX) return {"cosegflow: a chunk of gradients is too large for one launch"};
  return launch(wide ? &gradient_product_add_kernel<4> : &gradient_product_add_kernel<1>,
                dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, sum);
}

}  // namespace cosegflow

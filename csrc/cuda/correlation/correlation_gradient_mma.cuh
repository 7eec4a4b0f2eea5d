// The product of correlation's backward for half types, on tensor cores:
//   out[b](i, c) = sum_k g[b](i, k) * f_hat[b](k, c)
// g is the gradient of the volume (k along its rows, or for the other side along its columns) and exact in T; f_hat is
// rounded to T, as in a product of half matrices. (product_cuda.cuh is the same in float32, and takes device counts.)
//
// Block: a 128 x 64 tile of out; 8 warps as 4 x 2, each 32 x 32: 2 x 4 mma tiles, 32 accumulators a thread.
// Pipeline: 16-byte chunks go through registers, where the relu gate, the factor 1 / norm and rows that are not aligned
//   are dealt with (cp.async could not): while slab s of 32 k is multiplied, slab s + 1 is on its way.
// Shared memory: two slabs, 24 KiB. Chunks are swizzled so that the 8 rows that an ldmatrix reads together touch all
//   banks once. What is stored with k as the slow index is read by ldmatrix.trans.
// Moves M * N elements of the gradient (twice with relu) per 64 channels, mostly from L2; 2 * M * N * C FLOPs.
// Fraction of the limit reached: not measured yet.
#pragma once

#include <cstring>

#include "common/half.h"
#include "pack.cuh"
#include "primitives/launch.cuh"
#include "primitives/mma.cuh"

namespace cosegflow::correlation_cuda {

template <class T>
struct GradientMmaArgs {
  const T* grad;  // (B, rows of the volume, columns of the volume)
  const T* corr;  // null without relu
  bool vectors;   // rows of both are aligned to 16 bytes
  bool normalize;
  PackedSide<T> other;  // f
  int64_t rows;         // of out
  float* out;           // (B, rows, C)
};

struct alignas(16) Chunk {
  uint16_t bits[8];
};

constexpr int kGradientRows = 128, kGradientCols = 64, kGradientDepth = 32;

// Eight neighbours of a row of the gradient, 0 outside and where relu clipped the volume. `base` is the same for all
// threads: what differs fits 32 bits.
template <class T>
__device__ __forceinline__ Chunk load_gradient(const GradientMmaArgs<T>& args, int64_t base, int row_at, int column,
                                               int columns) {
  const T* const grads = args.grad + base;
  const T* const corrs = args.corr + base;
  Chunk grad{}, corr{};
  if (args.vectors) {  // columns is a multiple of 8
    if (column >= columns) return grad;
    grad = *reinterpret_cast<const Chunk*>(grads + (row_at + column));
    if (args.corr != nullptr) corr = *reinterpret_cast<const Chunk*>(corrs + (row_at + column));
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (column + e >= columns) continue;
      grad.bits[e] = grads[row_at + column + e].bits;
      if (args.corr != nullptr) corr.bits[e] = corrs[row_at + column + e].bits;
    }
  }
  if (args.corr != nullptr) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (to_float(T{corr.bits[e]}) <= 0.0f) grad.bits[e] = 0;
    }
  }
  return grad;
}

// kAlongRows: i counts rows of the volume and k its columns; else the other way round.
template <class T, bool kAlongRows>
__global__ void __launch_bounds__(256, 2) correlation_gradient_mma_kernel(GradientMmaArgs<T> args) {
  constexpr int kRows = kGradientRows, kCols = kGradientCols, kDepth = kGradientDepth;
  struct Shared {
    Chunk a[2][kRows * kDepth / 8], b[2][kCols * kDepth / 8];
  };
  CSF_SHARED(Shared, shared);
  const int rows = static_cast<int>(args.rows), depth = static_cast<int>(args.other.positions);
  const int channels = static_cast<int>(args.other.channels), pitch = static_cast<int>(args.other.padded_channels);
  const int col_tiles = (channels + kCols - 1) / kCols, row_tiles = (rows + kRows - 1) / kRows;
  const int c0 = static_cast<int>(blockIdx.x % col_tiles) * kCols;
  const int i0 = static_cast<int>(blockIdx.x / col_tiles % row_tiles) * kRows;
  const int64_t b = blockIdx.x / col_tiles / row_tiles;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;

  // Chunk t of a: along rows, 4 chunks of k for each of 128 i; else 16 chunks of i for each of 32 k.
  // Chunk t of b: 8 chunks of c for each of 32 k.
  const auto fetch_a = [&](int t, int k0) -> Chunk {
    if (kAlongRows) {
      const int row = t / 4, k = k0 + t % 4 * 8;
      return i0 + row < rows ? load_gradient(args, (b * rows + i0) * depth, row * depth, k, depth) : Chunk{};
    }
    const int row = t / 16, i = i0 + t % 16 * 8;
    return k0 + row < depth ? load_gradient(args, (b * depth + k0) * rows, row * rows, i, rows) : Chunk{};
  };
  const auto place_a = [](int t) {
    return kAlongRows ? (t & ~3) | ((t % 4) ^ (t / 8 % 4)) : (t & ~15) | ((t % 16) ^ (t / 16 % 8));
  };
  const auto fetch_b = [&](int t, int k0) -> Chunk {
    const int k = k0 + t / 8, c = c0 + t % 8 * 8;
    if (k >= depth || c >= pitch) return Chunk{};
    Chunk f = *reinterpret_cast<const Chunk*>(args.other.features + (b * depth + k) * pitch + c);
    if (args.normalize) {
      const float scale = args.other.inv_norm[b * depth + k];
#pragma unroll
      for (int e = 0; e < 8; ++e) f.bits[e] = from_float<T>(to_float(T{f.bits[e]}) * scale).bits;
    }
    return f;
  };
  const auto place_b = [](int t) { return (t & ~7) | ((t % 8) ^ (t / 8 % 8)); };

  // Where this lane's rows of the ldmatrix tiles are; see mma.cuh for the order of the four tiles.
  const int warp_row = warp / 2 * 32, warp_col = warp % 2 * 32, quarter = lane / 8;
  float acc[2][4][4] = {};
  Chunk next_a[2] = {fetch_a(thread, 0), fetch_a(thread + 256, 0)}, next_b = fetch_b(thread, 0);
  int buffer = 0;
  for (int k0 = 0; k0 < depth; k0 += kDepth, buffer ^= 1) {
    shared.a[buffer][place_a(thread)] = next_a[0];
    shared.a[buffer][place_a(thread + 256)] = next_a[1];
    shared.b[buffer][place_b(thread)] = next_b;
    __syncthreads();  // whoever passed the last one had finished with this buffer
    if (k0 + kDepth < depth) {
      next_a[0] = fetch_a(thread, k0 + kDepth), next_a[1] = fetch_a(thread + 256, k0 + kDepth);
      next_b = fetch_b(thread, k0 + kDepth);
    }
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t fragment_a[2][4], fragment_b[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const int i = warp_row + m * 16;
        if (kAlongRows) {
          ldmatrix_x4(fragment_a[m], &shared.a[buffer][place_a((i + lane % 16) * 4 + k / 8 + lane / 16)]);
        } else {
          const int slow = k + quarter / 2 * 8 + lane % 8;
          ldmatrix_x4_trans(fragment_a[m], &shared.a[buffer][place_a(slow * 16 + i / 8 + quarter % 2)]);
        }
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int slow = k + quarter % 2 * 8 + lane % 8;
        ldmatrix_x4_trans(fragment_b[n], &shared.b[buffer][place_b(slow * 8 + warp_col / 8 + n * 2 + quarter / 2)]);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const uint32_t right[2] = {fragment_b[n / 2][n % 2 * 2], fragment_b[n / 2][n % 2 * 2 + 1]};
#pragma unroll
        for (int m = 0; m < 2; ++m) mma_m16n8k16<T>(acc[m][n], fragment_a[m], right);
      }
    }
  }

#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int i = i0 + warp_row + m * 16 + r * 8 + lane / 4;
      float* const line = args.out + (b * rows + i) * channels;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int c = c0 + warp_col + n * 8 + lane % 4 * 2;
        if (i < rows && c < channels) line[c] = acc[m][n][2 * r];
        if (i < rows && c + 1 < channels) line[c + 1] = acc[m][n][2 * r + 1];
      }
    }
  }
}

template <class T, bool kAlongRows>
Status launch_gradient_mma(const GradientMmaArgs<T>& args, Stream stream) {
  const int64_t blocks = (args.rows + kGradientRows - 1) / kGradientRows *
                         ((args.other.channels + kGradientCols - 1) / kGradientCols) * args.other.batch;
  if (blocks > INT32_MAX) return Status{"correlation: the features are too large for one launch"};
  return launch(&correlation_gradient_mma_kernel<T, kAlongRows>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0,
                stream, args);
}

}  // namespace cosegflow::correlation_cuda

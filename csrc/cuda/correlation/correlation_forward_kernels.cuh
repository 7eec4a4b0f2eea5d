// correlation forward: packed features in (pack.cuh), the volume out; norms, relu and rounding in the epilogue.
//
// Half types: a block walks along a strip of 128 x 128 tiles of the volume on tensor cores (registers, the 64 KiB ring
//   and the pipeline: mma_tile_product.cuh). The epilogue runs while the next tile is on its way. A quad of lanes holds
//   8 neighbouring columns of a row, 2 each; four such groups are turned among the four lanes by shuffles, so that
//   every lane writes 16 bytes and a quad 64.
// float and double: a block owns one 128 x 128 (64 x 64) tile and multiplies with FMAs (tile_product.cuh), 128
//   registers and 16 KiB of shared memory; 16-byte stores.
// Must move: M * N elements out and (M + N) * C in; 2 * M * N * C FLOPs. The half kernel is bound by the volume's
//   write below C ~ 500 (H100: 3.3 TB/s against ~400 TFLOP/s of mma.sync), the others by FMAs.
//   Fraction of the limit reached: not measured yet.
#pragma once

#include <cstring>

#include "common/half.h"
#include "cosegflow/correlation.h"
#include "mma_tile_product.cuh"
#include "pack.cuh"
#include "tile_product.cuh"

namespace cosegflow::correlation_cuda {

template <class T>
struct ForwardArgs {
  PackedSide<T> a, b;
  T* corr;
  bool relu;
  bool vectors;       // rows of corr are aligned to 16 bytes
  int strip, strips;  // half types: tiles of a strip, strips of a row of tiles
};

// The value of the volume from the plain inner product. A NaN stays one.
template <class Acc>
__device__ __forceinline__ Acc finish(Acc product, Acc scale, bool relu) {
  const Acc value = product * scale;
  return relu && value < Acc(0) ? Acc(0) : value;
}

// Lane q of a quad gives word u to lane u: afterwards word u of lane q is what word q of lane u was. Selects instead of
// indices that depend on the lane keep the words in registers.
__device__ __forceinline__ void transpose_in_quad(uint32_t (&word)[4]) {
  const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x / 2 % 2 != 0;
#pragma unroll
  for (int u = 0; u < 4; u += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? word[u] : word[u + 1], 1);
    word[u] = odd ? got : word[u];
    word[u + 1] = odd ? word[u + 1] : got;
  }
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? word[u] : word[u + 2], 2);
    word[u] = upper ? got : word[u];
    word[u + 2] = upper ? word[u + 2] : got;
  }
}

template <class T>
__global__ void __launch_bounds__(256, 2) correlation_mma_kernel(ForwardArgs<T> args) {
  using Mma = MmaTileProduct<T>;
  CSF_DYNAMIC_SHARED(T, shared);
  const int rows = static_cast<int>(args.a.positions), cols = static_cast<int>(args.b.positions);
  const int row_tiles = (rows + Mma::kRows - 1) / Mma::kRows, col_tiles = (cols + Mma::kCols - 1) / Mma::kCols;
  const int strip = static_cast<int>(blockIdx.x % args.strips);
  const int i0 = static_cast<int>(blockIdx.x / args.strips % row_tiles) * Mma::kRows;
  const int64_t b = blockIdx.x / args.strips / row_tiles;

  typename Mma::Strip work;
  work.depth = static_cast<int>(args.a.padded_channels);
  work.a = args.a.features + (b * rows + i0) * work.depth;
  work.b = args.b.features + b * cols * work.depth;
  work.rows = min(rows - i0, Mma::kRows);
  work.count = cols;
  work.first = strip * args.strip;
  work.end = min(work.first + args.strip, col_tiles);

  const auto epilogue = [&](int tile, typename Mma::Accumulators& acc) {
    const int j0 = tile * Mma::kCols;
    float scale_a[Mma::kThreadRows];  // not kept during the product: every register counts there
#pragma unroll
    for (int r = 0; r < Mma::kThreadRows; ++r) {
      const int i = i0 + Mma::row(r);
      scale_a[r] = i < rows ? args.a.inv_norm[b * rows + i] : 0.0f;
    }
#pragma unroll
    for (int c = 0; c < Mma::kThreadCols; ++c) {
      const int j = j0 + Mma::col(c);
      const float scale_b = j < cols ? args.b.inv_norm[b * cols + j] : 0.0f;
#pragma unroll
      for (int r = 0; r < Mma::kThreadRows; ++r) {
        float& value = Mma::value(acc, r, c);
        value = finish(value, scale_a[r] * scale_b, args.relu);
      }
    }
#pragma unroll
    for (int r = 0; r < Mma::kThreadRows; ++r) {
      const int i = i0 + Mma::row(r);
      T* const line = args.corr + (b * rows + i) * cols;
#pragma unroll
      for (int c0 = 0; c0 < Mma::kThreadCols; c0 += 8) {
        uint32_t word[4];
#pragma unroll
        for (int u = 0; u < 4; ++u) {
          const T low = from_float<T>(Mma::value(acc, r, c0 + 2 * u));
          const T high = from_float<T>(Mma::value(acc, r, c0 + 2 * u + 1));
          word[u] = low.bits | static_cast<uint32_t>(high.bits) << 16;
        }
        if (args.vectors) {
          transpose_in_quad(word);
          // Column c0 + 2 u of lane q is 8 u + 2 q further than the first of lane 0; now it is 8 q + 2 u.
          const int quad_lane = static_cast<int>(threadIdx.x % 4);
          const int j = j0 + Mma::col(c0) - 2 * quad_lane + 8 * quad_lane;
          if (i < rows && j < cols) {
            __stcs(reinterpret_cast<uint4*>(line + j), make_uint4(word[0], word[1], word[2], word[3]));
          }
        } else {
#pragma unroll
          for (int u = 0; u < 4; ++u) {
            const int j = j0 + Mma::col(c0 + 2 * u);
            if (i < rows && j < cols) line[j] = T{static_cast<uint16_t>(word[u])};
            if (i < rows && j + 1 < cols) line[j + 1] = T{static_cast<uint16_t>(word[u] >> 16)};
          }
        }
      }
    }
  };
  Mma::run(shared, work, [](int) {}, epilogue);
}

// T is float or double.
template <class T>
__global__ void __launch_bounds__(256, 2) correlation_fma_kernel(ForwardArgs<T> args) {
  using Tile = score_tile_t<T>;
  using Shared = typename Tile::Shared;
  using Vector = typename Tile::Vector;
  CSF_SHARED(Shared, shared);
  const int64_t rows = args.a.positions, cols = args.b.positions, depth = args.a.padded_channels;
  const int64_t row_tiles = (rows + Tile::kRows - 1) / Tile::kRows, col_tiles = (cols + Tile::kCols - 1) / Tile::kCols;
  const int64_t j0 = blockIdx.x % col_tiles * Tile::kCols;
  const int64_t i0 = blockIdx.x / col_tiles % row_tiles * Tile::kRows;
  const int64_t b = blockIdx.x / col_tiles / row_tiles;

  // Channels are padded with zeros to a multiple of 8, the depth of a slab: k needs no check.
  // Within a tile 32-bit offsets do, and save the registers of 64-bit ones.
  const T* const a = args.a.features + (b * rows + i0) * depth;
  const T* const f = args.b.features + (b * cols + j0) * depth;
  const int live_rows = static_cast<int>(min(rows - i0, static_cast<int64_t>(Tile::kRows)));
  const int live_cols = static_cast<int>(min(cols - j0, static_cast<int64_t>(Tile::kCols)));
  const int pitch = static_cast<int>(depth);
  typename Tile::Accumulators acc;
  Tile::clear(acc);
  Tile::template multiply<Contiguous::kDepth, Contiguous::kDepth>(
      shared, acc, 0, 0, pitch, [&](int i, int k) { return i < live_rows ? a[i * pitch + k] : T(0); },
      [&](int j, int k) { return j < live_cols ? f[j * pitch + k] : T(0); });

#pragma unroll
  for (int n = 0; n < Tile::kN; n += Tile::kVector) {
    const int64_t j = j0 + Tile::col(n);
    T scale_b[Tile::kVector];
#pragma unroll
    for (int e = 0; e < Tile::kVector; ++e) scale_b[e] = j + e < cols ? args.b.inv_norm[b * cols + j + e] : T(0);
#pragma unroll
    for (int m = 0; m < Tile::kM; ++m) {
      const int64_t i = i0 + Tile::row(m);
      if (i >= rows) continue;
      const T scale_a = args.a.inv_norm[b * rows + i];
      Vector out;
#pragma unroll
      for (int e = 0; e < Tile::kVector; ++e) {
        out.value[e] = finish(acc[m][n + e], scale_a * scale_b[e], args.relu);
      }
      T* const at = args.corr + (b * rows + i) * cols + j;
      if (args.vectors && j < cols) {
        *reinterpret_cast<Vector*>(at) = out;
      } else {
#pragma unroll
        for (int e = 0; e < Tile::kVector; ++e) {
          if (j + e < cols) at[e] = out.value[e];
        }
      }
    }
  }
}

}  // namespace cosegflow::correlation_cuda

// correlation forward: packed features in, the volume out; norms, relu and rounding in the epilogue.
//
// Half types, and float32 as bfloat16 terms (pack_tiles.cuh): a block walks along a strip of 128 x 128 tiles of the
// volume
//   on tensor cores (registers, the 64 KiB ring and the pipeline: mma_tile_product.cuh). The epilogue runs while the
//   next tile is on its way, and stores 16 bytes a lane (correlation_store.cuh).
// float and double (pack.cuh): a block owns one 128 x 128 (64 x 64) tile and multiplies with FMAs (tile_product.cuh),
// 128
//   registers and 16 KiB of shared memory; 16-byte stores.
// Must move: M * N elements out and (M + N) * C in; 2 * M * N * C FLOPs. The half kernel is bound by the volume's
//   write below C ~ 500 (H100: 3.3 TB/s against ~400 TFLOP/s of mma.sync), the others by FMAs.
//   Fraction of the limit reached: see docs/kernels/correlation.md.
#pragma once

#include <cstring>

#include "common/half.h"
#include "correlation/correlation_store.cuh"
#include "cosegflow/correlation.h"
#include "mma_tile_product.cuh"
#include "pack.cuh"
#include "pack_tiles.cuh"
#include "tile_product.cuh"

namespace cosegflow::correlation_cuda {

// The scores of a thread of mma.sync's tiles, as store_tile wants them.
template <class T>
struct MmaThreadTile {
  using Mma = MmaTileProduct<T>;
  using Accumulators = typename Mma::Accumulators;
  static constexpr int kRows = Mma::kThreadRows, kColumns = Mma::kThreadCols;
  static __device__ __forceinline__ int row(int r) { return Mma::row(r); }
  static __device__ __forceinline__ int column(int c) { return Mma::col(c); }
  static __device__ __forceinline__ float& value(Accumulators& acc, int r, int c) { return Mma::value(acc, r, c); }
};

template <class T, class Out>
struct MmaArgs {
  TileSide<T> a, b;
  Out* corr;
  bool relu;
  bool vectors;       // rows of corr are aligned to 16 bytes
  int strip, strips;  // tiles of a strip, strips of a row of tiles
};

template <class T, class Out>
__global__ void __launch_bounds__(256, 2) correlation_mma_kernel(MmaArgs<T, Out> args) {
  using Mma = MmaTileProduct<T>;
  using Tile = MmaThreadTile<T>;
  CSF_DYNAMIC_SHARED(T, shared);
  const int rows = static_cast<int>(args.a.positions), cols = static_cast<int>(args.b.positions);
  const int row_tiles = (rows + Mma::kRows - 1) / Mma::kRows, col_tiles = (cols + Mma::kCols - 1) / Mma::kCols;
  const int strip = static_cast<int>(blockIdx.x % args.strips);
  const int i0 = static_cast<int>(blockIdx.x / args.strips % row_tiles) * Mma::kRows;
  const int64_t b = blockIdx.x / args.strips / row_tiles;

  typename Mma::Strip work;
  work.depth = static_cast<int>(args.a.depth);
  work.a = args.a.features + (b * rows + i0) * work.depth;
  work.b = args.b.features + b * cols * work.depth;
  work.rows = min(rows - i0, Mma::kRows);
  work.count = cols;
  work.first = strip * args.strip;
  work.end = min(work.first + args.strip, col_tiles);

  const auto epilogue = [&](int tile, typename Mma::Accumulators& acc) {
    const int j0 = tile * Mma::kCols;
    // Norms are not kept during the product: every register counts there. There are some up to a multiple of
    // kTileRowStep.
    const Scale* const of_a = args.a.scale + b * args.a.pitch + i0;
    const Scale* const of_b = args.b.scale + b * args.b.pitch + j0;
    float scale_a[Tile::kRows];
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r) scale_a[r] = of_a[Tile::row(r)].inv_norm;
    const auto scale_b = [&](int c) {
      const Scale* const two = of_b + Tile::column(c);
      return make_float2(two[0].inv_norm, two[1].inv_norm);
    };
    const VolumeTile<Out> to = {
        args.corr + (b * rows + i0) * cols + j0, cols, work.rows, min(cols - j0, Mma::kCols), args.relu, args.vectors};
    store_tile<Tile, Out>(acc, scale_a, scale_b, to);
  };
  Mma::run(shared, work, [](int) {}, epilogue);
}

template <class T>
struct FmaArgs {
  PackedSide<T> a, b;
  T* corr;
  bool relu;
  bool vectors;  // rows of corr are aligned to 16 bytes
};

// T is float or double.
template <class T>
__global__ void __launch_bounds__(256, 2) correlation_fma_kernel(FmaArgs<T> args) {
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
        out.value[e] = finish(acc[m][n + e], scale_a, scale_b[e], args.relu);
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

// The tiled kernels of transfer, over the tile engines of match.
//
// transfer_product_kernel: D_ij = <grad_out_i, values_j>, a tile of tile_product.cuh per block; depth V.
// transfer_tile_kernel: a tile of rows of the chunk against a run of target tiles. Scores are computed by the engine in
//   registers (as in match's forward, so that the logit rounds alike) and turned into probabilities, which are written;
//   with kGradient also into dS = beta p (D - delta), which replaces D. Sums over rows of dlogit and dlogit * s go to
//   one slot per row tile, to be added up in a fixed order: no atomics, the same bits on every run.
// Registers: the accumulators, in place. Shared memory: the engine's ring; three numbers per row; the columns of two
//   tiles; per-warp sums over rows. Pipeline: the engine's.
// Moves 128 C elements from L2 per tile and writes (kGradient: reads one and writes two) accumulators per score;
// 2 C FLOPs and one exponential per score: bound by these writes for small C. Fraction reached: not measured yet.
#pragma once

#include "match/match_common.cuh"
#include "tile_product.cuh"
#include "transfer/transfer_common.cuh"

namespace cosegflow::transfer_cuda {

using match_cuda::block_place;
using match_cuda::BlockPlace;
using match_cuda::split_range;

template <class T>
__global__ void __launch_bounds__(256) transfer_product_kernel(ChunkArgs<T> args) {
  using Acc = accumulate_t<T>;
  using Tile = typename GradientProductTile<Acc>::type;
  using Shared = typename Tile::Shared;
  CSF_SHARED(Shared, shared);
  const int64_t col_tiles = (args.b.positions + Tile::kCols - 1) / Tile::kCols;
  const int64_t row_tiles = (args.rows + Tile::kRows - 1) / Tile::kRows;
  const int64_t j0 = blockIdx.x % col_tiles * Tile::kCols;
  const int64_t i0 = blockIdx.x / col_tiles % row_tiles * Tile::kRows;
  const int64_t b = blockIdx.x / col_tiles / row_tiles;
  const int64_t rows = live_rows(args.a.count, b, args.row_begin, args.rows), cols = args.b.count[b];
  if (i0 >= rows || j0 >= cols) return;

  const Acc* const grad = args.grad_out + (b * args.a.positions + args.row_begin) * args.value_channels;
  const Acc* const values = args.values + b * args.b.positions * args.value_channels;
  const auto load_grad = [&](int64_t i, int64_t v) -> Acc {
    return i < rows && v < args.value_channels ? grad[i * args.value_channels + v] : Acc(0);
  };
  const auto load_values = [&](int64_t j, int64_t v) -> Acc {
    return j < cols && v < args.value_channels ? values[j * args.value_channels + v] : Acc(0);
  };
  typename Tile::Accumulators acc;
  Tile::clear(acc);
  Tile::template multiply<Contiguous::kDepth, Contiguous::kDepth>(shared, acc, i0, j0, args.value_channels, load_grad,
                                                                  load_values);
  Acc* const out = args.dscore + b * args.rows * args.pitch;
#pragma unroll
  for (int m = 0; m < Tile::kM; ++m) {
    const int64_t i = i0 + Tile::row(m);
#pragma unroll
    for (int n = 0; n < Tile::kN; ++n) {
      const int64_t j = j0 + Tile::col(n);
      if (i < rows && j < cols) out[i * args.pitch + j] = acc[m][n];
    }
  }
}

template <class Acc>
struct TransferColumn {  // of a tile: a target
  Acc inv_norm, log_weight;
};
template <class Acc>
struct TransferRow {
  Acc inv_norm, base, extra;
};

template <class T, class Engine, bool kGradient>
__global__ void __launch_bounds__(256, Engine::kBackwardBlocksPerSm) transfer_tile_kernel(ChunkArgs<T> args) {
  using Acc = accumulate_t<T>;
  using Columns = TransferColumn<Acc>[2][Engine::kCols];
  using Rows = TransferRow<Acc>[Engine::kRows];
  using Sums = Acc[2][Engine::kColWarps][Engine::kCols];
  constexpr int kR = Engine::kThreadRows, kC = Engine::kThreadCols;
  CSF_DYNAMIC_SHARED(unsigned char, ring);
  CSF_SHARED(Columns, columns);
  CSF_SHARED(Rows, row_data);
  CSF_SHARED(Sums, sums);

  const BlockPlace place = block_place(args.row_tiles, args.splits);
  const int64_t b = place.b;
  const int chunk_row = place.row_tile * Engine::kRows, row0 = args.row_begin + chunk_row;
  const int rows = min(min(Engine::kRows, args.rows - chunk_row), args.a.count[b] - row0);
  if (rows <= 0) return;

  if (threadIdx.x < Engine::kRows) {  // published by the engine's barriers
    const int row = threadIdx.x;
    const int64_t at = b * args.a.positions + row0 + row;
    row_data[row] = row < rows ? TransferRow<Acc>{args.a.inv_norm[at], args.base[at], args.extra[at]}
                               : TransferRow<Acc>{Acc(0), Acc(0), Acc(0)};
  }

  typename Engine::Strip strip;
  strip.a = args.a.features + (b * args.a.positions + row0) * args.a.padded_channels;
  strip.b = args.b.features + b * args.b.positions * args.b.padded_channels;
  strip.rows = rows;
  strip.count = args.b.count[b];
  strip.depth = static_cast<int>(args.a.padded_channels);
  split_range((strip.count + Engine::kCols - 1) / Engine::kCols, args.splits, place.split, strip.first, strip.end);

  const auto begin = [&](int tile) {
    if (threadIdx.x >= Engine::kCols) return;
    const int j = tile * Engine::kCols + static_cast<int>(threadIdx.x);
    const int64_t at = b * args.b.positions + j;
    columns[tile % 2][threadIdx.x] = j < strip.count ? TransferColumn<Acc>{args.b.inv_norm[at], args.b.log_weight[at]}
                                                     : TransferColumn<Acc>{Acc(0), minus_infinity<Acc>()};
  };
  const auto epilogue = [&](int tile, typename Engine::Accumulators& acc) {
    const TransferColumn<Acc>* const column = columns[tile % 2];
    const Acc beta = static_cast<const Acc*>(args.beta.data)[b * args.beta.stride[0]];
    const int64_t origin = (b * args.rows + chunk_row) * args.pitch + static_cast<int64_t>(tile) * Engine::kCols;
    Acc* const probability = args.probability + origin;
    Acc* const dscore = kGradient ? args.dscore + origin : nullptr;
    const int live = strip.count - tile * Engine::kCols;
#pragma unroll
    for (int c0 = 0; c0 < kC; c0 += 2) {
      TransferColumn<Acc> target[2];
      Acc sum_logit[2] = {}, sum_beta[2] = {};
#pragma unroll
      for (int c = 0; c < 2; ++c) target[c] = column[Engine::col(c0 + c)];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const int row = Engine::row(r);
        const TransferRow<Acc> data = row_data[row];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int col = Engine::col(c0 + c);
          if (row >= rows || col >= live) continue;
          const int64_t at = row * args.pitch + col;
          const Acc s = Engine::value(acc, r, c0 + c) * data.inv_norm * target[c].inv_norm;
          const Acc p = exp_of(fma_of(beta, s, target[c].log_weight) - data.base);
          if constexpr (kGradient) {
            const Acc dlogit = p * (dscore[at] - data.extra);
            sum_logit[c] += dlogit;
            sum_beta[c] = fma_of(dlogit, s, sum_beta[c]);
            dscore[at] = beta * dlogit;
            probability[at] = p;
          } else {
            probability[at] = p * data.extra;
          }
        }
      }
      if constexpr (kGradient) {
        if (args.columns == nullptr) continue;
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
          for (int lanes = Engine::kRowLanes; lanes < 32; lanes *= 2) {  // the lanes that share a column
            sum_logit[c] += __shfl_xor_sync(0xffffffffu, sum_logit[c], lanes);
            sum_beta[c] += __shfl_xor_sync(0xffffffffu, sum_beta[c], lanes);
          }
          if (threadIdx.x % 32 < Engine::kRowLanes) {
            sums[0][Engine::col_warp()][Engine::col(c0 + c)] = sum_logit[c];
            sums[1][Engine::col_warp()][Engine::col(c0 + c)] = sum_beta[c];
          }
        }
      }
    }
    if constexpr (kGradient) {
      if (args.columns == nullptr) return;
      __syncthreads();
      // Read before the next epilogue writes them: the engine's barriers are in between.
      for (int i = threadIdx.x; i < 2 * Engine::kCols; i += 256) {
        const int which = i / Engine::kCols, col = i % Engine::kCols;
        Acc sum = Acc(0);
#pragma unroll
        for (int w = 0; w < Engine::kColWarps; ++w) sum += sums[which][w][col];
        args.columns[((b * args.row_tiles + place.row_tile) * 2 + which) * args.pitch +
                     static_cast<int64_t>(tile) * Engine::kCols + col] = sum;
      }
    }
  };
  Engine::run(ring, strip, begin, epilogue);
}

template <class T, class Engine, bool kGradient>
Status launch_tiles(const ChunkArgs<T>& args, Stream stream) {
  const int64_t blocks = args.images * args.row_tiles * args.splits;
  if (blocks > INT32_MAX) return {"transfer: too many source pixels for one launch"};
  return launch(&transfer_tile_kernel<T, Engine, kGradient>, dim3(static_cast<unsigned>(blocks)), dim3(256),
                Engine::kSharedBytes, stream, args);
}

template <class T, class Engine>
Status launch_gradient_with(const ChunkArgs<T>& args, Stream stream) {
  using Tile = typename GradientProductTile<accumulate_t<T>>::type;
  const int64_t blocks = ceil_div(args.b.positions, Tile::kCols) * ceil_div(args.rows, Tile::kRows) * args.images;
  if (blocks > INT32_MAX) return {"transfer: too many pixels for one launch"};
  if (Status s = launch(&transfer_product_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
      !s.ok()) {
    return s;
  }
  return launch_tiles<T, Engine, true>(args, stream);
}

}  // namespace cosegflow::transfer_cuda

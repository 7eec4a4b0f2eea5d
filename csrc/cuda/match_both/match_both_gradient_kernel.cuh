// match_both backward, first half: recomputes a chunk of scores and turns each into d(loss)/ds of both directions
// before it is written, so that the two gradient products run once:
//   a's softmax, over j:  p_ij = exp(beta s_ij + log m_j - lse_i),   d_ij = p_ij (g_i . (q_j - E_i) + h_i)
//   b's softmax, over i:  p'_ij = exp(beta s_ij + log m_i - lse_j),  d'_ij = p'_ij (g_j . (q_i - E_j) + h_j)
//   ds_ij = beta (d_ij + d'_ij)
// g, h are the incoming gradients of flow and lse, E the expected positions; each pixel has them once, gathered
// beforehand (Pixel, match_both_common.cuh). The same engine as in the forward, so s rounds alike.
//
// Block: a tile of rows of the chunk against a run of tiles of columns. Registers: the accumulators, in place; a sum
// for each row. Shared memory: the engine's ring; the pixels of the rows, and of the columns of two tiles; per-warp
// sums. Sums over rows (d for mask_b; (d + d') s for beta) go to one slot per row tile and sums over columns (d' for
// mask_a) to one per split, so that later kernels add them up in a fixed order: no atomics, the same bits on every run.
// Pipeline: the engine's. Moves 128 C elements from L2 and writes 128 * 128 accumulators per tile; 2 C FLOPs and two
// exponentials per score: bound by the product for large C, by the writes below. Fraction reached: not measured yet.
#pragma once

#include "match_both/match_both_common.cuh"

namespace cosegflow::match_both_cuda {

template <class T, class Engine>
__global__ void __launch_bounds__(256, 1) match_both_score_gradient_kernel(GradientArgs<T> args) {
  using Acc = accumulate_t<T>;
  using Rows = Pixel<Acc>[Engine::kRows];
  using Columns = Pixel<Acc>[2][Engine::kCols];
  using ColumnSums = Acc[2][Engine::kColWarps][Engine::kCols];
  using RowSums = Acc[Engine::kRowWarps][Engine::kRows];
  constexpr int kR = Engine::kThreadRows, kC = Engine::kThreadCols, kGroup = kC >= 16 ? 2 : 1;
  CSF_DYNAMIC_SHARED(unsigned char, ring);
  CSF_SHARED(Rows, rows_of_tile);
  CSF_SHARED(Columns, columns);
  CSF_SHARED(ColumnSums, column_sums);
  CSF_SHARED(RowSums, row_sums);

  const BlockPlace place = block_place(args.row_tiles, args.splits);
  const int64_t b = place.b;
  const int chunk_row = place.row_tile * Engine::kRows, row0 = args.row_begin + chunk_row;
  const int rows = min(min(Engine::kRows, args.rows - chunk_row), args.a.count[b] - row0);
  if (rows <= 0) return;

  if (threadIdx.x < Engine::kRows) {  // published by the engine's barriers
    const int row = threadIdx.x;
    rows_of_tile[row] = row < rows ? args.pixels_a[b * args.a.positions + row0 + row] : no_pixel<Acc>();
  }
  Acc row_sum[kR] = {};

  typename Engine::Strip strip;
  strip.a = args.a.features + (b * args.a.positions + row0) * args.a.padded_channels;
  strip.b = args.b.features + b * args.b.positions * args.b.padded_channels;
  strip.rows = rows;
  strip.count = args.b.count[b];
  strip.depth = static_cast<int>(args.a.padded_channels);
  split_range((strip.count + Engine::kCols - 1) / Engine::kCols, args.splits, place.split, strip.first, strip.end);

  const auto begin = [&](int tile) {
    if (threadIdx.x < Engine::kCols) {
      const int column = tile * Engine::kCols + static_cast<int>(threadIdx.x);
      columns[tile % 2][threadIdx.x] =
          column < strip.count ? args.pixels_b[b * args.b.positions + column] : no_pixel<Acc>();
    }
  };
  const auto epilogue = [&](int tile, typename Engine::Accumulators& acc) {
    const Pixel<Acc>* const column = columns[tile % 2];
    const Acc beta = static_cast<const Acc*>(args.beta.data)[b * args.beta.stride[0]];
    Acc* const tile_out =
        args.dscore + (b * args.rows + chunk_row) * args.pitch + static_cast<int64_t>(tile) * Engine::kCols;
#pragma unroll
    for (int c0 = 0; c0 < kC; c0 += kGroup) {
      Acc sum_logit[kGroup] = {}, sum_beta[kGroup] = {};
      Pixel<Acc> target[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) target[c] = column[Engine::col(c0 + c)];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        fence_loads();
        const int row = Engine::row(r);
        const Pixel<Acc> p = rows_of_tile[row];
#pragma unroll
        for (int c = 0; c < kGroup; ++c) {
          const Pixel<Acc>& q = target[c];
          const Acc s = Engine::value(acc, r, c0 + c) * p.inv_norm * q.inv_norm;
          const Acc along_a = fma_of(p.grad_x, q.x - p.match_x, fma_of(p.grad_y, q.y - p.match_y, p.grad_lse));
          const Acc along_b = fma_of(q.grad_x, p.x - q.match_x, fma_of(q.grad_y, p.y - q.match_y, q.grad_lse));
          const Acc from_a = exp_of(fma_of(beta, s, q.log_weight) - p.lse) * along_a;
          const Acc from_b = exp_of(fma_of(beta, s, p.log_weight) - q.lse) * along_b;
          const Acc both = from_a + from_b;
          sum_logit[c] += from_a;
          sum_beta[c] = fma_of(both, s, sum_beta[c]);
          row_sum[r] += from_b;
          // The pitch has room for whole tiles. What lies beyond the count of targets is never read.
          if (row < rows) tile_out[row * args.pitch + Engine::col(c0 + c)] = beta * both;
        }
      }
      if (args.columns == nullptr) continue;
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
#pragma unroll
        for (int lanes = Engine::kRowLanes; lanes < 32; lanes *= 2) {  // the lanes that share a column
          sum_logit[c] += __shfl_xor_sync(0xffffffffu, sum_logit[c], lanes);
          sum_beta[c] += __shfl_xor_sync(0xffffffffu, sum_beta[c], lanes);
        }
        if (threadIdx.x % 32 < Engine::kRowLanes) {
          column_sums[0][Engine::col_warp()][Engine::col(c0 + c)] = sum_logit[c];
          column_sums[1][Engine::col_warp()][Engine::col(c0 + c)] = sum_beta[c];
        }
      }
    }
    if (args.columns == nullptr) return;
    __syncthreads();
    // Read before the next epilogue writes them: the engine's barriers are in between.
    for (int i = threadIdx.x; i < 2 * Engine::kCols; i += 256) {
      const int which = i / Engine::kCols, col = i % Engine::kCols;
      Acc sum = Acc(0);
#pragma unroll
      for (int w = 0; w < Engine::kColWarps; ++w) sum += column_sums[which][w][col];
      args.columns[((b * args.row_tiles + place.row_tile) * 2 + which) * args.pitch +
                   static_cast<int64_t>(tile) * Engine::kCols + col] = sum;
    }
  };
  Engine::run(ring, strip, begin, epilogue);

  if (args.row_sums == nullptr) return;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
    row_sum[r] = warp_reduce_sum<Engine::kRowLanes>(row_sum[r]);
    if (threadIdx.x % Engine::kRowLanes == 0) row_sums[Engine::row_warp()][Engine::row(r)] = row_sum[r];
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < rows) {
    Acc sum = row_sums[0][threadIdx.x];
#pragma unroll
    for (int w = 1; w < Engine::kRowWarps; ++w) sum += row_sums[w][threadIdx.x];
    args.row_sums[place.split * args.row_pitch + b * args.a.positions + row0 + threadIdx.x] = sum;
  }
}

template <class T, class Engine>
Status launch_score_gradient_with(const GradientArgs<T>& args, int64_t images, Stream stream) {
  const int64_t blocks = images * args.row_tiles * args.splits;
  if (blocks > INT32_MAX) return {"match_both: too many pixels for one launch"};
  return launch(&match_both_score_gradient_kernel<T, Engine>, dim3(static_cast<unsigned>(blocks)), dim3(256),
                Engine::kSharedBytes, stream, args);
}

}  // namespace cosegflow::match_both_cuda

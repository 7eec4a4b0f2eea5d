// match backward, first half: recomputes a chunk of scores and turns each into d(loss)/ds before it is written.
//   p_ij = exp(beta s_ij + log m_j - lse_i);  dlogit = p_ij (g_i . (q_j - E_i) + g_lse_i);  ds = beta dlogit
// E_i = flow_i + p_i is the expected position. The same engine as in the forward, so s and the logit round alike.
// Halves leave as halves, for products on tensor cores, with the factors that half_gradient.cuh describes.
//
// Block: a tile of rows of the chunk against a run of target tiles. Registers: the accumulators, in place.
// Shared memory: the engine's ring; eight numbers per row; the columns of two tiles; per-warp sums over rows.
// Incoming gradients are read through the compact index: those of excluded rows are never read.
// Column sums of dlogit (for the mask) and of dlogit * s (for beta) go to one slot per row tile, so that a later kernel
// adds them up in a fixed order: no atomics, the same bits on every run.
// Stores: a thread has pairs of neighbouring columns. Two lanes exchange a pair, so that each stores 8 bytes and a quad
//   32 neighbouring ones, a sector; otherwise a column at a time.
// Pipeline: the engine's. Moves 128 C elements from L2 and writes 128 * 128 numbers of T per tile; 2 C FLOPs and one
//   exponential per score. Of halves an epilogue is 20 instructions a score, 21 with the sums (SASS of sm_90a): 2500
//   issue slots of a multiprocessor a tile, which hide under the product of the other block on it for C >= 256.
// Fraction reached: not measured yet.
#pragma once

#include "half_gradient.cuh"
#include "match/match_common.cuh"
#include "primitives/half_pair.cuh"
#include "primitives/quad_transpose.cuh"

namespace cosegflow::match_cuda {

template <class Acc>
struct alignas(16) RowGradient {
  Acc inv_norm, lse, x, y, grad_x, grad_y, grad_lse;  // (x, y): E_i, relative to the centre of b's grid
  Acc factor;                                         // of dlogit, in dscore; halves only
};

// The factor of the row's dlogit in dscore: times inv_norm of the column where folded.
template <class T>
__device__ __forceinline__ float factor_of_row(const GradientArgs<T>& args, int64_t b, float inv_norm) {
  const float beta = static_cast<const float*>(args.beta.data)[b * args.beta.stride[0]];
  return finite_factor(beta * (kFolded<T> ? inv_norm : range_scale(__int_as_float(args.bound[b]))));
}

template <class Acc>
__device__ __forceinline__ Acc read_or_zero(const void* data, int64_t at) {
  return data == nullptr ? Acc(0) : static_cast<const Acc*>(data)[at];
}

template <class T, class Acc = accumulate_t<T>>
__device__ __forceinline__ RowGradient<Acc> load_row_gradient(const GradientArgs<T>& args, int64_t b, int64_t row) {
  const int pixel = args.a.index[b * args.a.positions + row];
  const int64_t y = pixel / args.width_a, x = pixel % args.width_a;
  const auto at4 = [&](const View4& v) { return b * v.stride[0] + y * v.stride[2] + x * v.stride[3]; };
  const auto at3 = [&](const View3& v) { return b * v.stride[0] + y * v.stride[1] + x * v.stride[2]; };
  const Acc* const flow = static_cast<const Acc*>(args.flow.data) + at4(args.flow);
  const int64_t g = at4(args.grad_flow);
  RowGradient<Acc> r;
  r.inv_norm = args.a.inv_norm[b * args.a.positions + row];
  r.lse = static_cast<const Acc*>(args.lse.data)[at3(args.lse)];
  r.x = flow[0] + (static_cast<Acc>(x) - static_cast<Acc>(args.width_b - 1) / 2);
  r.y = flow[args.flow.stride[1]] + (static_cast<Acc>(y) - static_cast<Acc>(args.height_b - 1) / 2);
  r.grad_x = read_or_zero<Acc>(args.grad_flow.data, g);
  r.grad_y = read_or_zero<Acc>(args.grad_flow.data, g + args.grad_flow.stride[1]);
  r.grad_lse = read_or_zero<Acc>(args.grad_lse.data, at3(args.grad_lse));
  if constexpr (sizeof(T) == 2) r.factor = factor_of_row(args, b, r.inv_norm);
  return r;
}

// p of a score, whose logit is relative to its row's lse. Halves: by the hardware's instruction alone, whose results
// below 2^-126 are 0.
template <class T, class Acc>
__device__ __forceinline__ Acc probability(Acc logit) {
  if constexpr (sizeof(T) == 2) {
    return exp2_fast(logit * 1.4426950408889634f);
  } else {
    return exp_of(logit);
  }
}

// Columns c0 .. c0 + 3 of a thread's row, whose first column of the tile is at `row`. All lanes of the warp.
template <class T, class Engine, class Acc>
__device__ __forceinline__ void store_four(T* row, int c0, const Acc (&ds)[4], bool inside) {
  if constexpr (sizeof(T) == 2) {
    uint32_t word[2] = {half_pair<T>(ds[0], ds[1]), half_pair<T>(ds[2], ds[3])};
    exchange_in_quad(word);
    const int lane = static_cast<int>(threadIdx.x) % 4;  // columns c0 and c0 + 2 of the engine are 8 apart
    T* const at = row + Engine::col(c0) - lane * 2 + lane % 2 * 8 + lane / 2 * 4;
    if (inside) *reinterpret_cast<uint2*>(at) = {word[0], word[1]};
  } else if (inside) {
#pragma unroll
    for (int c = 0; c < 4; ++c) row[Engine::col(c0 + c)] = ds[c];
  }
}

// Sums over the warp's rows of columns c0 .. c0 + 3 of a thread go to the warp's place. All lanes of the warp.
template <class Engine, class Sums, class Acc>
__device__ __forceinline__ void store_sums(Sums& sums, int c0, Acc (&logit)[4], Acc (&beta)[4]) {
  const int warp = Engine::col_warp();
  if constexpr (Engine::kRowLanes == 4) {  // 8 lanes share a column: each ends up with one of the 8 sums
    Acc both[8] = {logit[0], logit[1], logit[2], logit[3], beta[0], beta[1], beta[2], beta[3]};
    const Acc sum = warp_scatter_sums<4>(both);
    const int lane = static_cast<int>(threadIdx.x) % 32;  // columns c0 and c0 + 2 of the engine are 8 apart
    sums[lane / 16][warp][Engine::col(c0) + lane / 8 % 2 * 8 + lane / 4 % 2] = sum;
  } else {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int lanes = Engine::kRowLanes; lanes < 32; lanes *= 2) {  // the lanes that share a column
        logit[c] += __shfl_xor_sync(0xffffffffu, logit[c], lanes);
        beta[c] += __shfl_xor_sync(0xffffffffu, beta[c], lanes);
      }
      if (threadIdx.x % 32 < Engine::kRowLanes) {
        sums[0][warp][Engine::col(c0 + c)] = logit[c];
        sums[1][warp][Engine::col(c0 + c)] = beta[c];
      }
    }
  }
}

template <class T, class Engine>
__global__ void __launch_bounds__(256, Engine::kBackwardBlocksPerSm) match_score_gradient_kernel(GradientArgs<T> args) {
  using Acc = accumulate_t<T>;
  using Columns = Column<Acc>[2][Engine::kCols];
  using Rows = RowGradient<Acc>[Engine::kRows];
  using Sums = Acc[2][Engine::kColWarps][Engine::kCols];
  constexpr int kR = Engine::kThreadRows, kC = Engine::kThreadCols;
  CSF_DYNAMIC_SHARED(unsigned char, ring);
  CSF_SHARED(Columns, columns);
  CSF_SHARED(Rows, row_gradient);
  CSF_SHARED(Sums, sums);

  const BlockPlace place = block_place(args.row_tiles, args.splits);
  const int64_t b = place.b;
  const int chunk_row = place.row_tile * Engine::kRows, row0 = args.row_begin + chunk_row;
  const int rows = min(min(Engine::kRows, args.rows - chunk_row), args.a.count[b] - row0);
  if (std::is_same<T, Half>::value && place.row_tile == 0 && place.split == 0 && threadIdx.x == 0) {
    args.unscale[b] = range_unscale(__int_as_float(args.bound[b]));
  }
  if (rows <= 0) return;

  if (threadIdx.x < Engine::kRows) {  // published by the engine's barriers
    const int row = threadIdx.x;
    // Beyond the last row lse is +inf, so that p is 0.
    row_gradient[row] =
        row < rows ? load_row_gradient(args, b, row0 + row)
                   : RowGradient<Acc>{Acc(0), -minus_infinity<Acc>(), Acc(0), Acc(0), Acc(0), Acc(0), Acc(0), Acc(0)};
  }

  typename Engine::Strip strip;
  strip.a = args.a.features + (b * args.a.positions + row0) * args.a.padded_channels;
  strip.b = args.b.features + b * args.b.positions * args.b.padded_channels;
  strip.rows = rows;
  strip.count = args.b.count[b];
  strip.depth = static_cast<int>(args.a.padded_channels);
  split_range((strip.count + Engine::kCols - 1) / Engine::kCols, args.splits, place.split, strip.first, strip.end);

  const auto begin = [&](int tile) {
    if (threadIdx.x < Engine::kCols) {
      columns[tile % 2][threadIdx.x] = load_column(args.b, b, tile * Engine::kCols + static_cast<int>(threadIdx.x),
                                                   strip.count, args.width_b, args.height_b);
    }
  };
  const auto epilogue = [&](int tile, typename Engine::Accumulators& acc) {
    const Column<Acc>* const column = columns[tile % 2];
    const Acc beta = static_cast<const Acc*>(args.beta.data)[b * args.beta.stride[0]];
    T* const tile_out =
        args.dscore + (b * args.rows + chunk_row) * args.pitch + static_cast<int64_t>(tile) * Engine::kCols;
    // Four columns at a time against all rows: few numbers live beside the accumulators, few reads of shared memory.
#pragma unroll
    for (int c0 = 0; c0 < kC; c0 += 4) {
      Column<Acc> target[4];
      Acc sum_logit[4] = {}, sum_beta[4] = {};
#pragma unroll
      for (int c = 0; c < 4; ++c) target[c] = column[Engine::col(c0 + c)];
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        if (sizeof(T) == 2) __syncwarp();  // else ptxas reads rows far ahead, into registers that it lacks
        const int row = Engine::row(r);
        const RowGradient<Acc> g = row_gradient[row];
        Acc ds[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const Acc s = Engine::value(acc, r, c0 + c) * g.inv_norm * target[c].inv_norm;
          const Acc p = probability<T>(fma_of(beta, s, target[c].log_weight) - g.lse);
          const Acc along = fma_of(g.grad_x, target[c].x - g.x, fma_of(g.grad_y, target[c].y - g.y, g.grad_lse));
          const Acc dlogit = p * along;
          sum_logit[c] += dlogit;
          sum_beta[c] = fma_of(dlogit, s, sum_beta[c]);
          ds[c] = (sizeof(T) == 2 ? g.factor : beta) * dlogit;
          if (kFolded<T>) ds[c] *= target[c].inv_norm;
        }
        // The pitch has room for whole tiles. What lies beyond the count of targets is never read.
        store_four<T, Engine>(tile_out + row * args.pitch, c0, ds, row < rows);
      }
      if (args.columns == nullptr) continue;
      store_sums<Engine>(sums, c0, sum_logit, sum_beta);
    }
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
  };
  Engine::run(ring, strip, begin, epilogue);
}

template <class T, class Engine>
Status launch_score_gradient_with(const GradientArgs<T>& args, int64_t images, Stream stream) {
  const int64_t blocks = images * args.row_tiles * args.splits;
  if (blocks > INT32_MAX) return {"match: too many source pixels for one launch"};
  return launch(&match_score_gradient_kernel<T, Engine>, dim3(static_cast<unsigned>(blocks)), dim3(256),
                Engine::kSharedBytes, stream, args);
}

}  // namespace cosegflow::match_cuda

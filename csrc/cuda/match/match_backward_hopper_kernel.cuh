// match backward on Hopper, first half: recomputes the scores of a chunk as the forward does (match_hopper_kernel.cuh)
// and turns each into d(loss)/ds in the registers that it was accumulated in:
//   p_ij = exp(beta s_ij + log m_j - lse_i);  dlogit = p_ij (g_i . (q_j - E_i) + g_lse_i);  ds = beta dlogit
// E_i = flow_i + p_i is the expected position.
//
// Block, pipeline and shared memory are the forward's: tiles of 256 x 128, a producer, two consumers that take turns,
// so
//   that the arithmetic of one hides under the products of the other.
// Registers: 128 accumulators and six numbers for each of a thread's 4 rows.
// ds leaves as halves by 16-byte stores, a quad of lanes turning its words among them: 32 KB a tile and consumer, which
//   L2 keeps for the products that follow.
// kSums: also the sums over rows of dlogit (for the mask) and of dlogit s (for beta), one slot for each 32 rows, to
// be
//   added in order by a later kernel: no atomics, the same bits on every run.
// A score costs 2 C FLOPs of the tensor cores and about 13 instructions: 0.1 clocks of a multiprocessor, against C /
// 2048
//   of its tensor cores: bound by these instructions below C = 200.
// Fraction of the limit reached: see docs/kernels/backward.md.
#pragma once

#include "cosegflow/match.h"
#include "hopper/pipeline.cuh"
#include "hopper/score_gradient.cuh"
#include "primitives/real_math.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::match_cuda {

// Of a row (a source pixel); (gx, gy) . q_j + g is dlogit / p.
struct alignas(16) RowGradient {
  float inv_norm, k, base;  // p = 2^(k logit - base)
  float gx, gy, g;
  float unused[2];
};

// Rows [0, rows) of the chunk's images, whose arrays start at the chunk's first image.
template <class T>
struct GradientHopperArgs {
  hopper::StreamArgs<1> stream;
  const RowGradient* rows;  // (images, positions_a)
  int64_t positions_a;
  View1 beta;
  const int* bound;  // (images): bits of the largest |ds| that there may be
  T* ds;             // (images, row_room, pitch)
  int64_t row_room, pitch;
  // kSums: (images, row_room / 32, pitch) and (images, row_room / 32, pitch / 128).
  float *column_sums, *tile_sums;
};

template <class T, bool kSums>
class ScoreGradient {
 public:
  static constexpr int kR = hopper::ThreadTile::kRows;

  // of_rows: the warpgroup's first of `rows` rows.
  __device__ __forceinline__ void begin(const GradientHopperArgs<T>& args, const hopper::Strip& strip,
                                        const RowGradient* of_rows, int rows) {
    const float beta = static_cast<const float*>(args.beta.data)[strip.image * args.beta.stride[0]];
    steep_ = fabsf(beta) > 1e20f ? kSteepScale : 1.0f;  // beta / norm might overflow
    factor_ = hopper::kFolded<T> ? steep_ : beta * hopper::range_scale(__int_as_float(args.bound[strip.image]));
    natural_ = 0;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int row = hopper::ThreadTile::row(r);
      RowGradient read = {0.0f, 0.0f, HUGE_VALF, 0.0f, 0.0f, 0.0f, {}};  // p = 0
      if (row < rows) read = of_rows[row];
      slope_[r] = beta / steep_ * read.inv_norm;
      natural_ |= (read.k == 1.0f ? 1u : 0u) << r;
      base_[r] = read.base;
      const float factor = kSums ? 1.0f : factor_of(r);
      if constexpr (kSums) inv_norm_[r] = read.inv_norm;
      gx_[r] = read.gx * factor, gy_[r] = read.gy * factor, g_[r] = read.g * factor;
    }
  }

  // tile: the tile's ds in the warpgroup's row 0; the sums are those of the warp's rows.
  template <class Columns>
  __device__ __forceinline__ void write(hopper::ThreadTile::Accumulators& acc, const Columns& columns, T* tile,
                                        int64_t pitch, [[maybe_unused]] float* column_sums,
                                        [[maybe_unused]] float* tile_sum) const {
    using hopper::kPieceColumns;
    if (steep_ != 1.0f) {
#pragma unroll
      for (int i = 0; i < 64; ++i) acc[0][i] *= kSteepScale, acc[1][i] *= kSteepScale;
    }
    [[maybe_unused]] float of_row[kR] = {};
#pragma unroll
    for (int piece = 0; piece < hopper::kPieces; ++piece) {
      [[maybe_unused]] float sum[kPieceColumns] = {};
      uint32_t word[kR][4];
      __syncwarp();  // else ptxas works ahead and spills
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const hopper::ScalePair scale = hopper::scale_pair(columns.scale, piece * kPieceColumns + 2 * u);
        const hopper::PlacePair place = hopper::place_pair(columns.plane[0], piece * kPieceColumns + 2 * u);
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const float k = (natural_ >> r & 1) != 0 ? 1.0f : 1.4426950408889634f;
          float ds[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value =
                hopper::ThreadTile::value(acc, r, piece * kPieceColumns + 2 * u + e) * scale.at[e].inv_norm;
            const float logit = fma_of(value, slope_[r], scale.at[e].log_weight);
            const float p = exp2_fast(fma_of(logit, k, -base_[r]));
            ds[e] = p * fma_of(gx_[r], place.at[e].x, fma_of(gy_[r], place.at[e].y, g_[r]));
            if constexpr (kSums) {
              sum[2 * u + e] += ds[e];
              of_row[r] = fma_of(ds[e], value, of_row[r]);
              ds[e] *= factor_of(r);
            }
            if constexpr (hopper::kFolded<T>) ds[e] *= scale.at[e].inv_norm;
          }
          word[r][u] = half_pair<T>(ds[0], ds[1]);
        }
      }
#pragma unroll
      for (int r = 0; r < kR; ++r) hopper::store_piece(tile, pitch, r, piece, word[r]);
      if constexpr (kSums) {
        hopper::halve_sums(sum);
        const int i = hopper::halved_column();
        column_sums[piece * 32 + i / 2 * 8 + hopper::ThreadTile::lane() % 4 * 2 + i % 2] = sum[0];
      }
    }
    if constexpr (kSums) {
      float whole = 0.0f;
#pragma unroll
      for (int r = 0; r < kR; ++r) whole = fma_of(of_row[r], inv_norm_[r], whole);
      whole = warp_reduce_sum(whole);
      if (hopper::ThreadTile::lane() == 0) *tile_sum = whole / steep_;
    }
  }

 private:
  static constexpr float kSteepScale = 1099511627776.0f;  // 2^40: see RowSoftmax
  // ds = factor dlogit, and times inv_norm of the column where folded.
  __device__ __forceinline__ float factor_of(int r) const { return hopper::kFolded<T> ? slope_[r] * factor_ : factor_; }

  float slope_[kR], base_[kR], gx_[kR], gy_[kR], g_[kR];
  [[maybe_unused]] float inv_norm_[kR];
  float steep_, factor_;
  unsigned natural_;  // rows whose logits are so large that exponents are not in base 2: a bit each
};

template <class T, bool kSums>
__device__ __forceinline__ void consume(const GradientHopperArgs<T>& args, hopper::Shared<1>& shared,
                                        hopper::WorkLine line) {
  hopper::Consumer<T, 1> ring(shared, args.stream.slabs);
  ScoreGradient<T, kSums> gradient;
  hopper::Strip strip;
  while (line.next(strip)) {
    const int64_t first = static_cast<int64_t>(strip.row_tile) * hopper::kRows + ring.number() * hopper::kWarpgroupRows;
    const int rows = strip.rows - ring.number() * hopper::kWarpgroupRows;
    ring.begin_strip();
    if (rows <= 0) {
      for (int tile = strip.first; tile < strip.end; ++tile) {
        ring.skip();
        ring.end_tile();
      }
      continue;
    }
    const RowGradient* const of_rows = args.rows + strip.image * args.positions_a + args.stream.first_row + first;
    gradient.begin(args, strip, of_rows, rows);
    const int64_t at = strip.image * args.row_room + first, slot = at / 32 + threadIdx.x % 128 / 32;
    for (int tile = strip.first; tile < strip.end; ++tile) {
      hopper::ThreadTile::Accumulators acc;
      ring.multiply(acc);
      gradient.write(acc, ring.columns(), args.ds + at * args.pitch + tile * hopper::kCols, args.pitch,
                     args.column_sums + slot * args.pitch + tile * hopper::kCols,
                     args.tile_sums + slot * (args.pitch / hopper::kCols) + tile);
      ring.end_tile();
    }
  }
}

template <class T, bool kSums>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    match_backward_hopper_kernel(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                                 const __grid_constant__ GradientHopperArgs<T> args) {
#if defined(CSF_HOPPER_CODE)
  CSF_HOPPER_SHARED(hopper::Shared<1>, shared);
  hopper::start(*shared, map_a, map_b);
  const hopper::WorkLine line(args.stream);
  if (threadIdx.x < 128) {
    give_registers<hopper::kProducerRegisters>();
    if (threadIdx.x < 32 && elect_one()) hopper::produce(args.stream, map_a, map_b, *shared, line);
  } else {
    take_registers<hopper::kConsumerRegisters>();
    consume<T, kSums>(args, *shared, line);
  }
#else
  __trap();  // the host takes this kernel only where there is code for sm_90a
#endif
}

}  // namespace cosegflow::match_cuda

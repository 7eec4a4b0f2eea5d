// match backward on Hopper, first half: recomputes the scores of a chunk as the forward does (match_hopper_kernel.cuh)
// and turns each into d(loss)/ds in the registers that it was accumulated in:
//   p_ij = exp(beta s_ij + log m_j - lse_i);  dlogit = p_ij (g_i . (q_j - E_i) + g_lse_i);  ds = beta dlogit
// E_i = flow_i + p_i is the expected position.
//
// Block, pipeline and shared memory are the forward's: tiles of 256 x 128, a producer, two consumers that take turns:
//   the arithmetic of one hides under the products of the other.
// Registers: 128 accumulators and five numbers for each of a thread's 4 rows, of 232. With kSums up to 48 bytes of what
//   a strip needs lie on the stack; the loop over tiles writes nothing there and reads two words a tile at most.
// ds leaves as halves by 16-byte stores, a quad of lanes turning its words among them: 32 KB a tile and consumer, which
//   L2 keeps for the products that follow.
// kSums: also, of each 32 rows of a tile, the column sums of dlogit (for the mask) and the sum of dlogit s (for beta),
//   to be added in order by later kernels: no atomics, the same bits on every run.
// A score costs 2 C FLOPs of the tensor cores and 12 to 13 instructions (17 with kSums): 0.1 clocks of a
//   multiprocessor, against C / 2048 of its tensor cores: bound by instructions below C = 200.
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
    const float range = hopper::kFolded<T> ? 1.0f : hopper::range_scale(__int_as_float(args.bound[strip.image]));
    steep_ = !kSums && fabsf(beta) > 1e20f;  // beta / norm might overflow
    beta_ = beta, range_ = range;
    natural_ = 0;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int row = hopper::ThreadTile::row(r);
      RowGradient read = {0.0f, 0.0f, HUGE_VALF, 0.0f, 0.0f, 0.0f, {}};  // p = 0
      if (row < rows) read = of_rows[row];
      slope_[r] = kSums ? read.inv_norm : (steep_ ? beta / kSteepScale : beta) * read.inv_norm;
      natural_ |= (read.k == 1.0f ? 1u : 0u) << r;
      base_[r] = read.base;
      const float factor = kSums ? 1.0f : (hopper::kFolded<T> ? beta * read.inv_norm : beta * range);
      gx_[r] = held(read.gx * factor), gy_[r] = held(read.gy * factor), g_[r] = held(read.g * factor);
    }
  }

  // at: the warpgroup's first row in ds, counted through the images.
  template <class Columns>
  __device__ __forceinline__ void write(hopper::ThreadTile::Accumulators& acc, const Columns& columns,
                                        const GradientHopperArgs<T>& args, unsigned at, int tile) const {
    using hopper::kPieceColumns;
    T* const ds_of_tile = args.ds + at * args.pitch + tile * hopper::kCols;
    [[maybe_unused]] const int64_t slot = at / 32 + threadIdx.x % 128 / 32;
    if (steep_) {
#pragma unroll
      for (int i = 0; i < 64; ++i) acc[0][i] *= kSteepScale, acc[1][i] *= kSteepScale;
    }
    [[maybe_unused]] float whole = 0.0f;
#pragma unroll
    for (int piece = 0; piece < hopper::kPieces; ++piece) {
      uint32_t word[kR][4];
      __syncwarp();  // else ptxas works ahead and spills
      [[maybe_unused]] float sum[kPieceColumns] = {};
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
            [[maybe_unused]] const float score =
                value * slope_[r];  // kSums: slope is 1 / norm, for the sum of dlogit s
            const float logit =
                kSums ? fma_of(score, beta_, scale.at[e].log_weight) : fma_of(value, slope_[r], scale.at[e].log_weight);
            const float p = exp2_fast(fma_of(logit, k, -base_[r]));
            ds[e] = p * fma_of(gx_[r], place.at[e].x, fma_of(gy_[r], place.at[e].y, g_[r]));
            if constexpr (kSums) {
              sum[2 * u + e] += ds[e];
              whole = fma_of(ds[e], score, whole);
              ds[e] *= held(beta_ * (hopper::kFolded<T> ? slope_[r] : range_));
            }
            if constexpr (hopper::kFolded<T>) ds[e] *= scale.at[e].inv_norm;
          }
          word[r][u] = half_pair<T>(ds[0], ds[1]);
        }
      }
#pragma unroll
      for (int r = 0; r < kR; ++r) hopper::store_piece(ds_of_tile, args.pitch, r, piece, word[r]);
      if constexpr (kSums) {
        hopper::halve_sums(sum);
        const int i = hopper::halved_column();
        const int column = piece * 32 + i / 2 * 8 + hopper::ThreadTile::lane() % 4 * 2 + i % 2;
        args.column_sums[slot * args.pitch + tile * hopper::kCols + column] = sum[0];
      }
    }
    if constexpr (kSums) {
      whole = warp_reduce_sum(whole);
      if (hopper::ThreadTile::lane() == 0) args.tile_sums[slot * (args.pitch / hopper::kCols) + tile] = whole;
    }
  }

 private:
  static constexpr float kSteepScale = 1099511627776.0f;  // 2^40: see RowSoftmax
  // What multiplies a p that may be 0, and a coordinate, stays finite; a NaN stays one.
  static __device__ __forceinline__ float held(float v) { return fabsf(v) > 1e30f ? copysignf(1e30f, v) : v; }
  float slope_[kR], base_[kR], gx_[kR], gy_[kR], g_[kR];
  [[maybe_unused]] float beta_, range_;
  bool steep_;
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
    const unsigned at = static_cast<unsigned>(strip.image * args.row_room + first);  // rows of ds fit 32 bits
    for (int tile = strip.first; tile < strip.end; ++tile) {
      hopper::ThreadTile::Accumulators acc;
      ring.multiply(acc);
      gradient.write(acc, ring.columns(), args, at, tile);
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

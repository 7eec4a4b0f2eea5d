// match_both backward on Hopper, first half: recomputes the scores of a chunk as the forward does and turns each into
// d(loss)/ds of both directions in the registers that it was accumulated in:
//   a's softmax, over j:  p_ij = exp(beta s_ij + log m_j - lse_i),   d_ij = p_ij (g_i . (q_j - E_i) + h_i)
//   b's softmax, over i:  p'_ij = exp(beta s_ij + log m_i - lse_j),  d'_ij = p'_ij (g_j . (q_i - E_j) + h_j)
//   ds_ij = beta (d_ij + d'_ij)
// g, h are the incoming gradients of flow and lse, E the expected positions.
//
// Block and pipeline are those of hopper/gradient_loop.cuh: tiles of 256 x 128, a producer, two consumers that take
//   turns. What a column has as a source of b comes as planes of pairs, beside its place as a target of a.
// Registers: 128 accumulators and eight numbers for each of a thread's 4 rows, of 232. With kSums some of a strip's
//   numbers lie on the stack; the loop over tiles writes nothing there and reads 9 words a tile at most.
// Shared memory: the ring, and 32 bytes for each column of 4 tiles.
// ds leaves as halves by 16-byte stores, a quad of lanes turning its words among them.
// kSums: also, of each 32 rows of a tile, the column sums of d (for mask_b), of each tile the row sums of d' (for
// mask_a),
//   and of 32 rows of a tile the sum of (d + d') s (for beta), to be added in order by later kernels: no atomics, the
//   same bits on every run.
// A score costs 2 C FLOPs of the tensor cores, two exponentials and 20 to 21 instructions (26 to 27 with kSums): 0.16
//   clocks of a multiprocessor, against C / 2048 of its tensor cores.
// Fraction of the limit reached: not measured yet.
#pragma once

#include "hopper/column_halving.cuh"
#include "hopper/gradient_loop.cuh"
#include "hopper/score_gradient.cuh"
#include "primitives/real_math.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::match_both_cuda {

// Of a pixel: (gx, gy) . q + g is d / p as a source; its place and weight as a target.
struct alignas(16) SourcePixel {
  float inv_norm, lse;
  float gx, gy, g;
  float x, y, log_weight;
};

// What a column has: its place as a target of a; as a source its log-sum-exp and g, and gx and gy.
enum Plane : int { kPlace, kSource, kFlow, kPlanes };

// Rows of the chunk's images, whose arrays start at the chunk's first image.
template <class T>
struct GradientHopperArgs {
  hopper::StreamArgs<kPlanes> stream;
  const SourcePixel* rows;  // (images, positions_a)
  int64_t positions_a;
  View1 beta;
  const int* bound;  // (images): bits of the largest |ds| that there may be
  T* ds;             // (images, row_room, pitch)
  int64_t row_room, pitch;
  // kSums: (images, row_room / 32, pitch), (images, row_room / 32, pitch / 128) and (images, pitch / 128, row_room).
  float *column_sums, *tile_sums, *row_sums;
};

template <class T, bool kSums>
class ScoreGradient {
  using ThreadTile = hopper::ThreadTile;
  static constexpr int kR = ThreadTile::kRows;

 public:
  using Args = GradientHopperArgs<T>;

  __device__ __forceinline__ void begin(const Args& args, int image, int row0, int rows) {
    const float beta = static_cast<const float*>(args.beta.data)[image * args.beta.stride[0]];
    steep_ = !kSums && fabsf(beta) > 1e20f;  // beta / norm might overflow
    beta_ = beta;
    factor_ = steep_ ? kSteepScale : 1.0f;
    if (!kFolded<T>) factor_ = beta * range_scale(__int_as_float(args.bound[image]));
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int row = ThreadTile::row(r);
      SourcePixel read = {0.0f, HUGE_VALF, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, minus_infinity<float>()};  // p = 0
      if (row < rows) read = args.rows[image * args.positions_a + row0 + row];
      slope_[r] = kSums ? read.inv_norm : (steep_ ? beta / kSteepScale : beta) * read.inv_norm;
      lse_[r] = read.lse;
      gx_[r] = read.gx, gy_[r] = read.gy, g_[r] = read.g;
      place_[r] = {read.x, read.y}, log_weight_[r] = read.log_weight;
    }
    if constexpr (kSums) {
      const unsigned tiles = static_cast<unsigned>(args.pitch / hopper::kCols);
      row_sums_at_ = image * tiles * static_cast<unsigned>(args.row_room) + (row0 - args.stream.first_row);
    }
  }

  template <class Columns>
  __device__ __forceinline__ void write(ThreadTile::Accumulators& acc, const Columns& columns, const Args& args,
                                        unsigned at, int tile) const {
    using hopper::kPieceColumns;
    T* const ds_of_tile = args.ds + at * args.pitch + tile * hopper::kCols;
    [[maybe_unused]] const int64_t slot = at / 32 + threadIdx.x % 128 / 32;
    if (steep_) {
#pragma unroll
      for (int i = 0; i < 64; ++i) acc[0][i] *= kSteepScale, acc[1][i] *= kSteepScale;
    }
    [[maybe_unused]] float whole = 0.0f, of_row[kR] = {};
#pragma unroll
    for (int piece = 0; piece < hopper::kPieces; ++piece) {
      uint32_t word[kR][4];
      __syncwarp();  // else ptxas works ahead and spills
      [[maybe_unused]] hopper::ColumnHalving sums;
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        hold(tile);
        const int c = piece * kPieceColumns + 2 * u;
        const hopper::ScalePair scale = hopper::scale_pair(columns.scale, c);
        const hopper::PlacePair place = hopper::place_pair(columns.plane[kPlace], c);
        const hopper::PlacePair source = hopper::place_pair(columns.plane[kSource], c);
        const hopper::PlacePair flow = hopper::place_pair(columns.plane[kFlow], c);
        [[maybe_unused]] float of_column[2] = {};
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          if (kSums && r == 2) hold(tile);
          float ds[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value = ThreadTile::value(acc, r, c + e) * scale.at[e].inv_norm;
            const float score = kSums ? value * slope_[r] : value;  // kSums: slope is 1 / norm
            const float slope = kSums ? beta_ : slope_[r];
            const float logit = fma_of(score, slope, scale.at[e].log_weight);
            const float other = fma_of(score, slope, log_weight_[r]);
            const float along = fma_of(gx_[r], place.at[e].x, fma_of(gy_[r], place.at[e].y, g_[r]));
            const float back = fma_of(flow.at[e].x, place_[r].x, fma_of(flow.at[e].y, place_[r].y, source.at[e].y));
            const float from_a = probability(logit - lse_[r]) * along;
            const float from_b = probability(other - source.at[e].x) * back;
            ds[e] = from_a + from_b;
            if constexpr (kSums) {
              of_column[e] += from_a;
              of_row[r] += from_b;
              whole = fma_of(ds[e], score, whole);
            }
            ds[e] *= kFolded<T> ? slope_[r] : factor_;
            if constexpr (kFolded<T>) ds[e] *= kSums ? scale.at[e].inv_norm : scale.at[e].inv_norm * factor_;
            if constexpr (kFolded<T> && kSums) ds[e] *= beta_;  // last: beta / norm might overflow
          }
          word[r][u] = half_pair<T>(ds[0], ds[1]);
        }
        if constexpr (kSums) sums.add(u, of_column[0], of_column[1]);
      }
      hold(tile);
#pragma unroll
      for (int r = 0; r < kR; ++r) hopper::store_piece(ds_of_tile, args.pitch, r, piece, word[r]);
      if constexpr (kSums) {
        args.column_sums[slot * args.pitch + tile * hopper::kCols + hopper::ColumnHalving::column(piece)] = sums.sum();
      }
    }
    if constexpr (kSums) {
      whole = warp_reduce_sum(whole);
      if (ThreadTile::lane() == 0) args.tile_sums[slot * (args.pitch / hopper::kCols) + tile] = whole;
      float own = 0.0f;
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        const float all = warp_reduce_sum<ThreadTile::kRowLanes>(of_row[r]);
        if (ThreadTile::own() == r) own = all;
      }
      args.row_sums[row_sums_at_ + static_cast<unsigned>(tile) * static_cast<unsigned>(args.row_room) +
                    ThreadTile::own_row()] = own;
    }
  }

 private:
  // The difference first, and exactly where logits are large: no p is above 1 by the rounding of a huge one.
  static __device__ __forceinline__ float probability(float log) { return exp2_fast(log * 1.4426950408889634f); }

  // A branch that no tile takes keeps ptxas from working ahead, into registers that it lacks.
  static __device__ __forceinline__ void hold([[maybe_unused]] int tile) {
#if !defined(COSEGFLOW_HOSTSIM)
    if (__any_sync(0xffffffffu, tile < 0)) __trap();
#endif
  }

  static constexpr float kSteepScale = 1099511627776.0f;  // 2^40: see RowSoftmax
  float slope_[kR], lse_[kR], gx_[kR], gy_[kR], g_[kR], log_weight_[kR];
  Place place_[kR];
  [[maybe_unused]] float beta_, factor_;  // the latter: what slope_ lacks of the factor of ds
  [[maybe_unused]] unsigned row_sums_at_;
  bool steep_;
};

template <class T, bool kSums>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    match_both_backward_hopper_kernel(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                                      const __grid_constant__ GradientHopperArgs<T> args) {
#if defined(CSF_HOPPER_CODE)
  CSF_HOPPER_SHARED(hopper::GradientShared<kPlanes>, shared);
  hopper::gradient_block<T, ScoreGradient<T, kSums>>(args, map_a, map_b, *shared);
#else
  __trap();  // the host takes this kernel only where there is code for sm_90a
#endif
}

}  // namespace cosegflow::match_both_cuda

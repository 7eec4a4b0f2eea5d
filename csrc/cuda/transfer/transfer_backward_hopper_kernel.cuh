// transfer backward on Hopper, first half: recomputes the scores of a chunk as the forward does and turns each into
// d(loss)/ds in the registers that it was accumulated in:
//   p_ij = exp(beta s_ij + log m_j - lse_i);  dlogit = p_ij (<g_i, values_j> - <g_i, out_i>);  ds = beta dlogit
// What the values get comes from the forward's kernel (transfer_hopper_kernel.cuh).
//
// Block, pipeline and shared memory are the forward's (transfer_hopper_kernel.cuh): tiles of 256 x 128, a producer, two
//   consumers that take turns, up to 8 values a launch as planes of pairs. More values take more launches, each of
//   which adds its part of ds to what is there: ds is rounded once for each 8 values.
// Registers: 128 accumulators and, for each of a thread's 4 rows, 3 numbers and its incoming gradients, of 232. With
//   kSums, up to 4 values, some of a strip's numbers lie on the stack; the loop over tiles writes nothing there and
//   reads two words a tile at most.
// ds leaves as halves by 16-byte stores, a quad of lanes turning its words among them.
// kSums: also, of each 32 rows of a tile, the column sums of dlogit (for the mask) and the sum of dlogit s (for beta),
//   to be added in order by later kernels: no atomics, the same bits on every run.
// A score costs 2 C FLOPs of the tensor cores and, for 2, 4 or 8 values, 11, 13 or 18 instructions (SASS; one less for
//   float16; with kSums 17 or 19): 0.09 to 0.14 clocks of a multiprocessor, against C / 2048 of its tensor cores.
// Fraction of the limit reached: not measured yet.
#pragma once

#include "hopper/column_halving.cuh"
#include "hopper/gradient_loop.cuh"
#include "hopper/score_gradient.cuh"
#include "primitives/real_math.cuh"
#include "primitives/warp_reduce.cuh"
#include "transfer/transfer_hopper_kernel.cuh"

namespace cosegflow::transfer_cuda {

// Planes of values that a launch may take: with sums there are no registers for more.
constexpr int most_planes(bool sums) { return sums ? kMostPlanes / 2 : kMostPlanes; }

// Of a row (a source pixel): p = 2^(k logit - base), and <g_i, out_i> of a launch's values.
struct alignas(16) RowGradient {
  float inv_norm, k, base, delta;
};

// Rows of the chunk's images, whose arrays start at the chunk's first image.
template <class T, int kPlanes>
struct GradientHopperArgs {
  hopper::StreamArgs<kPlanes> stream;
  const RowGradient* rows;         // (images, positions_a)
  const Place* incoming[kPlanes];  // (images, pitch_a): pairs of g_i, compact; null: 0
  int64_t positions_a, pitch_a;
  View1 beta;
  const int* bound;  // (images): bits of the largest |ds| that there may be
  T* ds;             // (images, row_room, pitch)
  int64_t row_room, pitch;
  bool accumulate;  // ds is added to what is there
  // kSums: (images, row_room / 32, pitch) and (images, row_room / 32, pitch / 128).
  float *column_sums, *tile_sums;
};

// Two pairs of halves, added.
template <class T>
__device__ __forceinline__ uint32_t add_halves(uint32_t a, uint32_t b) {
  const auto low = [](uint32_t pair) { return to_float(T{static_cast<uint16_t>(pair & 0xffffu)}); };
  const auto high = [](uint32_t pair) { return to_float(T{static_cast<uint16_t>(pair >> 16)}); };
  return half_pair<T>(low(a) + low(b), high(a) + high(b));
}

template <class T, int kPlanes, bool kSums>
class ScoreGradient {
  using ThreadTile = hopper::ThreadTile;

 public:
  using Args = GradientHopperArgs<T, kPlanes>;
  static constexpr int kR = ThreadTile::kRows;
  static constexpr bool kAccumulate = kPlanes == most_planes(kSums);

  __device__ __forceinline__ void begin(const Args& args, int image, int row0, int rows) {
    const float beta = static_cast<const float*>(args.beta.data)[image * args.beta.stride[0]];
    steep_ = !kSums && fabsf(beta) > 1e20f;  // beta / norm might overflow
    beta_ = beta;
    factor_ = kFolded<T> ? fminf(fmaxf(beta, -1e26f), 1e26f) : beta * range_scale(__int_as_float(args.bound[image]));
    natural_ = 0;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const int row = row0 + ThreadTile::row(r);
      const bool live = ThreadTile::row(r) < rows;
      RowGradient read = {0.0f, 0.0f, HUGE_VALF, 0.0f};  // p = 0
      if (live) read = args.rows[image * args.positions_a + row];
      slope_[r] = kSums ? read.inv_norm : (steep_ ? beta / kSteepScale : beta) * read.inv_norm;
      natural_ |= (read.k == 1.0f ? 1u : 0u) << r;
      base_[r] = read.base;
      const float factor = kSums ? 1.0f : (kFolded<T> ? factor_ * read.inv_norm : factor_);
      delta_[r] = held(read.delta * factor);
#pragma unroll
      for (int v = 0; v < kPlanes; ++v) {
        Place g = {0.0f, 0.0f};
        if (live && args.incoming[v] != nullptr) g = args.incoming[v][image * args.pitch_a + row];
        g_[v][r] = {held(g.x * factor), held(g.y * factor)};
      }
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
    [[maybe_unused]] float whole = 0.0f;
#pragma unroll
    for (int piece = 0; piece < hopper::kPieces; ++piece) {
      uint32_t word[kR][4];
      __syncwarp();  // else ptxas works ahead and spills
      [[maybe_unused]] hopper::ColumnHalving sums;
#pragma unroll
      for (int u = 0; u < 4; ++u) {
        const int c = piece * kPieceColumns + 2 * u;
        const hopper::ScalePair scale = hopper::scale_pair(columns.scale, c);
        float along[kR][2];
        [[maybe_unused]] float of_column[2] = {};
#pragma unroll
        for (int r = 0; r < kR; ++r) along[r][0] = along[r][1] = -delta_[r];
#pragma unroll
        for (int v = 0; v < kPlanes; ++v) {
          const hopper::PlacePair value = hopper::place_pair(columns.plane[v], c);
#pragma unroll
          for (int r = 0; r < kR; ++r) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              along[r][e] = fma_of(g_[v][r].x, value.at[e].x, fma_of(g_[v][r].y, value.at[e].y, along[r][e]));
            }
          }
        }
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const float k = (natural_ >> r & 1) != 0 ? 1.0f : 1.4426950408889634f;
          float ds[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float value = ThreadTile::value(acc, r, c + e) * scale.at[e].inv_norm;
            [[maybe_unused]] const float score = value * slope_[r];  // kSums: slope is 1 / norm
            const float logit =
                kSums ? fma_of(score, beta_, scale.at[e].log_weight) : fma_of(value, slope_[r], scale.at[e].log_weight);
            ds[e] = exp2_fast(fma_of(logit, k, -base_[r])) * along[r][e];
            if constexpr (kSums) {
              of_column[e] += ds[e];
              whole = fma_of(ds[e], score, whole);
              ds[e] *= kFolded<T> ? factor_ * slope_[r] : factor_;
            }
            if constexpr (kFolded<T>) ds[e] *= scale.at[e].inv_norm;
          }
          word[r][u] = half_pair<T>(ds[0], ds[1]);
        }
        if constexpr (kSums) sums.add(u, of_column[0], of_column[1]);
      }
#pragma unroll
      for (int r = 0; r < kR; ++r) store(ds_of_tile, args, r, piece, word[r]);
      if constexpr (kSums) {
        args.column_sums[slot * args.pitch + tile * hopper::kCols + hopper::ColumnHalving::column(piece)] = sums.sum();
      }
    }
    if constexpr (kSums) {
      whole = warp_reduce_sum(whole);
      if (ThreadTile::lane() == 0) args.tile_sums[slot * (args.pitch / hopper::kCols) + tile] = whole;
    }
  }

 private:
  // What multiplies a p that may be 0, or a value, stays finite; a NaN stays one.
  static __device__ __forceinline__ float held(float v) { return fabsf(v) > 1e30f ? copysignf(1e30f, v) : v; }

  __device__ __forceinline__ void store(T* tile, const Args& args, int r, int piece, uint32_t (&word)[4]) const {
    hopper::transpose_in_quad(word);
    uint4* const to =
        reinterpret_cast<uint4*>(tile + ThreadTile::row(r) * args.pitch + piece * 32 + ThreadTile::lane() % 4 * 8);
    uint4 all = {word[0], word[1], word[2], word[3]};
    if (kAccumulate && args.accumulate) {
      const uint4 before = *to;
      all.x = add_halves<T>(all.x, before.x), all.y = add_halves<T>(all.y, before.y);
      all.z = add_halves<T>(all.z, before.z), all.w = add_halves<T>(all.w, before.w);
    }
    *to = all;
  }

  static constexpr float kSteepScale = 1099511627776.0f;  // 2^40: see RowSoftmax
  float slope_[kR], base_[kR], delta_[kR];
  Place g_[kPlanes][kR];
  [[maybe_unused]] float beta_, factor_;
  bool steep_;
  unsigned natural_;  // rows whose logits are so large that exponents are not in base 2: a bit each
};

template <class T, int kPlanes, bool kSums>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    transfer_backward_hopper_kernel(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                                    const __grid_constant__ GradientHopperArgs<T, kPlanes> args) {
#if defined(CSF_HOPPER_CODE)
  CSF_HOPPER_SHARED(hopper::GradientShared<kPlanes>, shared);
  hopper::gradient_block<T, ScoreGradient<T, kPlanes, kSums>>(args, map_a, map_b, *shared);
#else
  __trap();  // the host takes this kernel only where there is code for sm_90a
#endif
}

}  // namespace cosegflow::transfer_cuda

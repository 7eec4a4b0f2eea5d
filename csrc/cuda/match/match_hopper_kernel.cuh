// match forward on Hopper: tensor-core products of a warp-specialised pipeline, each tile reduced by an online softmax
// in the registers that it was accumulated in.
//
// Block: a run of tiles of 256 rows (pixels of a) x 128 columns (pixels of b), see hopper/work_line.cuh; a producer
// warp
//   and two consumer warpgroups of 128 rows each, see hopper/pipeline.cuh.
// Registers: a consumer thread holds 4 rows x 32 columns of a tile, 128 accumulators, and for each of its rows (peak,
//   total, x, y) over its own columns; the 4 lanes that share a row merge once a strip. 232 registers.
// Shared memory: a ring of 4 stages (192 KB; hopper/tile_shape.cuh), the numbers of the columns of 4 tiles.
// Pipeline: TMA runs up to 4 slabs ahead, across tiles and strips; the softmax of one consumer runs under the products
//   of the other.
// A score costs 2 C FLOPs of the tensor cores (C / 2048 clocks of a multiprocessor) and, in the softmax, 8 instructions
//   (scale, logit, maximum; then exponent, exponential, total, x, y) and half a load of shared memory for 4: 0.066
//   clocks, of which the special-function unit is busy 0.0625. They overlap: bound by the softmax for C < 136, by the
//   tensor cores above. An exponential by polynomial would relieve a unit that is hardly the bottleneck at the price of
//   ten instructions, which are: not done (docs/kernels/match.md has the model).
// Fraction of the limit reached: not measured yet.
// A row tile that blocks share leaves a state for each fragment; who comes last merges them, in the order of columns.
#pragma once

#include "cosegflow/match.h"
#include "hopper/pipeline.cuh"
#include "kernel_window.cuh"
#include "match/match_outputs.cuh"
#include "primitives/most_probable.cuh"
#include "primitives/value_softmax.cuh"

namespace cosegflow::match_cuda {

// What a kernel adds to the plain soft argmax: the most probable target, or a window around it.
enum class Variant { kPlain, kIndexed, kWindowed };

using RowState = ValueSoftmax<2>;

struct HopperArgs {
  hopper::StreamArgs<1> stream;
  int64_t positions_a;  // rows that an image has room for
  int64_t pitch_a;
  const Scale* scale_a;  // (B, pitch_a)
  const int* index_a;    // (B, Na)
  View1 beta;
  int row_tiles;      // of a dense image
  int* counters;      // (B, row_tiles, 2): warpgroups of fragments that have finished
  RowState* partial;  // (fragments, B, Na)
  int* best;          // (fragments, B, Na): most probable compact target; kIndexed
  float window_rate;  // log2(e) / (2 sigma^2), finite; kWindowed
  Outputs out;
};

// The rows of a thread: row r of 4 is row 64 (r / 2) + 8 (r % 2) + ... of its warpgroup; value(acc, r, c) its column
// 8 (c / 2) + 2 (lane % 4) + c % 2.
struct ThreadTile {
  static constexpr int kRows = 4, kColumns = 32;
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ int row(int r) {
    return r / 2 * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + r % 2 * 8 + lane() / 4;
  }
  static __device__ __forceinline__ int column(int c) { return c / 2 * 8 + lane() % 4 * 2 + c % 2; }
  static __device__ __forceinline__ float& value(float (&acc)[2][64], int r, int c) {
    return acc[r / 2][c / 2 * 4 + r % 2 * 2 + c % 2];
  }
  // The row that a thread finishes: of the 4 rows that 4 lanes share, each lane takes one.
  static __device__ __forceinline__ int own() { return lane() % 4; }
};

// Two neighbouring columns at once: 16 bytes.
struct alignas(16) ScalePair {
  Scale at[2];
};
struct alignas(16) PlacePair {
  Place at[2];
};

template <class T, Variant kVariant>
class MatchConsumer {
 public:
  using Consumer = hopper::Consumer<T, 1>;
  static constexpr int kR = ThreadTile::kRows, kC = ThreadTile::kColumns;

  __device__ __forceinline__ MatchConsumer(const HopperArgs& args, hopper::Shared<1>& shared)
      : args_(args), shared_(shared), ring_(shared, args.stream.slabs) {}

  __device__ __forceinline__ void run(hopper::WorkLine line) {
    hopper::Strip strip;
    while (line.next(strip)) {
      rows_ = strip.rows - ring_.number() * hopper::kWarpgroupRows;
      ring_.begin_strip();
      if (rows_ <= 0) {
        for (int tile = strip.first; tile < strip.end; ++tile) {
          ring_.skip();
          ring_.end_tile();
        }
        continue;
      }
      begin(strip);
      for (int tile = strip.first; tile < strip.end; ++tile) {
        float acc[2][64];
        ring_.multiply(acc);
        add(acc, tile);
        ring_.end_tile();
      }
      end(strip);
    }
  }

 private:
  __device__ __forceinline__ int64_t first_row(const hopper::Strip& strip) const {
    return static_cast<int64_t>(strip.row_tile) * hopper::kRows + ring_.number() * hopper::kWarpgroupRows;
  }

  __device__ __forceinline__ void begin(const hopper::Strip& strip) {
    const float beta = static_cast<const float*>(args_.beta.data)[strip.image * args_.beta.stride[0]];
    steep_ = fabsf(beta) > 1e20f;  // beta / norm might overflow
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      state_[r].clear();
      if constexpr (kVariant == Variant::kIndexed) best_[r] = -1;
      const int row = ThreadTile::row(r);
      const int64_t at = first_row(strip) + row;
      inv_norm_[r] = row < rows_ ? args_.scale_a[strip.image * args_.pitch_a + at].inv_norm : 0.0f;
      slope_[r] = steep_ || kVariant == Variant::kWindowed ? beta : beta * inv_norm_[r];
      if constexpr (kVariant == Variant::kWindowed) {
        centre_x_[r] = centre_y_[r] = 0.0f;
        if (row >= rows_) continue;
        const int pixel = args_.index_a[strip.image * args_.positions_a + at];
        const int target = static_cast<int>(max(args_.out.index[strip.image * args_.out.positions + pixel],
                                                static_cast<int64_t>(0)));  // -1, of a row of NaN, which stays one
        centre_x_[r] = static_cast<float>(target % args_.out.width_b) - static_cast<float>(args_.out.width_b - 1) / 2;
        centre_y_[r] = static_cast<float>(target / args_.out.width_b) - static_cast<float>(args_.out.height_b - 1) / 2;
      }
    }
  }

  // The score that counts: with a window, k max(s, 0), a NaN staying one.
  __device__ __forceinline__ float windowed(float score, int r, const Place& place) const {
    const float dx = place.x - centre_x_[r], dy = place.y - centre_y_[r];
    const float k = exp2_fast(-args_.window_rate * fma_of(dx, dx, dy * dy));
    return KernelWindow<float>::value(score, k);
  }

  __device__ __forceinline__ void add(float (&acc)[2][64], int tile) {
    const auto& columns = ring_.columns();
    const ScalePair* const scale = reinterpret_cast<const ScalePair*>(columns.scale) + ThreadTile::lane() % 4;
    const PlacePair* const place = reinterpret_cast<const PlacePair*>(columns.plane[0]) + ThreadTile::lane() % 4;
    if (steep_ || kVariant == Variant::kWindowed) {
      // slope has no norm in it: rare, and not worth an instruction for each score of every call. With a window the
      // norm has to be within, because max(s, 0) is.
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int c = 0; c < kC; ++c) ThreadTile::value(acc, r, c) *= inv_norm_[r];
      }
    }
    float peak[kR];
#pragma unroll
    for (int r = 0; r < kR; ++r) peak[r] = state_[r].peak;
#pragma unroll
    for (int c = 0; c < kC; c += 2) {
      const ScalePair s = scale[c * 2];
      [[maybe_unused]] PlacePair p;
      if constexpr (kVariant == Variant::kWindowed) p = place[c * 2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          float& value = ThreadTile::value(acc, r, c + e);
          value *= s.at[e].inv_norm;
          if constexpr (kVariant == Variant::kWindowed) value = windowed(value, r, p.at[e]);
          value = fma_of(value, slope_[kVariant == Variant::kWindowed ? 0 : r], s.at[e].log_weight);
          peak[r] = max_of(peak[r], value);
        }
      }
      if constexpr (kVariant == Variant::kWindowed) __syncwarp();  // else ptxas works ahead and spills
    }
    if constexpr (kVariant == Variant::kIndexed) {  // rare: a row has a new peak in about one of k tiles at the k-th
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        if (!(peak[r] > state_[r].peak)) continue;
        int at = kC - 1;
#pragma unroll
        for (int c = kC - 2; c >= 0; --c) at = ThreadTile::value(acc, r, c) == peak[r] ? c : at;
        best_[r] = tile * kC + at;
      }
    }
    ExponentBase base[kR];
#pragma unroll
    for (int r = 0; r < kR; ++r) base[r] = state_[r].raise(peak[r]);
#pragma unroll
    for (int c = 0; c < kC; c += 2) {
      const PlacePair p = place[c * 2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const float term = base[r].term(ThreadTile::value(acc, r, c + e));
          state_[r].total += term;
          state_[r].value[0] = fma_of(term, p.at[e].x, state_[r].value[0]);
          state_[r].value[1] = fma_of(term, p.at[e].y, state_[r].value[1]);
        }
      }
    }
  }

  __device__ __forceinline__ void end(const hopper::Strip& strip) {
    RowState mine;
    MostProbable<float, int> best{minus_infinity<float>(), 0.0f, -1};
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      if constexpr (kVariant == Variant::kIndexed) {
        const int at = best_[r];
        MostProbable<float, int> candidate{state_[r].peak, 0.0f,
                                           at < 0 ? -1 : at / kC * hopper::kCols + ThreadTile::column(at % kC)};
        candidate.template merge_lanes<4>();
        if (ThreadTile::own() == r) best = candidate;
      }
      state_[r].template merge_lanes<4>();
      if (ThreadTile::own() == r) mine = state_[r];
    }
    const int row = ThreadTile::row(ThreadTile::own());
    const int64_t plane = static_cast<int64_t>(args_.stream.images) * args_.positions_a;
    const int64_t at = strip.image * args_.positions_a + first_row(strip) + row;
    if (strip.fragments > 1) {
      if (row < rows_) {
        args_.partial[strip.fragment * plane + at] = mine;
        if constexpr (kVariant == Variant::kIndexed) args_.best[strip.fragment * plane + at] = best.index;
      }
      if (!last_of(strip)) return;
      if (row < rows_) {
        mine = load(args_.partial + at);
        if constexpr (kVariant == Variant::kIndexed) best = {mine.peak, 0.0f, __ldcg(args_.best + at)};
        for (int f = 1; f < strip.fragments; ++f) {
          const RowState other = load(args_.partial + f * plane + at);
          if constexpr (kVariant == Variant::kIndexed) {
            best.merge({other.peak, 0.0f, __ldcg(args_.best + f * plane + at)});
          }
          mine.merge(other);
        }
      }
    }
    if (row >= rows_) return;
    if constexpr (kVariant == Variant::kIndexed) args_.best[at] = best.index;
    write_state(args_.out, strip.image, args_.index_a[at], mine, mine.mean(0), mine.mean(1));
  }

  // Whether this warpgroup is the last of those that share its rows; then it sees what the others have written.
  __device__ __forceinline__ bool last_of(const hopper::Strip& strip) {
    const int barrier = 1 + ring_.number();
    __threadfence();
    named_barrier_sync(barrier, 128);
    if (threadIdx.x % 128 == 0) {
      int* const counter =
          args_.counters + (static_cast<int64_t>(strip.image) * args_.row_tiles + strip.row_tile) * 2 + ring_.number();
      shared_.last[ring_.number()] = atomicAdd(counter, 1) == strip.fragments - 1;
    }
    named_barrier_sync(barrier, 128);
    __threadfence();
    return shared_.last[ring_.number()] != 0;
  }

  // Past the first-level cache, which may hold older bytes.
  static __device__ __forceinline__ RowState load(const RowState* p) {
    static_assert(sizeof(RowState) == sizeof(float4), "a state is one 16-byte load");
    const float4 v = __ldcg(reinterpret_cast<const float4*>(p));
    return {v.x, v.y, {v.z, v.w}};
  }

  const HopperArgs& args_;
  hopper::Shared<1>& shared_;
  Consumer ring_;
  RowState state_[kR];
  float slope_[kR], inv_norm_[kR];
  [[maybe_unused]] int best_[kR];
  [[maybe_unused]] float centre_x_[kR], centre_y_[kR];
  bool steep_ = false;
  int rows_ = 0;  // live ones of this warpgroup
};

template <class T, Variant kVariant>
__global__ void __launch_bounds__(hopper::kThreads, 1)
    match_hopper_kernel(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                        const __grid_constant__ HopperArgs args) {
#if defined(CSF_HOPPER_CODE)
  CSF_HOPPER_SHARED(hopper::Shared<1>, dynamic);
  hopper::Shared<1>& shared = *dynamic;
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&map_a);
    prefetch_tensor_map(&map_b);
    hopper::initialise(shared);
  }
  __syncthreads();
  const hopper::WorkLine line(args.stream.count_a, args.stream.count_b, args.stream.images, args.stream.most_fragments);
  if (threadIdx.x < 128) {
    give_registers<hopper::kProducerRegisters>();
    if (threadIdx.x < 32 && elect_one()) hopper::produce(args.stream, map_a, map_b, shared, line);
  } else {
    take_registers<hopper::kConsumerRegisters>();
    MatchConsumer<T, kVariant> consumer(args, shared);
    consumer.run(line);
  }
#endif
}

}  // namespace cosegflow::match_cuda

// The softmax of a consumer warpgroup's rows: one tile of scores after the other, in the registers that it was
// accumulated in. The values of a column are planes of pairs of numbers: its place for match, anything for transfer.
//
// A score costs 8 instructions with one plane: norm, logit, maximum; then exponent, exponential, total and two values;
// each further plane two more. Reads of the columns' numbers are shared by the 4 rows of a thread.
#pragma once

#include <cfloat>

#include "cosegflow/types.h"
#include "hopper/thread_tile.cuh"
#include "hopper/work_line.cuh"
#include "kernel_window.cuh"
#include "primitives/most_probable.cuh"
#include "primitives/value_softmax.cuh"

namespace cosegflow::hopper {

// What is added to the plain softmax: the most probable column, or a window (kernel_window.cuh) around one.
enum class Variant { kPlain, kIndexed, kWindowed };

struct RowArgs {
  const Scale* scale_a;  // (images, pitch_a), of compact rows
  int64_t pitch_a;
  View1 beta;
  // kWindowed: of each compact row the centre, relative to the centre of b's grid; log2(e) / (2 sigma^2), finite.
  const Place* centre;  // (images, pitch_a)
  float window_rate;
};

template <int kPlanes, Variant kVariant>
class RowSoftmax {
 public:
  using State = ValueSoftmax<2 * kPlanes>;
  using Best = MostProbable<float, int>;
  static constexpr int kR = ThreadTile::kRows, kC = ThreadTile::kColumns;

  // first: the warpgroup's first row in its image; rows: how many it has.
  __device__ __forceinline__ void begin(const RowArgs& args, int image, int64_t first, int rows) {
    const float beta = static_cast<const float*>(args.beta.data)[image * args.beta.stride[0]];
    steep_ = fabsf(beta) > 1e20f;  // beta / norm might overflow
    window_rate_ = args.window_rate;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      state_[r].clear();
      if constexpr (kVariant == Variant::kIndexed) best_[r] = -1;
      const int row = ThreadTile::row(r);
      const int64_t at = image * args.pitch_a + first + row;
      const float inv_norm = row < rows ? args.scale_a[at].inv_norm : 0.0f;
      if constexpr (kVariant == Variant::kWindowed) inv_norm_[r] = inv_norm;
      slope_[r] = beta;
      if constexpr (kVariant != Variant::kWindowed) slope_[r] = (steep_ ? beta / kSteepScale : beta) * inv_norm;
      if constexpr (kVariant == Variant::kWindowed) centre_[r] = row < rows ? args.centre[at] : Place{0.0f, 0.0f};
    }
  }

  // Adds the scores of a tile, which is the tile-th of its image. acc is spent: it holds logits afterwards.
  template <class Columns>
  __device__ __forceinline__ void add(ThreadTile::Accumulators& acc, const Columns& columns, int tile) {
    if (steep_ || kVariant == Variant::kWindowed) {
      // What slope leaves out: rare, and not worth an instruction for each score of every call. With a window it is the
      // norm, which has to be within, because max(s, 0) is.
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int c = 0; c < kC; ++c) {
          ThreadTile::value(acc, r, c) *= kVariant == Variant::kWindowed ? inv_norm_[r] : kSteepScale;
        }
      }
    }
    float peak[kR];
#pragma unroll
    for (int r = 0; r < kR; ++r) peak[r] = state_[r].peak;
#pragma unroll
    for (int c = 0; c < kC; c += 2) {
      const ScalePair scale = scale_pair(columns.scale, c);
      [[maybe_unused]] PlacePair place;
      if constexpr (kVariant == Variant::kWindowed) place = place_pair(columns.plane[0], c);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          float& value = ThreadTile::value(acc, r, c + e);
          value *= scale.at[e].inv_norm;
          if constexpr (kVariant == Variant::kWindowed) value = windowed(value, r, place.at[e]);
          value = fma_of(value, slope_[kVariant == Variant::kWindowed ? 0 : r], scale.at[e].log_weight);
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
      PlacePair place[kPlanes];
#pragma unroll
      for (int v = 0; v < kPlanes; ++v) place[v] = place_pair(columns.plane[v], c);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const float term = base[r].term(ThreadTile::value(acc, r, c + e));
          state_[r].total += term;
#pragma unroll
          for (int v = 0; v < kPlanes; ++v) {
            state_[r].value[2 * v] = fma_of(term, place[v].at[e].x, state_[r].value[2 * v]);
            state_[r].value[2 * v + 1] = fma_of(term, place[v].at[e].y, state_[r].value[2 * v + 1]);
          }
        }
      }
    }
  }

  // The state of the thread's own row (ThreadTile::own_row), over all columns added; and its most probable column, a
  // place in the image. All lanes of the warp.
  __device__ __forceinline__ void finish(State& mine, Best& best) {
    mine.clear();
    best.clear();
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      if constexpr (kVariant == Variant::kIndexed) {
        const int at = best_[r];
        Best candidate{state_[r].peak, 0.0f, at < 0 ? -1 : at / kC * kCols + ThreadTile::column(at % kC)};
        candidate.template merge_lanes<ThreadTile::kRowLanes>();
        if (ThreadTile::own() == r) best = candidate;
      }
      state_[r].template merge_lanes<ThreadTile::kRowLanes>();
      mine.take_if(ThreadTile::own() == r, state_[r]);
    }
  }

 private:
  // The score that counts: k max(s, 0), a NaN staying one.
  __device__ __forceinline__ float windowed(float score, int r, const Place& place) const {
    const float dx = place.x - centre_[r].x, dy = place.y - centre_[r].y;
    const float k = exp2_fast(-window_rate_ * fma_of(dx, dx, dy * dy));
    return KernelWindow<float>::value(score, k);
  }

  // beta / norm may overflow where beta does not, but by less than this: norms are at least 1e-12.
  static constexpr float kSteepScale = 1099511627776.0f;  // 2^40

  State state_[kR];
  float slope_[kR];
  [[maybe_unused]] float inv_norm_[kR];
  [[maybe_unused]] int best_[kR];
  [[maybe_unused]] Place centre_[kR];
  [[maybe_unused]] float window_rate_;
  bool steep_ = false;
};

}  // namespace cosegflow::hopper

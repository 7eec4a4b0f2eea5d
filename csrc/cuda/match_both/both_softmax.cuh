// Two softmaxes of a tile of scores, of its rows and of its columns, in the registers that it was accumulated in: what
// a consumer warpgroup does with 4 rows x 32 columns a thread (hopper/thread_tile.cuh).
//
// Logits are U = beta s + log m_i + log m_j, with both weights in: a row's own weight, the same in all its logits,
// moves neither its mean nor its probabilities, nor does a column's; each is taken off the log-sum-exp at the very end.
// So one number serves both directions, and so does one exponential, relative to the largest U of the warp's part of
// the tile (32 rows x 128 columns), as long as no peak of a row or a column lies so far from it that sums would leave
// the range of float32. The warp votes, tile by tile; where one does, each row and each column gets an exponential
// relative to its own peak. Both ways give the same up to rounding: what one exponential loses of a row or a column is
// 2^-62 of its peak.
//
// Columns: 8 lanes share one, 4 rows each. Eight columns at a time are reduced by exchanges that halve the number of
// columns a lane keeps, 7 shuffles instead of 24, so that each lane ends with one column.
// A score costs 17.8 instructions: logit and peak of the row 3, peak of the column 1.6, exponential 2, sums of the row
// 3, of the column 2.75, of lanes 2.6, and what a tile costs once; 2.6 more where the exponential does not serve both,
// one more where the warp's rows have weights other than 1 (no mask and bool masks have not).
#pragma once

#include "hopper/row_softmax.cuh"
#include "hopper/thread_tile.cuh"
#include "primitives/value_softmax.cuh"

namespace cosegflow::match_both_cuda {

using State = ValueSoftmax<2>;  // of a row or a column; 16 bytes, one load or store

class BothSoftmax {
  using ThreadTile = hopper::ThreadTile;
  static constexpr int kR = ThreadTile::kRows, kC = ThreadTile::kColumns, kGroup = 8, kGroups = kC / kGroup;
  // How far a peak may be from the common one: 2^63. Terms from 2^-62 of a peak's on are then above 2^-126, and sums of
  // terms times places below 2^127.
  static constexpr float kSpread = 44.0f;
  static constexpr float kMostTop = 134217728.0f;  // 2^27: all peaks near it take k = log2(e)

 public:
  // first: the warpgroup's first row in its image. The rows are valid up to a multiple of 256 (pack_tiles.cuh). All
  // lanes of the warp.
  __device__ __forceinline__ void begin(const hopper::RowArgs& args, const Place* place, int image, int64_t first) {
    const float beta = static_cast<const float*>(args.beta.data)[image * args.beta.stride[0]];
    const int64_t at = image * args.pitch_a + first;
    steep_ = fabsf(beta) > 1e20f;
    bool weighted = false;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      const Scale scale = args.scale_a[at + ThreadTile::row(r)];
      slope_[r] = (steep_ ? beta / kSteepScale : beta) * scale.inv_norm;
      log_weight_[r] = scale.log_weight;
      place_[r] = place[at + ThreadTile::row(r)];
      weighted = weighted || log_weight_[r] != 0.0f;
      state_[r].clear();
      base_[r] = 0.0f;
    }
    weighted_ = __any_sync(0xffffffffu, weighted);
  }

  // Adds a tile's scores to its rows, and writes of each column, of which the first `live` count, the state over the
  // rows of this warp. acc is spent. All lanes of the warp.
  template <class Columns>
  __device__ __forceinline__ void add(ThreadTile::Accumulators& acc, const Columns& columns,
                                      State (&states)[hopper::kCols], int live) {
    float peak[kR], column_peak[kGroups];
    logits(acc, columns, peak);
    float top = max_of(max_of(peak[0], peak[1]), max_of(peak[2], peak[3]));
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) top = max_of(top, __shfl_xor_sync(0xffffffffu, top, lanes));

    bool near = fabsf(top) < kMostTop;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      float p[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        p[c] = ThreadTile::value(acc, 0, g * kGroup + c);
#pragma unroll
        for (int r = 1; r < kR; ++r) p[c] = max_of(p[c], ThreadTile::value(acc, r, g * kGroup + c));
      }
      column_peak[g] = keep_one(p, [](float a, float b) { return max_of(a, b); });
      near = near && (column_peak[g] >= top - kSpread || column_peak[g] == minus_infinity<float>());
    }
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      peak[r] = max_of(peak[r], state_[r].peak);
      near = near && (fabsf(peak[r] - top) <= kSpread || peak[r] == minus_infinity<float>());
    }

    ExponentBase base[kR];
    if (__all_sync(0xffffffffu, near)) {
      const ExponentBase common = ExponentBase::of(top);
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        base[r] = common;
        make_relative(r, peak[r], common);
      }
      sum<true>(acc, columns, states, live, base, top, column_peak);
    } else {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        base[r] = ExponentBase::of(peak[r]);
        make_relative(r, peak[r], base[r]);
      }
      sum<false>(acc, columns, states, live, base, top, column_peak);
    }
  }

  // The state of the thread's own row (ThreadTile::own_row), over all columns added. All lanes of the warp.
  __device__ __forceinline__ void finish(State& mine) {
    mine.clear();
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      make_relative(r, state_[r].peak, ExponentBase::of(state_[r].peak));
      state_[r].template merge_lanes<ThreadTile::kRowLanes>();
      mine.take_if(ThreadTile::own() == r, state_[r]);
    }
  }

 private:
  // Scores become logits; the largest of each row, among the thread's own columns.
  template <class Columns>
  __device__ __forceinline__ void logits(ThreadTile::Accumulators& acc, const Columns& columns, float (&peak)[kR]) {
    if (steep_) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int c = 0; c < kC; ++c) ThreadTile::value(acc, r, c) *= kSteepScale;
      }
    }
#pragma unroll
    for (int r = 0; r < kR; ++r) peak[r] = minus_infinity<float>();
#pragma unroll
    for (int c = 0; c < kC; c += 2) {
      const hopper::ScalePair scale = hopper::scale_pair(columns.scale, c);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          float& value = ThreadTile::value(acc, r, c + e);
          value *= scale.at[e].inv_norm;
          value = fma_of(value, slope_[r], scale.at[e].log_weight);
          peak[r] = max_of(peak[r], value);
        }
      }
    }
    if (weighted_) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        peak[r] += log_weight_[r];
#pragma unroll
        for (int c = 0; c < kC; ++c) ThreadTile::value(acc, r, c) += log_weight_[r];
      }
    }
  }

  // The tile's terms, relative to base[r] in row r: kCommon says that it is ExponentBase::of(top) in all rows and for
  // all columns of the warp. Column peaks are of the columns that the lane keeps.
  template <bool kCommon, class Columns>
  __device__ __forceinline__ void sum(ThreadTile::Accumulators& acc, const Columns& columns,
                                      State (&states)[hopper::kCols], int live, const ExponentBase (&base)[kR],
                                      float top, const float (&column_peak)[kGroups]) {
    const int lane = ThreadTile::lane();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      // 32 columns, in all lanes of the same. A vote, because ptxas then knows that all lanes take the branch; without
      // a branch it works ahead across groups, and spills.
      if (!__any_sync(0xffffffffu, g * 32 < live)) break;
      const ExponentBase kept = kCommon ? base[0] : ExponentBase::of(column_peak[g]);
      float total[kGroup], x[kGroup], y[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; c += 2) {
        const hopper::PlacePair place = hopper::place_pair(columns.plane[0], g * kGroup + c);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          ExponentBase of_column = kept;
          if constexpr (!kCommon) {
            const int from = (c + e) * 4 + lane % 4;
            of_column = {__shfl_sync(0xffffffffu, kept.k, from), __shfl_sync(0xffffffffu, kept.base, from)};
          }
#pragma unroll
          for (int r = 0; r < kR; ++r) {
            const float logit = ThreadTile::value(acc, r, g * kGroup + c + e);
            const float term = of_column.term(logit), row_term = kCommon ? term : base[r].term(logit);
            state_[r].total += row_term;
            state_[r].value[0] = fma_of(row_term, place.at[e].x, state_[r].value[0]);
            state_[r].value[1] = fma_of(row_term, place.at[e].y, state_[r].value[1]);
            total[c + e] = r == 0 ? term : total[c + e] + term;
            x[c + e] = r == 0 ? term * place_[r].x : fma_of(term, place_[r].x, x[c + e]);
            y[c + e] = r == 0 ? term * place_[r].y : fma_of(term, place_[r].y, y[c + e]);
          }
        }
      }
      const auto plus = [](float a, float b) { return a + b; };
      State mine;
      mine.peak = kCommon ? top : column_peak[g];
      mine.total = keep_one(total, plus);
      mine.value[0] = keep_one(x, plus), mine.value[1] = keep_one(y, plus);
      if constexpr (kCommon) mine.raise(column_peak[g]);  // or lower it: the sums are then within kSpread of 1
      states[ThreadTile::column(lane / 4) + g * 32] = mine;
    }
  }

  // Makes row r's sums relative to `to`. In two steps: what they are relative to may be up to twice kSpread away.
  __device__ __forceinline__ void make_relative(int r, float new_peak, const ExponentBase& to) {
    State& s = state_[r];
    const float was = s.peak;
    const float k = ExponentBase::of(was).k;
    const float shift = k == to.k ? base_[r] - to.base : fma_of(was, to.k, -to.base);
    const float factor = was == minus_infinity<float>() ? 0.0f : exp2_fast(0.5f * shift);
    s.peak = new_peak, base_[r] = to.base;
#pragma unroll
    for (int step = 0; step < 2; ++step) s.total *= factor, s.value[0] *= factor, s.value[1] *= factor;
  }

  // v[c] of the 8 lanes that share their columns, joined; lane 4 c + lane % 4 gets that of column c.
  template <class Join>
  static __device__ __forceinline__ float keep_one(float (&v)[kGroup], const Join& join) {
#pragma unroll
    for (int left = kGroup / 2; left > 0; left /= 2) {
      const unsigned upper = (ThreadTile::lane() & 4 * left) != 0 ? 0xffffffffu : 0;
#pragma unroll
      for (int c = 0; c < left; ++c) {
        const float give = choose(upper, v[c], v[c + left]), keep = choose(upper, v[c + left], v[c]);
        v[c] = join(keep, __shfl_xor_sync(0xffffffffu, give, 4 * left));
      }
    }
    return v[0];
  }
  // a where all bits are set, b where none is. A choice by a condition and its opposite becomes a swap of three moves.
  static __device__ __forceinline__ float choose(unsigned mask, float a, float b) {
    return __uint_as_float((__float_as_uint(a) & mask) | (__float_as_uint(b) & ~mask));
  }

  // beta / norm overflows where beta does not, but by less than this: norms are at least 1e-12.
  static constexpr float kSteepScale = 1099511627776.0f;  // 2^40

  bool steep_;
  bool weighted_;  // else all weights of the warp's rows are 1, and there is nothing to add
  float slope_[kR], log_weight_[kR];
  Place place_[kR];
  State state_[kR];  // its sums are relative to base_, not to its peak's
  float base_[kR];
};

}  // namespace cosegflow::match_both_cuda

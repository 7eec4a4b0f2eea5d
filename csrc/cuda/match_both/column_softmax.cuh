// The softmax of a tile's columns over the rows of a consumer warpgroup, out of the logits that the softmax of its rows
// left in the registers (hopper/row_softmax.cuh).
//
// Those logits hold the weight of their column, beta s + log m_j. It stays in: all logits of a column then have the
// same too much, which moves neither its mean nor its probabilities, and is taken off the log-sum-exp at the very end.
//
// A warp has 32 rows of a column, 4 of them in each of the 8 lanes that share it. Eight columns at a time are reduced
// by exchanges that halve the number of columns a lane keeps, 7 shuffles instead of 24, so that each lane ends with one
// column: first the largest logit, whose base (value_softmax.cuh) is then handed to all 8 lanes, then three sums
// relative to it. A score costs 9.5 instructions: maximum 0.75, exponential and sums 4.75, maxima of lanes 1.4, sums of
// lanes 2.6; and one more where the warp's rows have weights other than 1 (no mask and bool masks have not).
#pragma once

#include "hopper/thread_tile.cuh"
#include "primitives/value_softmax.cuh"

namespace cosegflow::match_both_cuda {

// Of a column over some rows; one load or store.
struct alignas(16) ColumnState : ValueSoftmax<2> {};

class ColumnSoftmax {
  using ThreadTile = hopper::ThreadTile;
  static constexpr int kR = ThreadTile::kRows, kC = ThreadTile::kColumns, kGroup = 8;

 public:
  // The rows as targets: they are valid up to a multiple of 256 (pack_tiles.cuh). Pointers to the warpgroup's first.
  // All lanes of the warp.
  __device__ __forceinline__ void begin(const Scale* scale, const Place* place) {
    bool weighted = false;
#pragma unroll
    for (int r = 0; r < kR; ++r) {
      log_weight_[r] = scale[ThreadTile::row(r)].log_weight;
      place_[r] = place[ThreadTile::row(r)];
      weighted = weighted || log_weight_[r] != 0.0f;
    }
    weighted_ = __any_sync(0xffffffffu, weighted);
  }

  // Of each column of the tile, of which the first `columns` count, the state over the rows of this warp. acc is spent.
  // All lanes of the warp, with the same number.
  __device__ __forceinline__ void reduce(ThreadTile::Accumulators& acc, ColumnState (&states)[hopper::kCols],
                                         int columns) const {
    const int lane = ThreadTile::lane();
    if (weighted_) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int c = 0; c < kC; ++c) ThreadTile::value(acc, r, c) += log_weight_[r];
      }
    }
#pragma unroll
    for (int c0 = 0; c0 < kC; c0 += kGroup) {
      // 32 columns, in all lanes of the same. A vote, because ptxas then knows that all lanes take the branch; without
      // a branch it works ahead across groups, and spills.
      if (!__any_sync(0xffffffffu, c0 * 4 < columns)) break;
      float peak[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const float logit = ThreadTile::value(acc, r, c0 + c);
          peak[c] = r == 0 ? logit : max_of(peak[c], logit);
        }
      }
      ColumnState mine;
      mine.peak = reduce_columns(peak, [](float a, float b) { return max_of(a, b); });
      const ExponentBase base_of_mine = ExponentBase::of(mine.peak);
      float total[kGroup], x[kGroup], y[kGroup];
#pragma unroll
      for (int c = 0; c < kGroup; ++c) {
        const int from = c * 4 + lane % 4;
        const ExponentBase base{__shfl_sync(0xffffffffu, base_of_mine.k, from),
                                __shfl_sync(0xffffffffu, base_of_mine.base, from)};
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const float term = base.term(ThreadTile::value(acc, r, c0 + c));
          total[c] = r == 0 ? term : total[c] + term;
          x[c] = r == 0 ? term * place_[r].x : fma_of(term, place_[r].x, x[c]);
          y[c] = r == 0 ? term * place_[r].y : fma_of(term, place_[r].y, y[c]);
        }
      }
      const auto sum = [](float a, float b) { return a + b; };
      mine.total = reduce_columns(total, sum);
      mine.value[0] = reduce_columns(x, sum), mine.value[1] = reduce_columns(y, sum);
      states[ThreadTile::column(lane / 4) + c0 * 4] = mine;
    }
  }

 private:
  // v[c] of the 8 lanes that share their columns, joined; lane 4 c + lane % 4 gets that of column c.
  template <class Join>
  static __device__ __forceinline__ float reduce_columns(float (&v)[kGroup], const Join& join) {
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

  bool weighted_;  // else all weights of the warp's rows are 1, and there is nothing to add
  float log_weight_[kR];
  Place place_[kR];
};

}  // namespace cosegflow::match_both_cuda

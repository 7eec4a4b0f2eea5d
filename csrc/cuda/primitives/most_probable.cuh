// The largest logit of a stream, with the score behind it and its place: on ties the lowest place, so that neither the
// order of threads nor the way a row is split can show. A NaN logit is passed over, -inf is an excluded entry.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "primitives/launch.cuh"
#include "primitives/real_math.cuh"

namespace cosegflow {

template <class Acc, class Index = int64_t>
struct MostProbable {
  Acc logit, score;
  Index index;  // -1: nothing was allowed

  __device__ __forceinline__ void clear() {
    logit = score = minus_infinity<Acc>();
    index = -1;
  }

  // Entries come in ascending order of `at`.
  __device__ __forceinline__ void add(Acc candidate, Acc candidate_score, Index at) {
    if (candidate > logit) logit = candidate, score = candidate_score, index = at;
  }

  // In any order.
  __device__ __forceinline__ void merge(const MostProbable& other) {
    const bool lower = other.index >= 0 && (index < 0 || other.index < index);
    if (other.logit > logit || (other.logit == logit && lower)) *this = other;
  }

  // Merges `Width` neighbouring lanes; all of them get the result. Every lane of the warp must call it.
  template <int Width = 32>
  __device__ __forceinline__ void merge_lanes() {
#pragma unroll
    for (int lanes = Width / 2; lanes > 0; lanes /= 2) {
      MostProbable other;
      other.logit = __shfl_xor_sync(0xffffffffu, logit, lanes);
      other.score = __shfl_xor_sync(0xffffffffu, score, lanes);
      other.index = __shfl_xor_sync(0xffffffffu, index, lanes);
      merge(other);
    }
  }
};

}  // namespace cosegflow

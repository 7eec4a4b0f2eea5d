// The states of rows whose columns are shared by several blocks: each block leaves its fragment's state, and the one
// that comes last merges all of them, in the order of the columns, so that the bits do not depend on who is last.
#pragma once

#include <cstdint>

#include "hopper/tile_shape.cuh"
#include "hopper/work_line.cuh"
#include "primitives/warpgroup.cuh"

namespace cosegflow::hopper {

// The part of shared memory and of the workspace that a consumer warpgroup uses to find out whether it is the last.
struct FragmentCounters {
  int* counters;  // (images, row_tiles, 2), 0 before the launch
  int row_tiles;  // of a dense image
};

// Whether this warpgroup is the last of those that share its rows of the strip; then it sees what the others wrote. All
// threads of the warpgroup, after they have written the strip's fragment. `flag` is the warpgroup's own. One thread's
// fences are enough: the barriers order its fellows' writes before the first and their reads after the second.
__device__ __forceinline__ bool last_fragment(const FragmentCounters& all, const Strip& strip, int warpgroup,
                                              int& flag) {
  named_barrier_sync(1 + warpgroup, 128);
  if (threadIdx.x % 128 == 0) {
    int* const counter =
        all.counters + (static_cast<int64_t>(strip.image) * all.row_tiles + strip.row_tile) * 2 + warpgroup;
    __threadfence();
    flag = atomicAdd(counter, 1) == strip.fragments - 1;
    __threadfence();
  }
  named_barrier_sync(1 + warpgroup, 128);
  return flag != 0;
}

// Reads past the first-level cache, which may hold older bytes.
template <class State>
__device__ __forceinline__ State load_fragment(const State* p) {
  static_assert(sizeof(State) % sizeof(float) == 0, "a state is made of numbers of 4 bytes");
  constexpr int kWords = sizeof(State) / sizeof(float);
  union {
    State state;
    float word[kWords];
  } v;
  if constexpr (kWords % 4 == 0 && alignof(State) >= 16) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      reinterpret_cast<float4*>(v.word)[i] = __ldcg(reinterpret_cast<const float4*>(p) + i);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kWords; ++i) v.word[i] = __ldcg(reinterpret_cast<const float*>(p) + i);
  }
  return v.state;
}

}  // namespace cosegflow::hopper

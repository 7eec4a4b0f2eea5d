// What a quad of lanes (four neighbouring ones) holds of a row of an accumulator, 2 neighbouring columns a lane in
// every 8 columns, turned among its lanes so that each has 16 neighbouring bytes to store.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cosegflow {

// Lane q of a quad gives word u to lane u: afterwards word u of lane q is what word q of lane u was. For pairs of
// halves of four groups of 8 columns: lane q then has the q-th group. Selects instead of indices that depend on the
// lane keep the words in registers.
__device__ __forceinline__ void transpose_in_quad(uint32_t (&word)[4]) {
  const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x / 2 % 2 != 0;
#pragma unroll
  for (int u = 0; u < 4; u += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? word[u] : word[u + 1], 1);
    word[u] = odd ? got : word[u];
    word[u + 1] = odd ? word[u + 1] : got;
  }
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? word[u] : word[u + 2], 2);
    word[u] = upper ? got : word[u];
    word[u + 2] = upper ? word[u + 2] : got;
  }
}

// Neighbouring lanes exchange a word: an even lane then has its first one and its neighbour's, an odd one its
// neighbour's second one and its own. For pairs of halves of two groups of 8 columns: lanes 0 and 2 then have the first
// group, lanes 1 and 3 the second, 8 bytes each.
__device__ __forceinline__ void exchange_in_quad(uint32_t (&word)[2]) {
  const bool odd = threadIdx.x % 2 != 0;
  const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? word[0] : word[1], 1);
  word[0] = odd ? got : word[0];
  word[1] = odd ? word[1] : got;
}

// Neighbouring lanes exchange pairs of words: an even lane then has its first pair and its neighbour's, an odd one its
// neighbour's second pair and its own. For pairs of float32 of two groups of 8 columns: lanes 0 and 2 then have the
// first group, lanes 1 and 3 the second.
__device__ __forceinline__ void exchange_in_quad(uint32_t (&word)[4]) {
  const bool odd = threadIdx.x % 2 != 0;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? word[e] : word[e + 2], 1);
    word[e] = odd ? got : word[e];
    word[e + 2] = odd ? word[e + 2] : got;
  }
}

}  // namespace cosegflow

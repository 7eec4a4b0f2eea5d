// What the score gradients of a backward share on Hopper: how a tile of ds leaves the registers that its scores were
// accumulated in, as halves. Which factors it carries, half_gradient.cuh says.
#pragma once

#include <cstdint>

#include "half_gradient.cuh"
#include "hopper/thread_tile.cuh"
#include "primitives/half_pair.cuh"

namespace cosegflow::hopper {

using cosegflow::kFolded;
using cosegflow::range_scale;
using cosegflow::range_unscale;

// Lane q of a quad gives word u to lane u: afterwards word u of lane q is what word q of lane u was. Selects instead of
// indices that depend on the lane keep the words in registers.
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

// Columns of a thread that leave together: 8 of each row, in a piece of 32 neighbouring columns of the tile.
constexpr int kPieceColumns = 8, kPieces = ThreadTile::kColumns / kPieceColumns;

// Stores a thread's pairs of columns of row r in piece `piece`: a quad writes 64 bytes, every lane 16 of them. `tile`:
// the tile's first column in the warpgroup's row 0. All lanes of the warp.
template <class T>
__device__ __forceinline__ void store_piece(T* tile, int64_t pitch, int r, int piece, uint32_t (&word)[4]) {
  transpose_in_quad(word);
  T* const at = tile + ThreadTile::row(r) * pitch + piece * 32 + ThreadTile::lane() % 4 * 8;
  *reinterpret_cast<uint4*>(at) = {word[0], word[1], word[2], word[3]};
}

// Sums of a piece's columns over the rows of a warp (its lanes that share columns), by halving: 7 shuffles instead
// of 24. sum[i]: of the thread's column i of the piece. Afterwards sum[0] is that of column halved_column().
__device__ __forceinline__ void halve_sums(float (&sum)[kPieceColumns]) {
#pragma unroll
  for (int lanes = 16, count = kPieceColumns / 2; lanes >= 4; lanes /= 2, count /= 2) {
    const bool upper = (threadIdx.x & static_cast<unsigned>(lanes)) != 0;
#pragma unroll
    for (int i = 0; i < kPieceColumns / 2; ++i) {
      if (i >= count) continue;
      const float got = __shfl_xor_sync(0xffffffffu, upper ? sum[i] : sum[i + count], lanes);
      sum[i] = (upper ? sum[i + count] : sum[i]) + got;
    }
  }
}
__device__ __forceinline__ int halved_column() { return ThreadTile::lane() / 4; }

}  // namespace cosegflow::hopper

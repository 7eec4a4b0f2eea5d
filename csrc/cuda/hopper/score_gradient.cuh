// What the score gradients of a backward share on Hopper: how a tile of ds leaves the registers that its scores were
// accumulated in, as halves. Which factors it carries, half_gradient.cuh says.
#pragma once

#include <cstdint>

#include "half_gradient.cuh"
#include "hopper/thread_tile.cuh"
#include "primitives/half_pair.cuh"
#include "primitives/quad_transpose.cuh"

namespace cosegflow::hopper {

// beta / norm may overflow where beta does not, but by less than this, since norms are at least 1e-12: where |beta| is
// above kSteepBeta slopes lack the factor, and the scores get it.
constexpr float kSteepBeta = 1e20f, kSteepScale = 1099511627776.0f;  // 2^40
__device__ __forceinline__ void scale_steep(ThreadTile::Accumulators& acc) {
#pragma unroll
  for (int i = 0; i < 64; ++i) acc[0][i] *= kSteepScale, acc[1][i] *= kSteepScale;
}

// What multiplies a p that may be 0, and a coordinate or a value, stays finite; a NaN stays one.
__device__ __forceinline__ float held(float v) { return fabsf(v) > 1e30f ? copysignf(1e30f, v) : v; }

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

}  // namespace cosegflow::hopper

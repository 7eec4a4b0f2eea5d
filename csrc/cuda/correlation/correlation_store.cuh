// How a tile of scores leaves the registers that it was accumulated in: norms, relu, rounding, stores.
//
// The accumulators of mma.sync and of wgmma alike give a quad of lanes 8 neighbouring columns of a row, 2 each. So the
// lanes of a quad turn their words among them, by shuffles, until each has 16 bytes to store (primitives/
// quad_transpose.cuh); a quad then writes 64 neighbouring bytes of a row. Stores say that nobody reads the volume soon,
// so that features stay in the second-level cache.
// A score of a half type costs 2 multiplications, half a conversion (which clips at 0 in passing) and 2.1 for the turn
// and the store: 5.5 instructions with all that a tile needs once (SASS of sm_90a, tests/test_sass.py).
// Rejected: stmatrix and bulk copies from shared memory, 2.4 instructions less. They move every number through shared
// memory twice, 128 KB for a tile of 256 x 128 where shuffles take 64 KB of its time, and the products of C = 256 alone
// take 112 of the 128 bytes a clock; and they want 16 to 64 KB to stage in.
// Rejected too: turning pairs of lanes only, for 8-byte stores. That is an instruction less for a score, but twice as
// many stores, each of which still touches 8 lines.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/half.h"
#include "primitives/half_pair.cuh"
#include "primitives/quad_transpose.cuh"

namespace cosegflow::correlation_cuda {

// Where a tile goes; Out is Half, BFloat16 or float.
template <class Out>
struct VolumeTile {
  Out* first;      // its element (0, 0)
  int64_t pitch;   // from one row of the volume to the next
  int rows, cols;  // that there are from (0, 0) on: the tile may reach beyond the volume
  bool relu;
  bool vectors;  // rows of the volume start at multiples of 16 bytes
};

// The value of the volume from the plain inner product. A NaN stays one.
template <class Acc>
__device__ __forceinline__ Acc finish(Acc product, Acc scale_a, Acc scale_b, bool relu) {
  const Acc value = product * scale_b * scale_a;
  return relu && value < Acc(0) ? Acc(0) : value;
}

namespace store_detail {

template <class Out>
constexpr int kPiece = 16 / static_cast<int>(sizeof(Out));  // columns of a thread in a row that leave together

// The words of a piece, turned; the first column that the lane then has, from the piece's first one on.
template <class Out, bool kRelu>
__device__ __forceinline__ void turn(const float (&value)[kPiece<Out>], uint32_t (&word)[4]) {
  if constexpr (sizeof(Out) == 2) {
#pragma unroll
    for (int u = 0; u < 4; ++u) word[u] = half_pair<Out, kRelu>(value[2 * u], value[2 * u + 1]);
    transpose_in_quad(word);
  } else {
#pragma unroll
    for (int u = 0; u < 4; ++u) word[u] = __float_as_uint(kRelu && value[u] < 0.0f ? 0.0f : value[u]);
    exchange_in_quad(word);
  }
}
template <class Out>
__device__ __forceinline__ int turned_column() {
  const int lane = static_cast<int>(threadIdx.x) % 4;
  return sizeof(Out) == 2 ? 8 * lane : lane % 2 * 8 + lane / 2 * 4;
}

template <class Tile, class Out, bool kRelu, class ScaleB>
__device__ __forceinline__ void store_vectors(typename Tile::Accumulators& acc, const float (&scale_a)[Tile::kRows],
                                              const ScaleB& scale_b, const VolumeTile<Out>& to) {
  constexpr int kColumns = kPiece<Out>;
  // Rows that share what is read of their columns; many accumulators leave few registers for more than one address.
  constexpr int kRows = Tile::kColumns > 32 ? 1 : Tile::kRows;
  // column(c) of a lane is column(0) + c / 2 * 8 + c % 2.
  const int first = Tile::column(0) - static_cast<int>(threadIdx.x) % 4 * 2 + turned_column<Out>();
  // From the thread's first row and the lane's first column on, so that all that follows is constants.
  Out* const corner = to.first + Tile::row(0) * to.pitch + first;
  const int rows = to.rows - Tile::row(0), cols = to.cols - first;
#pragma unroll
  for (int r0 = 0; r0 < Tile::kRows; r0 += kRows) {
    Out* line[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) line[r] = corner + (Tile::row(r0 + r) - Tile::row(0)) * to.pitch;
#pragma unroll
    for (int c = 0; c < Tile::kColumns; c += kColumns) {
      const bool inside = c * 4 < cols;
      float scale[kColumns];
#pragma unroll
      for (int k = 0; k < kColumns; k += 2) {
        const float2 two = scale_b(c + k);
        scale[k] = two.x, scale[k + 1] = two.y;
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float value[kColumns];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) value[k] = Tile::value(acc, r0 + r, c + k) * scale[k] * scale_a[r0 + r];
        uint32_t word[4];
        turn<Out, kRelu>(value, word);
        if (inside && Tile::row(r0 + r) - Tile::row(0) < rows) {
          __stcs(reinterpret_cast<uint4*>(line[r] + c * 4), make_uint4(word[0], word[1], word[2], word[3]));
        }
      }
    }
    if (kRows < Tile::kRows) __syncwarp();  // else ptxas works ahead and spills
  }
}

// Rows that start anywhere: one element after the other.
template <class Tile, class Out, class ScaleB>
__device__ __forceinline__ void store_elements(typename Tile::Accumulators& acc, const float (&scale_a)[Tile::kRows],
                                               const ScaleB& scale_b, const VolumeTile<Out>& to) {
  Out* const corner = to.first + Tile::row(0) * to.pitch + Tile::column(0);
  const int rows = to.rows - Tile::row(0), cols = to.cols - Tile::column(0);
#pragma unroll
  for (int r = 0; r < Tile::kRows; ++r) {
    if (Tile::row(r) - Tile::row(0) < rows) {
      Out* const line = corner + (Tile::row(r) - Tile::row(0)) * to.pitch;
#pragma unroll
      for (int c = 0; c < Tile::kColumns; c += 2) {
        const float2 two = scale_b(c);
        const float low = finish(Tile::value(acc, r, c), scale_a[r], two.x, to.relu);
        const float high = finish(Tile::value(acc, r, c + 1), scale_a[r], two.y, to.relu);
        if (c * 4 < cols) line[c * 4] = from_float<Out>(low);
        if (c * 4 + 1 < cols) line[c * 4 + 1] = from_float<Out>(high);
      }
    }
    __syncwarp();  // else ptxas works ahead and spills
  }
}

}  // namespace store_detail

// Tile: kRows, kColumns, row(r), column(c), value(acc, r, c), as hopper/thread_tile.cuh. scale_b(c): of the thread's
// columns c and c + 1, c even. All lanes of the warp.
template <class Tile, class Out, class ScaleB>
__device__ __forceinline__ void store_tile(typename Tile::Accumulators& acc, const float (&scale_a)[Tile::kRows],
                                           const ScaleB& scale_b, const VolumeTile<Out>& to) {
  if (!to.vectors) {
    store_detail::store_elements<Tile, Out>(acc, scale_a, scale_b, to);
  } else if (to.relu) {
    store_detail::store_vectors<Tile, Out, true>(acc, scale_a, scale_b, to);
  } else {
    store_detail::store_vectors<Tile, Out, false>(acc, scale_a, scale_b, to);
  }
}

}  // namespace cosegflow::correlation_cuda

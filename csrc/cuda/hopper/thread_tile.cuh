// Which scores of a tile a consumer thread holds, and how it reads the numbers of their columns.
#pragma once

#include "hopper/tile_shape.cuh"

namespace cosegflow::hopper {

// 4 rows x 32 columns of its warpgroup's 128 x 128: the layout of two m64n128 accumulators (primitives/wgmma.cuh).
struct ThreadTile {
  static constexpr int kRows = 4, kColumns = 32;
  using Accumulators = float[2][64];

  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ int row(int r) {
    return r / 2 * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + r % 2 * 8 + lane() / 4;
  }
  static __device__ __forceinline__ int column(int c) { return c / 2 * 8 + lane() % 4 * 2 + c % 2; }
  static __device__ __forceinline__ float& value(Accumulators& acc, int r, int c) {
    return acc[r / 2][c / 2 * 4 + r % 2 * 2 + c % 2];
  }

  // 4 neighbouring lanes share their rows. When a row is finished, each of them takes one of the four.
  static constexpr int kRowLanes = 4;
  static __device__ __forceinline__ int own() { return lane() % 4; }
  static __device__ __forceinline__ int own_row() { return row(own()); }
};

// The numbers of a thread's columns c and c + 1 (c even): 16 bytes.
struct alignas(16) ScalePair {
  Scale at[2];
};
struct alignas(16) PlacePair {
  Place at[2];
};
__device__ __forceinline__ ScalePair scale_pair(const Scale (&scale)[kCols], int c) {
  return reinterpret_cast<const ScalePair*>(scale)[ThreadTile::lane() % 4 + c * 2];
}
__device__ __forceinline__ PlacePair place_pair(const Place (&plane)[kCols], int c) {
  return reinterpret_cast<const PlacePair*>(plane)[ThreadTile::lane() % 4 + c * 2];
}

}  // namespace cosegflow::hopper

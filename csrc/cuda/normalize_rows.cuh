// Packed rows to rows of norm 1, rounded to their own type: the features of a product with the gradient of a volume,
// where the factor 1 / norm can be put nowhere else.
//
// A thread takes 8 neighbouring channels of a row: 16 bytes in, 16 out. Moves 2 * C * N * sizeof(T): bound by memory.
#pragma once

#include <climits>
#include <cstdint>

#include "pack_tiles.cuh"
#include "primitives/half_pair.cuh"
#include "primitives/launch.cuh"

namespace cosegflow {

// Rows [0, count), and the zeros behind them, see TileSide.
template <class T>
__global__ void __launch_bounds__(256) normalize_rows_kernel(TileSide<T> side, T* out) {
  const int64_t pieces = side.depth / 8, i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t row = i / pieces, b = row / side.positions, r = row % side.positions;
  if (b >= side.batch || r >= (side.count[b] + kTileRowStep - 1) / kTileRowStep * kTileRowStep) return;
  const float inv_norm = side.scale[b * side.pitch + r].inv_norm;
  const uint4 in = reinterpret_cast<const uint4*>(side.features)[i];
  const auto scaled = [&](uint32_t pair) {
    const float low = to_float(T{static_cast<uint16_t>(pair & 0xffffu)});
    const float high = to_float(T{static_cast<uint16_t>(pair >> 16)});
    return half_pair<T>(low * inv_norm, high * inv_norm);
  };
  reinterpret_cast<uint4*>(out)[i] = {scaled(in.x), scaled(in.y), scaled(in.z), scaled(in.w)};
}

// out (B, positions, depth); null: nothing is done.
template <class T>
Status normalize_rows(const TileSide<T>& side, T* out, Stream stream) {
  if (out == nullptr) return {};
  const int64_t blocks = ceil_div(side.batch * side.positions * (side.depth / 8), 256);
  if (blocks > INT_MAX) return {"cosegflow: the features are too large for one launch"};
  return launch(&normalize_rows_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, side, out);
}

}  // namespace cosegflow

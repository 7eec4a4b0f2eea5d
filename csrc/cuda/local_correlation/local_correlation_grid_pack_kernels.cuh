// What the kernels over tiles read, where the caller's tensors are not made of whole units
// (local_correlation_grid.cuh).
//
// features: (B, C, H, W) of any strides to planes with rows of whole units, the rest of the last unit 0; `inverse_norm`
//   (or null) is folded in, rounded once. A block moves 32 channels x 32 pixels (local_correlation_feature_tile.cuh).
// gradient: a piece's 81 planes, turned to the side whose gradient is formed. The plane of offset o holds at (y, x) of
//   that side the gradient to its product with pixel (y, x) + o of the other side, 0 where that one is outside or the
//   window ends. For fb (kMirrored) the pixel of a is the other one. A thread moves a unit.
// Both move each element in and out once, beside the kernels that follow, most of it within L2. Time not measured yet.
#pragma once

#include "local_correlation/local_correlation_feature_tile.cuh"
#include "local_correlation/local_correlation_grid.cuh"

namespace cosegflow::local_correlation_cuda {

// A block for each (image, 32 channels, 32 pixels of rows of `row`).
template <class T>
__global__ void __launch_bounds__(kThreads) local_correlation_pack_kernel(Side<T> side, int row, T* planes) {
  CSF_SHARED(FeatureTile<T>, tile);
  const unsigned pixels = static_cast<unsigned>(side.height) * static_cast<unsigned>(row);
  const unsigned groups = static_cast<unsigned>((side.channels + kTileSide - 1) / kTileSide);
  const TilePixels at = tile_pixels(blockIdx.x / groups, pixels);
  const int64_t group = static_cast<int64_t>(blockIdx.x % groups) * kTileSide;
  read_features(side, at.b, at.first, static_cast<unsigned>(row), group, tile);
  __syncthreads();
  const unsigned lane = threadIdx.x % 32, pixel = at.first + lane;
  if (pixel >= pixels) return;
  accumulate_t<T> scale(1);
  if (side.inverse_norm != nullptr) {
    const int y = static_cast<int>(pixel / static_cast<unsigned>(row)), x = static_cast<int>(pixel) - y * row;
    scale = x < side.width ? side.scale(at.b, y, x) : accumulate_t<T>(0);
  }
  T* const to = planes + (at.b * side.channels + group) * pixels + pixel;
#pragma unroll
  for (int k = 0; k < kTileTimes; ++k) {
    const int c = static_cast<int>(threadIdx.x) / 32 + k * kTileWarps;
    T value = tile.value[c][lane];
    if (side.inverse_norm != nullptr) value = from_float<T>(to_float(value) * scale);
    if (group + c < side.channels) to[c * static_cast<int64_t>(pixels)] = value;
  }
}

// The sizes of the side whose gradient is formed (units: of a row) and of the other one.
struct GradientSides {
  int height, width, units;
  int other_height, other_width;
};

template <class T, bool kMirrored>
__global__ void __launch_bounds__(kThreads)
    local_correlation_pack_gradient_kernel(LocalCorrelationParams p, Pieces pieces, int piece_y, int piece_x,
                                           GradientSides sides, T* planes) {
  const unsigned plane = static_cast<unsigned>(sides.height) * static_cast<unsigned>(sides.units);
  const unsigned runs = (plane + kThreads - 1) / kThreads, block = blockIdx.x / runs;  // of (image, offset)
  const unsigned at = blockIdx.x % runs * kThreads + threadIdx.x;
  if (at >= plane) return;
  const int y = static_cast<int>(at / static_cast<unsigned>(sides.units));
  const int x0 = (static_cast<int>(at) - y * sides.units) * kUnit, offset = static_cast<int>(block % kWindow);
  const int64_t b = block / kWindow;
  const int dy = offset / kSpan, dx = offset % kSpan;
  const int oy = pieces.first(piece_y) + dy, ox = pieces.first(piece_x) + dx, other_y = y + oy;
  Unit<T> unit;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) unit.v[i] = from_float<T>(accumulate_t<T>(0));
  if (pieces.owns(piece_y, dy) && pieces.owns(piece_x, dx) && other_y >= 0 && other_y < sides.other_height) {
    const int side = 2 * pieces.radius + 1;
    const int plane_of_a =
        kMirrored ? (pieces.radius - oy) * side + pieces.radius - ox : (pieces.radius + oy) * side + pieces.radius + ox;
    const View4& g = p.grad_out;
    const T* const from = static_cast<const T*>(g.data) + b * g.stride[0] + plane_of_a * g.stride[1] +
                          (kMirrored ? other_y : y) * g.stride[2];
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      const int x = x0 + i, other_x = x + ox;
      if (x < sides.width && other_x >= 0 && other_x < sides.other_width) {
        unit.v[i] = from[(kMirrored ? other_x : x) * g.stride[3]];
      }
    }
  }
  *reinterpret_cast<Unit<T>*>(planes + (static_cast<int64_t>(block) * plane + at) * kUnit) = unit;
}

}  // namespace cosegflow::local_correlation_cuda

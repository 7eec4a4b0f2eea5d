// What the kernels over tiles read, where the caller's tensors are not made of whole units
// (local_correlation_grid.cuh).
//
// features: (B, C, H, W) of any strides to planes with rows of whole units, the rest of the last unit 0; `inverse_norm`
//   (or null) is folded in, rounded once. A block moves 32 channels x 32 pixels through shared memory, so that reads
//   follow the channels where those are neighbours in memory, and writes the pixels.
// gradient: a piece's 81 planes, turned to the side whose gradient is formed. The plane of offset o, pixel (y, x) of
// that
//   side, holds the gradient to the product of that pixel with pixel (y, x) + o of the other side, 0 where that one is
//   outside or the window ends. For fb (kMirrored) the pixel of a is the other one. A thread moves a unit.
// Both move each element in and out once, beside the kernels that follow, most of it within L2. Time not measured yet.
#pragma once

#include "local_correlation/local_correlation_grid.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kPackTile = 32;  // channels and pixels

template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_pack_kernel(Side<T> side, int row, T* planes, bool channels_first) {
  using Tile = T[kPackTile][kPackTile + 1];
  CSF_SHARED(Tile, tile);
  const int64_t n = static_cast<int64_t>(side.height) * row, runs = (n + kPackTile - 1) / kPackTile;
  const int64_t groups = (side.channels + kPackTile - 1) / kPackTile;
  const int64_t first = blockIdx.x % runs * kPackTile, group = blockIdx.x / runs % groups * kPackTile;
  const int64_t b = blockIdx.x / runs / groups;
  for (int i = static_cast<int>(threadIdx.x); i < kPackTile * kPackTile; i += kThreads) {
    const int c = channels_first ? i % kPackTile : i / kPackTile,
              pixel = channels_first ? i / kPackTile : i % kPackTile;
    const int y = static_cast<int>((first + pixel) / row), x = static_cast<int>((first + pixel) % row);
    T value = from_float<T>(accumulate_t<T>(0));
    if (group + c < side.channels && y < side.height && x < side.width) {
      value = side.pixel(b, y, x)[(group + c) * side.features.stride[1]];
      if (side.inverse_norm != nullptr) value = from_float<T>(to_float(value) * side.scale(b, y, x));
    }
    tile[c][pixel] = value;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kPackTile * kPackTile; i += kThreads) {
    const int c = i / kPackTile, pixel = i % kPackTile;
    if (group + c < side.channels && first + pixel < n) {
      planes[(b * side.channels + group + c) * n + first + pixel] = tile[c][pixel];
    }
  }
}

// The sizes of the side whose gradient is formed (row: in whole units) and of the other one.
struct GradientSides {
  int height, width, row;
  int other_height, other_width;
};

template <class T, bool kMirrored>
__global__ void __launch_bounds__(kThreads)
    local_correlation_pack_gradient_kernel(LocalCorrelationParams p, Pieces pieces, int piece_y, int piece_x,
                                           GradientSides sides, T* planes) {
  const int64_t at = flat_thread(), units = sides.row / kUnit;
  if (at >= p.batch * kSpan * kSpan * sides.height * units) return;
  const int x0 = static_cast<int>(at % units) * kUnit, y = static_cast<int>(at / units % sides.height);
  const int offset = static_cast<int>(at / units / sides.height % (kSpan * kSpan));
  const int64_t b = at / units / sides.height / (kSpan * kSpan);
  const int dy = offset / kSpan, dx = offset % kSpan;
  const int oy = pieces.first(piece_y) + dy, ox = pieces.first(piece_x) + dx, other_y = y + oy;
  Unit<T> unit;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) unit.v[i] = from_float<T>(accumulate_t<T>(0));
  if (pieces.owns(piece_y, dy) && pieces.owns(piece_x, dx) && other_y >= 0 && other_y < sides.other_height) {
    const int side = 2 * pieces.radius + 1;
    const int plane =
        kMirrored ? (pieces.radius - oy) * side + pieces.radius - ox : (pieces.radius + oy) * side + pieces.radius + ox;
    const View4& g = p.grad_out;
    const T* const from =
        static_cast<const T*>(g.data) + b * g.stride[0] + plane * g.stride[1] + (kMirrored ? other_y : y) * g.stride[2];
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      const int x = x0 + i, other_x = x + ox;
      if (x < sides.width && other_x >= 0 && other_x < sides.other_width) {
        unit.v[i] = from[(kMirrored ? other_x : x) * g.stride[3]];
      }
    }
  }
  *reinterpret_cast<Unit<T>*>(planes + at * kUnit) = unit;
}

}  // namespace cosegflow::local_correlation_cuda

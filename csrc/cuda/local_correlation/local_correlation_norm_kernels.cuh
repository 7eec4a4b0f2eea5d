// local_correlation: the norms of features for the kernels of planes, and the gradient through norms for all.
//
// A block has 32 neighbouring pixels and all channels, 32 at a time (local_correlation_feature_tile.cuh); a warp has
// every eighth channel. The 8 sums for a pixel meet in shared memory, in one order.
//   norm: 1 / max(norm, 1e-12) of each pixel. Reads the features once.
//   finish: takes the gradient to normalized features through the normalization and converts it. With the gradient g
//   and the normalized feature f: (g - <g, f> f) / norm, and g / norm where the norm was clamped. Reads both twice, the
//   second time from the caches (32 C (4 + sizeof(T)) bytes a block); without norms it converts only.
// Time not measured yet.
#pragma once

#include "local_correlation/local_correlation_feature_tile.cuh"

namespace cosegflow::local_correlation_cuda {

// The sum over a pixel's threads, to each of them.
template <class A>
__device__ __forceinline__ A sum_of_pixel(A value) {
  using Sums = A[kTileWarps][kTileSide];
  CSF_SHARED(Sums, sums);
  sums[threadIdx.x / 32][threadIdx.x % 32] = value;
  __syncthreads();
  A sum = sums[0][threadIdx.x % 32];
#pragma unroll
  for (int i = 1; i < kTileWarps; ++i) sum += sums[i][threadIdx.x % 32];
  return sum;
}

// Calls body(k, c, feature) for the thread's channels c of its pixel, and with zeros for those beyond the last one.
template <class T, class Body>
__device__ __forceinline__ void for_each_channel(const Side<T>& side, const TilePixels& at, FeatureTile<T>& tile,
                                                 Body body) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int64_t group = 0; group < side.channels; group += kTileSide) {
    __syncthreads();  // all have used the last group
    read_features(side, at.b, at.first, static_cast<unsigned>(side.width), group, tile);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kTileTimes; ++k) {
      const int c = warp + k * kTileWarps;
      body(group + c, static_cast<accumulate_t<T>>(to_float(tile.value[c][lane])));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) local_correlation_norm_kernel(Side<T> side, accumulate_t<T>* inverse_norm) {
  using Acc = accumulate_t<T>;
  CSF_SHARED(FeatureTile<T>, tile);
  const unsigned pixels = static_cast<unsigned>(side.positions()), lane = threadIdx.x % 32;
  const TilePixels at = tile_pixels(blockIdx.x, pixels);
  Acc square = Acc(0);
  for_each_channel(side, at, tile, [&](int64_t, Acc v) { square += v * v; });
  square = sum_of_pixel(square);
  if (threadIdx.x >= 32 || at.first + lane >= pixels) return;
  inverse_norm[at.b * pixels + at.first + lane] = inverse_norm_of(square);
}

// gradient, result (B, C, H, W).
template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_finish_kernel(Side<T> side, const accumulate_t<T>* gradient, T* result) {
  using Acc = accumulate_t<T>;
  CSF_SHARED(FeatureTile<T>, tile);
  const unsigned pixels = static_cast<unsigned>(side.positions()), lane = threadIdx.x % 32;
  const TilePixels at = tile_pixels(blockIdx.x, pixels);
  const bool exists = at.first + lane < pixels;
  const int64_t n = pixels, first = at.b * side.channels * n + at.first + lane;
  if (side.inverse_norm == nullptr) {
    if (!exists) return;
#pragma unroll 4
    for (int64_t c = threadIdx.x / 32; c < side.channels; c += kTileWarps) {
      result[first + c * n] = from_float<T>(gradient[first + c * n]);
    }
    return;
  }
  const Acc scale = exists ? side.inverse_norm[at.b * n + at.first + lane] : Acc(0);
  const bool clamped = !(scale < Acc(1) / Acc(1e-12));  // or NaN, and so is the gradient
  Acc inner = Acc(0);
  for_each_channel(side, at, tile, [&](int64_t c, Acc v) {
    if (exists && !clamped && c < side.channels) inner += gradient[first + c * n] * (v * scale);
  });
  inner = sum_of_pixel(inner);
  for_each_channel(side, at, tile, [&](int64_t c, Acc v) {
    if (!exists || c >= side.channels) return;
    result[first + c * n] = from_float<T>((gradient[first + c * n] - inner * (v * scale)) * scale);
  });
}

}  // namespace cosegflow::local_correlation_cuda

// Features of any strides, 32 channels x 32 pixels at a time, through shared memory: read along the channels where
// those are neighbours in memory, along the pixels elsewhere, and used either way.
#pragma once

#include "local_correlation/local_correlation_simple_kernels.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kTileSide = 32, kTileWarps = kThreads / 32, kTileTimes = kTileSide / kTileWarps;

template <class T>
struct FeatureTile {
  T value[kTileSide][kTileSide + 1];  // [channel][pixel]
};

// Channels from `group` on of the pixels from `first` on, counted along rows of `row` pixels, which may be longer than
// the image's: zeros there, and beyond the last channel. By 256 threads; the caller has barriers before and after.
template <class T>
__device__ __forceinline__ void read_features(const Side<T>& side, int64_t b, unsigned first, unsigned row,
                                              int64_t group, FeatureTile<T>& tile) {
  const int64_t step = side.features.stride[1], along = side.features.stride[3];
  const bool channels_first = (step < 0 ? -step : step) < (along < 0 ? -along : along);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int k = 0; k < kTileTimes; ++k) {
    const int other = warp + k * kTileWarps, c = channels_first ? lane : other, pixel = channels_first ? other : lane;
    const unsigned at = first + static_cast<unsigned>(pixel);
    const int y = static_cast<int>(at / row), x = static_cast<int>(at % row);
    const bool exists = group + c < side.channels && y < side.height && x < side.width;
    tile.value[c][pixel] = exists ? side.pixel(b, y, x)[(group + c) * step] : from_float<T>(accumulate_t<T>(0));
  }
}

// The image and the first pixel of a block, from a flat grid over (image, 32 pixels).
struct TilePixels {
  int64_t b;
  unsigned first;
};
__device__ __forceinline__ TilePixels tile_pixels(unsigned block, unsigned pixels) {
  const unsigned runs = (pixels + kTileSide - 1) / kTileSide;
  return {block / runs, block % runs * kTileSide};
}

}  // namespace cosegflow::local_correlation_cuda

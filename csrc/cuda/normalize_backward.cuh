// From gradients of normalized, compact features to the gradient of the feature map as the caller gave it:
//   f_hat = f * inv_norm;   g = (d - (d . f_hat) f_hat) * inv_norm
// Where the norm was clamped, f_hat is f / 1e-12 with a constant factor: g = d * inv_norm. Without normalization g = d.
//
// Block: 32 neighbouring pixels of one image, all channels. Rows of d and f are channels-last and compact, the output
// (B, C, H, W) has pixels fastest and holds every pixel; so a 32 x 32 tile is turned in shared memory: a warp reads 32
// channels of one row and writes 32 pixels of one channel. Which compact row a pixel has is found by binary search,
// since compaction keeps the raster order; pixels without a row get exactly 0 and their features are never read.
// Registers: a few scalars. Shared memory: the tile (4 KiB, 8 KiB for double) and three values per pixel.
// Two passes over the channels: the inner product d . f_hat first, then the values; d and f come from L2 the second
// time. Moves C * N * (2 * sizeof(Acc) + 3 * sizeof(T)) bytes, 6 FLOPs per value: bound by memory.
// Fraction of the bandwidth reached: not measured yet.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "cosegflow/types.h"
#include "primitives/launch.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow {

template <class T>
struct NormalizeBackwardArgs {
  using Acc = accumulate_t<T>;
  int64_t batch = 0, positions = 0;           // positions = H * W
  int64_t channels = 0, padded_channels = 0;  // of grad_f_hat and grad; the pitch of features
  bool normalize = false;
  const Acc* grad_f_hat = nullptr;  // (B, positions, channels): compact rows, only those below count[b] are read
  const T* features = nullptr;      // (B, positions, padded_channels): compact rows; read where normalize is set
  const Acc* inv_norm = nullptr;    // (B, positions): 1 / max(norm, 1e-12); read where normalize is set
  const int* index = nullptr;       // (B, positions): compact row to pixel, ascending; null: every pixel is a row
  const int* count = nullptr;       // (B): compact rows; null: every pixel is a row
  T* grad = nullptr;                // (B, channels, positions)
};

// The first of index[0 .. count) that is >= pixel.
__device__ __forceinline__ int lower_bound_row(const int* index, int count, int64_t pixel) {
  int low = 0, high = count;
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (index[middle] < pixel) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

constexpr int kNormalizeTile = 32;

template <class T>
__global__ void __launch_bounds__(256) normalize_backward_kernel(NormalizeBackwardArgs<T> args) {
  using Acc = accumulate_t<T>;
  constexpr int kTile = kNormalizeTile;
  struct Shared {
    Acc tile[kTile][kTile + 1];  // [channel][pixel]; the padding keeps the turned accesses off one bank
    Acc scale[kTile], inner[kTile];
    int row[kTile];  // -1: this pixel is excluded
  };
  CSF_SHARED(Shared, shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t tiles = (args.positions + kTile - 1) / kTile;
  const int64_t b = blockIdx.x / tiles, p0 = blockIdx.x % tiles * kTile;

  if (threadIdx.x < kTile) {
    const int64_t pixel = p0 + threadIdx.x;
    int row = -1;
    if (pixel < args.positions) {
      const int count = args.count == nullptr ? static_cast<int>(args.positions) : args.count[b];
      if (args.index == nullptr || count == args.positions) {
        row = static_cast<int>(pixel);
      } else {
        const int* index = args.index + b * args.positions;
        const int found = lower_bound_row(index, count, pixel);
        if (found < count && index[found] == pixel) row = found;
      }
    }
    shared.row[threadIdx.x] = row;
  }
  __syncthreads();

  const Acc* grad_f_hat = args.grad_f_hat + b * args.positions * args.channels;
  const T* features = args.features + b * args.positions * args.padded_channels;
  for (int i = warp; i < kTile; i += 8) {
    const int64_t row = shared.row[i];
    Acc scale = Acc(1), inner = Acc(0);
    if (args.normalize && row >= 0) {
      scale = args.inv_norm[b * args.positions + row];
      if (scale < Acc(1) / Acc(1e-12)) {  // else the norm was clamped (or is NaN, and so is all of g)
        for (int64_t c = lane; c < args.channels; c += 32) {
          inner += grad_f_hat[row * args.channels + c] * (to_float(features[row * args.padded_channels + c]) * scale);
        }
      }
    }
    inner = warp_reduce_sum(inner);
    if (lane == 0) {
      shared.scale[i] = scale;
      shared.inner[i] = inner;
    }
  }
  __syncthreads();

  T* grad = args.grad + b * args.channels * args.positions;
  for (int64_t c0 = 0; c0 < args.channels; c0 += kTile) {
    for (int i = warp; i < kTile; i += 8) {
      const int64_t row = shared.row[i], c = c0 + lane;
      Acc g = Acc(0);
      if (row >= 0 && c < args.channels) {
        g = grad_f_hat[row * args.channels + c];
        if (args.normalize) {
          const Acc scale = shared.scale[i];
          const Acc f_hat = to_float(features[row * args.padded_channels + c]) * scale;
          g = (g - shared.inner[i] * f_hat) * scale;
        }
      }
      shared.tile[lane][i] = g;
    }
    __syncthreads();
    for (int i = warp; i < kTile; i += 8) {
      const int64_t c = c0 + i, pixel = p0 + lane;
      if (c < args.channels && pixel < args.positions) {
        grad[c * args.positions + pixel] = from_float<T>(shared.tile[i][lane]);
      }
    }
    __syncthreads();
  }
}

template <class T>
Status launch_normalize_backward(const NormalizeBackwardArgs<T>& args, Stream stream) {
  const int64_t blocks = (args.positions + kNormalizeTile - 1) / kNormalizeTile * args.batch;
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {"cosegflow: the features have more than 2^31 pixels", 0};
  return launch(&normalize_backward_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
}

}  // namespace cosegflow

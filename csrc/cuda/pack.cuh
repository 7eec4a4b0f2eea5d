// Packing: the foreground pixels of a feature map become rows, channels last, that a tiled product can stream.
//
// compact: a block of 256 threads walks one image in raster order, 4 pixels a thread and step; ranks come from a scan
//   (shuffles within a warp, warp totals in shared memory), so rows keep the raster order and every run gives the same.
//   Without a mask rows are pixels, and the steps are spread over blocks. Loads of a step are in flight together; one
//   barrier a step. Moves N * (sizeof(mask) + 3 * sizeof(Acc)) bytes.
// pack_features: a block turns 32 rows x 128 channels at a time in shared memory: 16 loads a thread in flight, pixels
//   across lanes where pixels are contiguous (NCHW), channels across lanes otherwise (channels_last); written with
//   channels across lanes while the squares are summed in registers. Moves 2 * N * C * sizeof(T) bytes, 2 FLOPs each.
// Both are bound by memory; fraction of the bandwidth reached: not measured yet.
// The counts stay on the device. Rows at and beyond the count are not written: nobody may read them.
#pragma once

#include <cstdint>

#include "common/arena.h"
#include "common/half.h"
#include "cosegflow/types.h"
#include "mask_weight.cuh"
#include "primitives/launch.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow {

template <class T>
struct PackedSide {
  using Acc = accumulate_t<T>;
  int64_t batch = 0, positions = 0;           // positions = H * W: the rows an image has room for
  int64_t channels = 0, padded_channels = 0;  // padded to 8, with zeros: rows of halves start at multiples of 16 bytes
  T* features = nullptr;                      // (B, N, padded_channels), bit for bit the input's values
  Acc* inv_norm = nullptr;                    // (B, N): 1 / max(||f||, 1e-12), or 1 where normalization is off
  Acc* log_weight = nullptr;                  // (B, N)
  Acc* weight = nullptr;                      // (B, N): positive and finite
  int* index = nullptr;                       // (B, N): the pixel of a row, ascending
  int* count = nullptr;                       // (B): the rows an image has

  // The images from b on.
  PackedSide from_image(int64_t b) const {
    PackedSide s = *this;
    s.batch -= b;
    s.features += b * positions * padded_channels;
    s.inv_norm += b * positions;
    s.log_weight += b * positions;
    s.weight += b * positions;
    s.index += b * positions;
    s.count += b;
    return s;
  }
};

template <class T>
PackedSide<T> take_packed_side(Arena& arena, int64_t batch, int64_t positions, int64_t channels) {
  using Acc = accumulate_t<T>;
  PackedSide<T> s;
  s.batch = batch, s.positions = positions, s.channels = channels, s.padded_channels = (channels + 7) / 8 * 8;
  s.features = arena.take<T>(batch * positions * s.padded_channels);
  s.inv_norm = arena.take<Acc>(batch * positions);
  s.log_weight = arena.take<Acc>(batch * positions);
  s.weight = arena.take<Acc>(batch * positions);
  s.index = arena.take<int>(batch * positions);
  s.count = arena.take<int>(batch);
  return s;
}

template <class T>
size_t packed_side_bytes(int64_t batch, int64_t positions, int64_t channels) {
  Arena arena;
  take_packed_side<T>(arena, batch, positions, channels);
  return arena.bytes();
}

template <class Acc>
struct CompactArgs {
  View3 mask;
  int positions, width;
  int steps_per_block;  // all of them where there is a mask, else 1
  Acc* log_weight;
  Acc* weight;
  int* index;
  int* count;
};

constexpr int kCompactItems = 4;
constexpr int kCompactStep = 256 * kCompactItems;

template <class Acc>
__global__ void __launch_bounds__(256) compact_kernel(CompactArgs<Acc> args) {
  using Totals = int[2][8];
  CSF_SHARED(Totals, warp_total);
  const int steps = (args.positions + kCompactStep - 1) / kCompactStep;
  const int blocks = (steps + args.steps_per_block - 1) / args.steps_per_block;
  const int64_t b = blockIdx.x / blocks, row0 = b * args.positions;
  const int first = static_cast<int>(blockIdx.x % blocks) * args.steps_per_block;
  const int end = min(steps, first + args.steps_per_block);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  int base = first * kCompactStep;  // not 0 only without a mask, where every pixel is a row
  for (int step = first; step < end; ++step) {
    const int p0 = step * kCompactStep + static_cast<int>(threadIdx.x) * kCompactItems;
    MaskWeight<Acc> value[kCompactItems];
    int mine = 0;
#pragma unroll
    for (int k = 0; k < kCompactItems; ++k) {
      const int p = p0 + k;
      value[k] = excluded_weight<Acc>();
      if (p < args.positions) value[k] = mask_weight<Acc>(args.mask, b, p / args.width, p % args.width);
      mine += value[k].weight > Acc(0);
    }
    int rank = mine;  // inclusive scan over the warp
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, rank, lanes);
      if (lane >= lanes) rank += below;
    }
    int* const total = warp_total[step % 2];  // two of them: one barrier a step is enough
    if (lane == 31) total[warp] = rank;
    __syncthreads();
    int row = base + rank - mine;
#pragma unroll
    for (int w = 0; w < 8; ++w) {
      if (w < warp) row += total[w];
      base += total[w];
    }
#pragma unroll
    for (int k = 0; k < kCompactItems; ++k) {
      if (!(value[k].weight > Acc(0))) continue;
      args.index[row0 + row] = p0 + k;
      args.weight[row0 + row] = value[k].weight;
      args.log_weight[row0 + row] = value[k].log_weight;
      ++row;
    }
  }
  if (threadIdx.x == 0 && end == steps) args.count[b] = base;
}

constexpr int kPackRows = 32, kPackChannels = 128;

template <class T>
__global__ void __launch_bounds__(256)
    pack_features_kernel(View4 features, int width, bool normalize, PackedSide<T> side) {
  using Acc = accumulate_t<T>;
  // The padding keeps a column of the tile off one bank.
  constexpr int kPad = sizeof(T) < 4 ? 4 / static_cast<int>(sizeof(T)) : 1;
  using Tile = T[kPackRows][kPackChannels + kPad];
  using Offsets = int64_t[kPackRows];
  CSF_SHARED(Tile, tile);
  CSF_SHARED(Offsets, offset);
  const int64_t tiles = (side.positions + kPackRows - 1) / kPackRows;
  const int64_t b = blockIdx.x / tiles, r0 = blockIdx.x % tiles * kPackRows;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kPackRows), side.count[b] - r0));
  if (rows <= 0) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (static_cast<int>(threadIdx.x) < rows) {
    const int pixel = side.index[b * side.positions + r0 + threadIdx.x];
    offset[threadIdx.x] = b * features.stride[0] + static_cast<int64_t>(pixel / width) * features.stride[2] +
                          static_cast<int64_t>(pixel % width) * features.stride[3];
  }
  __syncthreads();

  const T* const source = static_cast<const T*>(features.data);
  const int64_t channel_stride = features.stride[1];
  const bool channels_across_lanes = channel_stride == 1 && side.channels > 1;
  T* const out = side.features + (b * side.positions + r0) * side.padded_channels;
  Acc squares[kPackRows / 8] = {};  // of rows warp, warp + 8, ...
  for (int64_t c0 = 0; c0 < side.padded_channels; c0 += kPackChannels) {
#pragma unroll
    for (int n = 0; n < kPackRows * kPackChannels / 256; ++n) {
      // A warp takes 32 pixels of one channel, or 32 channels of one pixel.
      const int unit = warp + 8 * n;
      const int r = channels_across_lanes ? unit / 4 : lane;
      const int c = channels_across_lanes ? unit % 4 * 32 + lane : unit;
      T value = from_float<T>(Acc(0));
      if (r < rows && c0 + c < side.channels) value = source[offset[r] + (c0 + c) * channel_stride];
      tile[r][c] = value;
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kPackRows / 8; ++n) {
      const int r = warp + 8 * n;
      if (r >= rows) break;
#pragma unroll
      for (int k = 0; k < kPackChannels / 32; ++k) {
        const int c = k * 32 + lane;
        if (c0 + c >= side.padded_channels) break;
        const T value = tile[r][c];
        const Acc v = to_float(value);
        squares[n] += v * v;
        out[r * side.padded_channels + c0 + c] = value;
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < kPackRows / 8; ++n) {
    const Acc norm = sqrt_of(warp_reduce_sum(squares[n]));
    const int r = warp + 8 * n;
    if (lane != 0 || r >= rows) continue;
    const Acc clamped = norm < Acc(1e-12) ? Acc(1e-12) : norm;  // keeps a NaN
    side.inv_norm[b * side.positions + r0 + r] = normalize ? Acc(1) / clamped : Acc(1);
  }
}

// Fills `side` from features (B, C, H, W) and a mask (B, H, W) that may be absent.
template <class T>
Status pack(const PackedSide<T>& side, const View4& features, const View3& mask, int64_t width, bool normalize,
            Stream stream) {
  using Acc = accumulate_t<T>;
  if (side.batch == 0) return {};
  const int64_t steps = (side.positions + kCompactStep - 1) / kCompactStep;
  const int64_t tiles = (side.positions + kPackRows - 1) / kPackRows;
  if (side.positions > INT32_MAX - kCompactStep || side.batch * tiles > INT32_MAX) {
    return {"cosegflow: the features have more than 2^31 pixels"};
  }
  const CompactArgs<Acc> args{mask,
                              static_cast<int>(side.positions),
                              static_cast<int>(width),
                              mask.data == nullptr ? 1 : static_cast<int>(steps),
                              side.log_weight,
                              side.weight,
                              side.index,
                              side.count};
  const int64_t blocks = side.batch * (mask.data == nullptr ? steps : 1);
  if (Status s = launch(&compact_kernel<Acc>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
      !s.ok()) {
    return s;
  }
  return launch(&pack_features_kernel<T>, dim3(static_cast<unsigned>(side.batch * tiles)), dim3(256), 0, stream,
                features, static_cast<int>(width), normalize, side);
}

}  // namespace cosegflow

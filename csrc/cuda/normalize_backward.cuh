// From gradients of normalized, compact features to the gradient of the feature map as the caller gave it:
//   f_hat = f * inv_norm;   g = (d - (d . f_hat) f_hat) * inv_norm
// Where the norm was clamped, f_hat is f / 1e-12 with a constant factor: g = d * inv_norm. Without normalization g = d.
// d may be a sum of parts, may carry the factor inv_norm already (`folded`), and g may be scaled per image (`unscale`).
//
// Rows of d and f are channels-last and compact, the output (B, C, H, W) has pixels fastest and holds every pixel, so a
// tile is turned in shared memory.
// Block: 64 bytes of neighbouring pixels (32 halves, 16 floats, 8 doubles) of one image, 8 warps, all channels.
//   A warp takes a row: its lanes load d and f by 16 and 8 (16 for float) bytes, all of them before the first is used,
//   reduce d . f_hat by shuffles, and write g in the output's type to the tile [pixel][channel]. The block then reads
//   8 bytes of neighbouring channels from as many pixels as 16 bytes hold, and stores runs of 64 bytes.
// Registers hold a row of up to 2048 channels of halves, 1024 of float, 512 of double. Wider rows, and rows that are
//   not aligned, are read twice, the second time from L1 or L2, in spans of the tile.
// Shared memory: the tile, in the output's type because that halves it: 64 * C bytes, 64 KiB for C = 1024 of halves (3
//   blocks an SM of sm_90, 2 of sm_80, 1 of sm_75) and never more. Rows that are over half of the widest get tiles of
//   half as many pixels and runs of 32 bytes. Chunks of 8 bytes are swizzled instead of padded: chunk u of pixel p lies
//   at u ^ (p * sizeof(T) / 2 % 16), so that writes, and reads of 1, 2 or 16 bytes' worth of pixels, touch a bank once.
// Which compact row a pixel has is found by a search 32 probes wide, since compaction keeps the raster order; pixels
// without a row get exactly 0 and their features are never read.
// Moves N * C * (partials * sizeof(Acc) + 2 * sizeof(T)) bytes, 6 FLOPs per value: bound by memory. For B = 8,
// 64 x 64 pixels, bfloat16, C = 1024: 268 MB, 63 us at 4.25 TB/s. Fraction of the bandwidth reached: not measured yet.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/round_up.h"
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
  bool folded = false;                       // grad_f_hat carries the factor inv_norm of its row already
  const Acc* grad_f_hat = nullptr;           // (partials, B, grad_rows, channels): only rows below count[b] are read
  int64_t grad_rows = 0;                     // rows that an image has room for; 0: positions
  int64_t partials = 1, partial_stride = 0;  // d is their sum, added in order; elements from one to the next
  const T* features = nullptr;  // (B, positions, padded_channels): compact rows; read where normalize is set
  // 1 / max(norm, 1e-12) of row r of image b is inv_norm[(b * inv_norm_pitch + r) * inv_norm_stride]; read where
  // normalize is set.
  const Acc* inv_norm = nullptr;
  int64_t inv_norm_pitch = 0, inv_norm_stride = 1;  // a pitch of 0: positions
  const float* unscale = nullptr;                   // (B): every g is multiplied with it; null: 1
  const int* index = nullptr;                       // (B, positions): compact row to pixel, ascending; null: all pixels
  const int* count = nullptr;                       // (B): compact rows; null: every pixel is a row
  T* grad = nullptr;                                // (B, channels, positions)
};

namespace normalize_backward {

// Neighbours that are moved as one.
template <class V, int kCount>
struct alignas(sizeof(V) * kCount) Vector {
  V value[kCount];
};

// Four (two of double) neighbours of a row of f as they lie in memory, in whole registers.
template <class T>
struct Packed {
  Vector<T, 16 / sizeof(accumulate_t<T>)> lanes{};
  __device__ __forceinline__ void set(int e, T value) { lanes.value[e] = value; }
  __device__ __forceinline__ accumulate_t<T> get(int e) const { return to_float(lanes.value[e]); }
};
template <class T>
struct PackedHalves {
  Vector<uint32_t, 2> lanes{};
  __device__ __forceinline__ void set(int e, T value) {
    lanes.value[e / 2] |= static_cast<uint32_t>(value.bits) << e % 2 * 16;
  }
  __device__ __forceinline__ float get(int e) const {
    return to_float(T{static_cast<uint16_t>(lanes.value[e / 2] >> e % 2 * 16)});
  }
};
template <>
struct Packed<Half> : PackedHalves<Half> {};
template <>
struct Packed<BFloat16> : PackedHalves<BFloat16> {};

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
struct Shape {
  using Acc = accumulate_t<T>;
  static constexpr int kBytes = static_cast<int>(sizeof(T));
  static constexpr int kPixels = 64 / kBytes;                            // of a tile, at most
  static constexpr int kTileChannels = 2048 / kBytes;                    // that a tile of kPixels holds
  static constexpr int kLane = 16 / static_cast<int>(sizeof(Acc));       // channels that a lane loads at once
  static constexpr int kUnit = 8 / kBytes;                               // channels of a chunk of the tile
  static constexpr int kRun = 16 / kBytes;                               // pixels of the widest store
  static constexpr int kMostVectors = kBytes == 2 ? 16 : 8;              // of a row in registers
  static constexpr int kSpanVectors = kTileChannels / (32 * kLane) / 2;  // of a step through a wider row
};

// How the host cuts the work; the same for all blocks.
struct Tiling {
  int pixels;         // of a tile: a power of two
  int pitch;          // elements from one pixel of the tile to the next, a multiple of 128 bytes
  int store;          // pixels that a store takes
  bool vectors;       // rows of d and f are aligned to what a lane loads
  int64_t tiles;      // of an image
  int64_t grad_rows;  // those of the arguments, without the zeros that stand for something else
  int64_t inv_norm_pitch;
};

// Where chunk `unit` of a pixel lies in the tile, in chunks.
template <class T>
__device__ __forceinline__ int swizzle(int pixel, int unit) {
  return unit ^ (pixel * (static_cast<int>(sizeof(T)) / 2) % 16);
}

// The compact row of pixel p0 + lane, -1 where it is excluded. Every lane of the warp must call it.
template <class T>
__device__ __forceinline__ int row_of_pixel(const NormalizeBackwardArgs<T>& args, int64_t b, int p0, int lane) {
  const int positions = static_cast<int>(args.positions);
  const int count = args.count == nullptr ? positions : args.count[b];
  if (args.index == nullptr || count == positions) return p0 + lane < count ? p0 + lane : -1;
  const int* const index = args.index + b * args.positions;
  // The first row whose pixel is >= p0 is within [low, high]: at most p0 rows come before it, and at most
  // positions - count pixels have been left out.
  int low = max(0, p0 - (positions - count)), high = min(count, p0);
  while (low < high) {
    const int step = (high - low + 31) / 32, at = low + lane * step;
    const int before = __popc(__ballot_sync(kAllLanes, at < high && index[at] < p0));  // probes, in order
    high = before == 0 ? low : min(high, low + before * step);
    low = before == 0 ? low : low + (before - 1) * step + 1;
  }
  const int offset = low + lane < count ? index[low + lane] - p0 : 32;
  unsigned present = offset < 32 ? 1u << offset : 0u;
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) present |= __shfl_xor_sync(kAllLanes, present, lanes);
  return (present >> lane & 1u) != 0 ? low + __popc(present & ((1u << lane) - 1u)) : -1;
}

// The lane's part of a row; `left` channels are there from its first one on, or more.
template <class Acc, int kLane>
__device__ __forceinline__ Vector<Acc, kLane> load_gradient(const Acc* from, int left, bool vectors) {
  Vector<Acc, kLane> v{};
  if (vectors) {
    if (left > 0) v = *reinterpret_cast<const Vector<Acc, kLane>*>(from);
  } else {
#pragma unroll
    for (int e = 0; e < kLane; ++e) {
      if (e < left) v.value[e] = from[e];
    }
  }
  return v;
}

template <class T>
__device__ __forceinline__ Packed<T> load_features(const T* from, int left, bool vectors) {
  Packed<T> f;
  if (vectors) {
    if (left > 0) f.lanes = *reinterpret_cast<const decltype(f.lanes)*>(from);
  } else {
#pragma unroll
    for (int e = 0; e < Shape<T>::kLane; ++e) {
      if (e < left) f.set(e, from[e]);
    }
  }
  return f;
}

// kVectors * 32 * kLane channels of a row: those of this lane.
template <class T, int kVectors>
struct Row {
  using Acc = accumulate_t<T>;
  static constexpr int kLane = Shape<T>::kLane;
  Vector<Acc, kLane> d[kVectors];
  Packed<T> f[kVectors];

  // From the pointers, which are those of the lane's first channel; `left` channels are there from it on.
  __device__ __forceinline__ void read(const NormalizeBackwardArgs<T>& args, bool vectors, const Acc* grad,
                                       const T* features, int left) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int c = v * 32 * kLane;
      d[v] = load_gradient<Acc, kLane>(grad + c, left - c, vectors);
    }
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int c = v * 32 * kLane;
      f[v] = Packed<T>{};
      if (args.normalize) f[v] = load_features(features + c, left - c, vectors);
    }
    if (args.partials == 1) return;
    constexpr int kGroup = kVectors < 4 ? kVectors : 4;  // loads in flight: more would not fit the registers
#pragma unroll
    for (int first = 0; first < kVectors; first += kGroup) {
      const Acc* from = grad + first * 32 * kLane;
#pragma unroll 1
      for (int64_t part = 1; part < args.partials; ++part) {
        from += args.partial_stride;
        Vector<Acc, kLane> more[kGroup];
#pragma unroll
        for (int v = 0; v < kGroup; ++v) {
          const int c = v * 32 * kLane;
          more[v] = load_gradient<Acc, kLane>(from + c, left - first * 32 * kLane - c, vectors);
        }
#pragma unroll
        for (int v = 0; v < kGroup; ++v) {
#pragma unroll
          for (int e = 0; e < kLane; ++e) d[first + v].value[e] += more[v].value[e];
        }
      }
    }
  }

  // This lane's part of d . f_hat.
  __device__ __forceinline__ Acc inner(Acc inv_norm) const {
    Acc sum = Acc(0);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
#pragma unroll
      for (int e = 0; e < kLane; ++e) sum += d[v].value[e] * (f[v].get(e) * inv_norm);
    }
    return sum;
  }

  // g to the tile; `tile` is the pixel's first chunk and `unit` the lane's first one.
  __device__ __forceinline__ void write(T* tile, int pixel, int unit, int left, Acc inner, Acc inv_norm,
                                        Acc scale) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (v * 32 * kLane >= left) continue;
      Vector<T, kLane> g;
#pragma unroll
      for (int e = 0; e < kLane; ++e) {
        g.value[e] = from_float<T>((d[v].value[e] - inner * (f[v].get(e) * inv_norm)) * scale);
      }
      const int at = swizzle<T>(pixel, unit + v * 32 * kLane / Shape<T>::kUnit);
      *reinterpret_cast<Vector<T, kLane>*>(tile + at * Shape<T>::kUnit) = g;
    }
  }
};

// Writes `channels` planes of the tile, kStore pixels a store. `grad` is the first pixel of the first plane, and `live`
// pixels are there from it on.
template <class T, int kStore>
__device__ __forceinline__ void store_tile(const T* tile, const Tiling& tiling, T* grad, int64_t positions, int live,
                                           int channels) {
  constexpr int kUnit = Shape<T>::kUnit;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int units = 32 * kStore / tiling.pixels;  // chunks that a warp takes at a time
  const int pixel = lane / units * kStore;
  const bool inside = pixel < live;
  for (int unit = warp * units + lane % units; unit * kUnit < channels; unit += kWarps * units) {
    Vector<T, kUnit> in[kStore];
#pragma unroll
    for (int k = 0; k < kStore; ++k) {
      const T* const from = tile + (pixel + k) * tiling.pitch + swizzle<T>(pixel + k, unit) * kUnit;
      in[k] = *reinterpret_cast<const Vector<T, kUnit>*>(from);
    }
    T* const to = grad + unit * kUnit * positions + pixel;
#pragma unroll
    for (int c = 0; c < kUnit; ++c) {
      Vector<T, kStore> out;
#pragma unroll
      for (int k = 0; k < kStore; ++k) out.value[k] = in[k].value[c];
      if (inside && unit * kUnit + c < channels) *reinterpret_cast<Vector<T, kStore>*>(to + c * positions) = out;
    }
  }
}

template <class T>
__device__ __forceinline__ void store_tile(const T* tile, const Tiling& tiling, T* grad, int64_t positions, int live,
                                           int channels) {
  if (tiling.store == Shape<T>::kRun) {
    store_tile<T, Shape<T>::kRun>(tile, tiling, grad, positions, live, channels);
  } else if (tiling.store == 2) {
    store_tile<T, 2>(tile, tiling, grad, positions, live, channels);
  } else {
    store_tile<T, 1>(tile, tiling, grad, positions, live, channels);
  }
}

// What the registers are budgeted for.
template <class T>
constexpr int blocks_per_multiprocessor(int vectors) {
  if (vectors <= 2) return sizeof(T) == 8 ? 3 : 4;
  return sizeof(T) == 2 && vectors <= 8 ? 3 : 2;
}

// kWhole: a row is within kVectors loads a lane.
template <class T, int kVectors, bool kWhole>
__global__ void __launch_bounds__(kThreads, blocks_per_multiprocessor<T>(kVectors))
    normalize_backward_kernel(NormalizeBackwardArgs<T> args, Tiling tiling) {
  using Acc = accumulate_t<T>;
  constexpr int kLane = Shape<T>::kLane, kStep = kVectors * 32 * kLane, kSpan = Shape<T>::kTileChannels;
  CSF_DYNAMIC_SHARED(T, tile);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int channels = static_cast<int>(args.channels);
  const int64_t b = blockIdx.x / tiling.tiles;
  const int p0 = static_cast<int>(blockIdx.x % tiling.tiles) * tiling.pixels;
  const int live = static_cast<int>(args.positions) - p0;
  const int my_row = row_of_pixel(args, b, p0, lane);
  const Acc unscale = args.unscale == nullptr ? Acc(1) : Acc(args.unscale[b]);
  T* const grad = args.grad + b * args.channels * args.positions + p0;
  const Acc* const grads = args.grad_f_hat + b * tiling.grad_rows * args.channels + lane * kLane;
  const T* const features = args.features + b * args.positions * args.padded_channels + lane * kLane;

  Acc kept = Acc(0);  // d . f_hat of the warp's n-th row is in lane n
  const auto inv_norm_of = [&](int row) {
    return args.normalize ? args.inv_norm[(b * tiling.inv_norm_pitch + row) * args.inv_norm_stride] : Acc(1);
  };
  // Not of a row whose norm was clamped. (Of NaN neither, and so is all of g.)
  const auto projects = [&](Acc inv_norm) { return args.normalize && inv_norm < Acc(1) / Acc(1e-12); };

  if (!kWhole && args.normalize) {
    for (int n = 0; n * kWarps + warp < tiling.pixels; ++n) {
      const int row = __shfl_sync(kAllLanes, my_row, n * kWarps + warp);
      if (row < 0) continue;
      const Acc inv_norm = inv_norm_of(row);
      if (!projects(inv_norm)) continue;
      Acc sum = Acc(0);
      for (int c = 0; c < channels; c += kStep) {
        Row<T, kVectors> part;
        part.read(args, kWhole || tiling.vectors, grads + row * args.channels + c,
                  features + row * args.padded_channels + c, channels - c - lane * kLane);
        sum += part.inner(inv_norm);
      }
      sum = warp_reduce_sum(sum);
      if (lane == n) kept = sum;
    }
  }
  for (int c0 = 0; c0 < channels; c0 += kSpan) {  // once for whole rows
    const int end = kWhole ? channels : min(channels, c0 + kSpan);
    for (int n = 0; n * kWarps + warp < tiling.pixels; ++n) {
      const int pixel = n * kWarps + warp, row = __shfl_sync(kAllLanes, my_row, pixel);
      const Acc known = __shfl_sync(kAllLanes, kept, n);
      T* const to = tile + pixel * tiling.pitch;
      const Acc inv_norm = row < 0 ? Acc(1) : inv_norm_of(row);
      const Acc scale = row < 0 ? Acc(1) : args.folded ? unscale : inv_norm * unscale;
      const int64_t at = max(row, 0);
      for (int c = c0; c < end; c += kStep) {
        Row<T, kVectors> part;
        const int left = channels - c - lane * kLane;
        part.read(args, kWhole || tiling.vectors, grads + at * args.channels + c,
                  features + at * args.padded_channels + c, row < 0 ? 0 : left);
        Acc inner = known;
        if (kWhole) inner = projects(inv_norm) ? warp_reduce_sum(part.inner(inv_norm)) : Acc(0);
        part.write(to, pixel, ((c - c0) + lane * kLane) / Shape<T>::kUnit, left, inner, inv_norm, scale);
        if (kWhole) break;
      }
    }
    __syncthreads();
    store_tile(tile, tiling, grad + c0 * args.positions, args.positions, live, end - c0);
    if (kWhole) return;
    __syncthreads();
  }
}

}  // namespace normalize_backward

template <class T>
Status launch_normalize_backward(const NormalizeBackwardArgs<T>& args, Stream stream) {
  using namespace normalize_backward;
  using Acc = accumulate_t<T>;
  using Shape = normalize_backward::Shape<T>;
  const auto aligned = [](const void* p, int64_t elements, size_t element, size_t to) {
    return reinterpret_cast<uintptr_t>(p) % to == 0 && static_cast<size_t>(elements) * element % to == 0;
  };
  constexpr int kBlockChannels = 32 * Shape::kLane;  // that a warp loads at once
  Tiling tiling;
  tiling.vectors =
      aligned(args.grad_f_hat, args.channels, sizeof(Acc), 16) &&
      (args.partials == 1 || aligned(args.grad_f_hat, args.partial_stride, sizeof(Acc), 16)) &&
      (!args.normalize || aligned(args.features, args.padded_channels, sizeof(T), Shape::kLane * sizeof(T)));
  const bool whole = tiling.vectors && args.channels <= kBlockChannels * Shape::kMostVectors;
  tiling.pixels = whole && args.channels > Shape::kTileChannels ? Shape::kPixels / 2 : Shape::kPixels;
  const int64_t in_tile = whole || args.channels < Shape::kTileChannels ? args.channels : Shape::kTileChannels;
  tiling.pitch = static_cast<int>(round_up(in_tile, 128 / Shape::kBytes));
  tiling.store = aligned(args.grad, args.positions, sizeof(T), 16)              ? Shape::kRun
                 : aligned(args.grad, args.positions, sizeof(T), 2 * sizeof(T)) ? 2
                                                                                : 1;
  tiling.tiles = ceil_div(args.positions, tiling.pixels);
  tiling.grad_rows = args.grad_rows == 0 ? args.positions : args.grad_rows;
  tiling.inv_norm_pitch = args.inv_norm_pitch == 0 ? args.positions : args.inv_norm_pitch;

  const int64_t blocks = tiling.tiles * args.batch;
  if (blocks == 0 || args.channels == 0) return {};
  if (blocks > INT32_MAX || args.positions > INT32_MAX - Shape::kPixels) {
    return {"cosegflow: the features have more than 2^31 pixels", 0};
  }
  const auto run = [&](void (*kernel)(NormalizeBackwardArgs<T>, Tiling)) {
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                  static_cast<size_t>(tiling.pixels) * tiling.pitch * sizeof(T), stream, args, tiling);
  };
  if (!whole) return run(&normalize_backward_kernel<T, Shape::kSpanVectors, false>);
  if (args.channels <= 2 * kBlockChannels) return run(&normalize_backward_kernel<T, 2, true>);
  if (args.channels <= 8 * kBlockChannels) return run(&normalize_backward_kernel<T, 8, true>);
  return run(&normalize_backward_kernel<T, Shape::kMostVectors, true>);
}

}  // namespace cosegflow

// local_correlation without flow, tiled.
//
// A block has a tile of 32 x 4 pixels of a and a piece of the window of up to 9 x 9 offsets (all of it for radius 4). A
// warp has one row of offsets; a thread has 4 neighbouring pixels and the 9 offsets of that row: 36 sums in registers.
// Shared memory holds kChannels channels of the tile (4 KiB in float32) and of its halo in b (40 x 12 pixels, 15 KiB),
// already in the accumulator's type. Per channel a thread reads 4 + 12 values as vectors of 16 bytes for 36 FMAs; the
// 8 lanes of a phase read 128 neighbouring bytes, so banks do not conflict. Not pipelined: load, barrier, compute,
// barrier; several blocks share a multiprocessor.
// Must move (B C (Ha Wa + Hb Wb) + B (2r+1)^2 Ha Wa) elements; the halo makes that up to 4.75 reads of b, most of them
// from L2. 2 B (2r+1)^2 C Ha Wa FLOPs. Fraction of the limit reached: not measured yet.
#pragma once

#include "local_correlation/local_correlation_simple_kernels.cuh"

namespace cosegflow::local_correlation_cuda {

struct TileShape {
  static constexpr int kColumns = 32, kRows = 4;  // of pixels of a
  static constexpr int kShifts = 9;               // offsets along x and along y
  static constexpr int kPixels = 4;               // of a thread
  static constexpr int kChannels = 8;             // at a time
  static constexpr int kHaloColumns = kColumns + kShifts - 1, kHaloRows = kRows + kShifts - 1;
  static constexpr int kMaxThreads = 32 * kShifts;
  static_assert(kColumns / kPixels * kRows == 32, "a warp covers the tile");
};

template <class Acc>
struct TileMemory {
  alignas(16) Acc a[TileShape::kChannels][TileShape::kRows][TileShape::kColumns];
  alignas(16) Acc b[TileShape::kChannels][TileShape::kHaloRows][TileShape::kHaloColumns];
};

// kCount values from 16-byte aligned shared memory.
template <int kCount, class Acc>
__device__ __forceinline__ void read_vectors(const Acc* from, Acc (&to)[kCount]) {
  constexpr int kLanes = 16 / sizeof(Acc);
  struct alignas(16) Vector {
    Acc v[kLanes];
  };
#pragma unroll
  for (int k = 0; k < kCount; k += kLanes) {
    const Vector vector = *reinterpret_cast<const Vector*>(from + k);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[k + i] = vector.v[i];
  }
}

// kRows x kColumns pixels from (y0, x0) on, of channels [c0, c0 + kChannels), 0 outside of the image.
template <int kRows, int kColumns, class T>
__device__ __forceinline__ void load_tile(const Side<T>& side, int64_t b, int64_t c0, int y0, int x0,
                                          accumulate_t<T>* to) {
  using Acc = accumulate_t<T>;
  for (int i = static_cast<int>(threadIdx.x); i < TileShape::kChannels * kRows * kColumns;
       i += static_cast<int>(blockDim.x)) {
    const int64_t c = c0 + i / (kRows * kColumns);
    const int y = y0 + i / kColumns % kRows, x = x0 + i % kColumns;
    const bool exists = c < side.channels && side.inside(y, x);
    to[i] = exists ? static_cast<Acc>(to_float(side.pixel(b, y, x)[c * side.features.stride[1]])) : Acc(0);
  }
}

template <class T>
__global__ void __launch_bounds__(TileShape::kMaxThreads)
    local_correlation_tile_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other) {
  using Acc = accumulate_t<T>;
  using S = TileShape;
  CSF_SHARED(TileMemory<Acc>, memory);
  const int side = static_cast<int>(p.side()), radius = static_cast<int>(p.radius);
  const int pieces = (side + S::kShifts - 1) / S::kShifts;
  const int tiles_x = (a.width + S::kColumns - 1) / S::kColumns, tiles_y = (a.height + S::kRows - 1) / S::kRows;
  int block = static_cast<int>(blockIdx.x);  // (image, tile, piece of the window)
  const int shift_x = block % pieces * S::kShifts;
  block /= pieces;
  const int shift_y = block % pieces * S::kShifts;
  block /= pieces;
  const int x0 = block % tiles_x * S::kColumns;
  block /= tiles_x;
  const int y0 = block % tiles_y * S::kRows;
  const int64_t b = block / tiles_y;

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row = lane / (S::kColumns / S::kPixels), column = lane % (S::kColumns / S::kPixels) * S::kPixels;
  Acc sum[S::kPixels][S::kShifts] = {};
  for (int64_t c0 = 0; c0 < p.channels; c0 += S::kChannels) {
    load_tile<S::kRows, S::kColumns>(a, b, c0, y0, x0, &memory.a[0][0][0]);
    load_tile<S::kHaloRows, S::kHaloColumns>(other, b, c0, y0 + shift_y - radius, x0 + shift_x - radius,
                                             &memory.b[0][0][0]);
    __syncthreads();
#pragma unroll 1
    for (int c = 0; c < S::kChannels; ++c) {
      Acc source[S::kPixels], target[S::kPixels + S::kShifts - 1];
      read_vectors(&memory.a[c][row][column], source);
      read_vectors(&memory.b[c][row + warp][column], target);
#pragma unroll
      for (int i = 0; i < S::kPixels; ++i) {
#pragma unroll
        for (int s = 0; s < S::kShifts; ++s) sum[i][s] += source[i] * target[i + s];
      }
    }
    __syncthreads();
  }

  const int dy = shift_y + warp, y = y0 + row, yb = y + dy - radius;
  if (dy >= side || y >= a.height) return;
  T* const out = static_cast<T*>(p.out) + ((b * side + dy) * side * a.height + y) * static_cast<int64_t>(a.width);
#pragma unroll
  for (int i = 0; i < S::kPixels; ++i) {
    const int x = x0 + column + i;
    if (x >= a.width) break;
    const Acc scale = a.scale(b, y, x);
#pragma unroll
    for (int s = 0; s < S::kShifts; ++s) {
      const int dx = shift_x + s, xb = x + dx - radius;
      if (dx >= side) break;
      const Acc value = other.inside(yb, xb) ? sum[i][s] * scale * other.scale(b, yb, xb) : Acc(0);
      out[dx * a.positions() + x] = from_float<T>(value);
    }
  }
}

}  // namespace cosegflow::local_correlation_cuda

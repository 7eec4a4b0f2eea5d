// local_correlation without flow, forward of float16 and bfloat16 on tensor cores.
//
// A block has a tile of 32 columns x kRows rows of a and a piece of 9 x 9 offsets. A warp has 8 columns of a pair of
// rows, the 16 rows of its products; their targets are 10 rows x 16 columns of b, 20 tiles of 8. All 160 products of a
// pixel with them are formed, of which 81 are wanted: 80 sums a thread, in registers, float32.
// Shared memory: 3 stages of 16 channels of the tile and of its halo, as they lie in memory (a plane of pixels for
// each channel), so ldmatrix transposes both operands; planes are an odd multiple of 16 bytes apart, so banks do not
// conflict. Copies (cp.async, 8 bytes) run two stages ahead. At the end the stages' memory takes the tile's 81 planes
// of halves, and these leave 8 bytes a lane.
// Per 16 channels a warp has 20 mma.m16n8k16 (about 31 clocks of a multiprocessor) and 11 ldmatrix.x4 (44 passes of
// shared memory).
// Must move (B C (Ha Wa + Hb Wb) + B (2r+1)^2 Ha Wa) 2 bytes; b is read 2.5 times (kRows 8), most of it from L2. Time
// not measured yet: docs/kernels/local_correlation.md has the prediction.
#pragma once

#include "local_correlation/local_correlation_forward_stages.cuh"
#include "primitives/mma.cuh"

namespace cosegflow::local_correlation_cuda {

// What forward and backward on tensor cores have in common: the products of a warp's 2 x 8 pixels with 10 x 16 others.
template <int kTileRows>
struct MmaTile {
  static constexpr int kRows = kTileRows;
  static constexpr int kHaloRows = kRows + kSpan - 1;
  static constexpr int kWarps = kRows / 2 * (kColumns / 8), kThreads = 32 * kWarps;
  static constexpr int kLines = kSpan + 1;                         // rows of the halo that a warp meets
  static constexpr int kChannels = 16;                             // of a stage
  static constexpr int kHaloPlane = kHaloRows * kHaloColumns + 8;  // halves; bytes: 16 modulo 128, or 48
  static constexpr int kPlane = kRows * kColumns + 8;              // the same
  static_assert(kPlane % 64 == 8, "a lane's (offset, pixel) are in banks of their own");
};

// A thread's place in the products of its warp, as mma deals them out (primitives/mma.cuh).
struct MmaLane {
  int pair, column;  // of the warp, in the tile: its rows are 2 pair and 2 pair + 1, its columns begin at `column`
  int g, q;          // the thread's pixels are in column g, its targets in columns 8 h + 2 q + e of 16

  __device__ __forceinline__ MmaLane() {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    pair = warp / (kColumns / 8), column = warp % (kColumns / 8) * 8;
    g = lane / 4, q = lane % 4;
  }
  // The offset along x, counted in the piece, of target column 8 h + 2 q + e: in the window where it is 0 .. 8.
  __device__ __forceinline__ int shift(int h, int e) const { return 8 * h + 2 * q + e - g; }
  __device__ __forceinline__ bool in_window(int h, int e) const {
    return static_cast<unsigned>(shift(h, e)) < static_cast<unsigned>(kSpan);
  }
};

template <class T, int kRows>
struct ForwardMma : MmaTile<kRows> {
  using M = MmaTile<kRows>;
  static constexpr int kStages = 3;
  struct Stage {
    T a[M::kChannels][M::kPlane];
    T b[M::kChannels][M::kHaloPlane];
  };
  union Shared {
    alignas(16) Stage stage[kStages];
    T window[kWindow][M::kPlane];  // [offset][pixel of the tile]
  };
};

template <class T, int kRows>
__global__ void __launch_bounds__(MmaTile<kRows>::kThreads)
    local_correlation_forward_mma_kernel(Planes<T> a, Planes<T> other, int64_t channels, WindowOutput<T> output) {
  using S = ForwardMma<T, kRows>;
  using Shared = typename S::Shared;
  CSF_DYNAMIC_SHARED(Shared, shared);
  const TileOfBlock tile = tile_of_block<kRows>(output.height, output.width, output.pieces.count());
  const int first_y = output.pieces.first(tile.piece_y), first_x = output.pieces.first(tile.piece_x);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  ForwardStages<T, S> stages(a, other, channels, tile, first_y, first_x, shared->stage);

  const MmaLane at;
  // ldmatrix: lanes 8i to 8i + 7 address the channels of tile i; a's are (row 0, row 1) x (channels 0-7, 8-15), b's
  // (channels 0-7, 8-15) x (columns 0-7, 8-15).
  const int channel_a = lane % 8 + lane / 16 * 8, channel_b = lane % 16;
  const int pixel_a = (2 * at.pair + lane / 8 % 2) * kColumns + at.column;
  const int pixel_b = 2 * at.pair * kHaloColumns + at.column + lane / 16 * 8;
  float sum[S::kLines][2][4] = {};
#pragma unroll 1
  for (int64_t c0 = 0; c0 < channels; c0 += S::kChannels) {
    const typename S::Stage& stage = stages.take(c0);
    uint32_t of_a[4];
    ldmatrix_x4_trans(of_a, &stage.a[channel_a][pixel_a]);
#pragma unroll
    for (int line = 0; line < S::kLines; ++line) {
      uint32_t of_b[4];
      ldmatrix_x4_trans(of_b, &stage.b[channel_b][pixel_b + line * kHaloColumns]);
      const uint32_t left[2] = {of_b[0], of_b[1]}, right[2] = {of_b[2], of_b[3]};
      mma_m16n8k16<T>(sum[line][0], of_a, left);
      mma_m16n8k16<T>(sum[line][1], of_a, right);
    }
  }
  stages.end();
  __syncthreads();  // the stages' memory is free

#pragma unroll
  for (int line = 0; line < S::kLines; ++line) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int h = i / 4, row = i / 2 % 2, e = i % 2, dy = line - row;
      if (dy < 0 || dy >= kSpan || !at.in_window(h, e)) continue;
      const int dx = at.shift(h, e), y = tile.y + 2 * at.pair + row, x = tile.x + at.column + at.g;
      const float product = output.product(sum[line][h][2 * row + e], tile.b, y, x, y + first_y + dy, x + first_x + dx);
      shared->window[dy * kSpan + dx][(2 * at.pair + row) * kColumns + at.column + at.g] = from_float<T>(product);
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kWindow * kRows * kTileUnits; i += S::kThreads) {
    const int offset = i / (kRows * kTileUnits), pixel = i % (kRows * kTileUnits) * kUnit;
    const int dy = offset / kSpan, dx = offset % kSpan, y = tile.y + pixel / kColumns, x = tile.x + pixel % kColumns;
    if (y >= output.height || !output.pieces.owns(tile.piece_y, dy) || !output.pieces.owns(tile.piece_x, dx)) continue;
    output.store(output.plane(tile, dy, dx), y, x, *reinterpret_cast<const Unit<T>*>(&shared->window[offset][pixel]));
  }
}

}  // namespace cosegflow::local_correlation_cuda

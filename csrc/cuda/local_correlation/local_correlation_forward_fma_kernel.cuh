// local_correlation without flow, forward of float32 and float64 by multiply-adds.
//
// A block has a tile of 32 columns x 2 kPairs rows of a and a piece of 9 x 9 offsets. A thread has 4 neighbouring
// columns of a pair of rows and meets them with one row of b: that row is the pair's two rows shifted by dy and dy -
// 1, so its 12 values serve both; 72 sums in registers. A pair meets 10 rows of b, of which the first and the last
// serve one row only: 9 of 10 sums are wanted.
// Shared memory: 3 stages of kChannels channels of the tile and of its halo; copies (cp.async) run two stages ahead.
// For a channel a thread reads 8 + 12 values as 5 vectors of 16 bytes for 72 FMAs: 20 passes of shared memory a warp
// where 18 clocks of FMAs are (4 warps a clock); neighbouring lanes have one pair and four rows of b, so the reads of
// a are of few addresses, and banks do not conflict (rows of b are 40 values apart, 8 modulo 32).
// Must move (B C (Ha Wa + Hb Wb) + B (2r+1)^2 Ha Wa) elements; with its halo b is read 2.5 times (kPairs 4), most of
// it from L2. 2 B (2r+1)^2 C Ha Wa FLOPs. Time not measured yet: docs/kernels/local_correlation.md has the prediction.
#pragma once

#include "local_correlation/local_correlation_forward_stages.cuh"

namespace cosegflow::local_correlation_cuda {

template <class T, int kPairs>
struct ForwardFma {
  static constexpr int kRows = 2 * kPairs, kHaloRows = kRows + kSpan - 1;
  static constexpr int kLines = kSpan + 1;                  // rows of b that a pair meets
  static constexpr int kWarps = (kPairs * kLines + 3) / 4;  // 8 lanes for each
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kStages = 3, kChannels = sizeof(T) == 8 ? 4 : 8;
  struct Stage {
    T a[kChannels][kRows * kColumns];
    T b[kChannels][kHaloRows * kHaloColumns];
  };
  struct Shared {
    alignas(16) Stage stage[kStages];
  };
};

template <class T, int kPairs>
__global__ void __launch_bounds__(ForwardFma<T, kPairs>::kThreads, 1)
    local_correlation_forward_fma_kernel(Planes<T> a, Planes<T> other, int64_t channels, WindowOutput<T> output) {
  using S = ForwardFma<T, kPairs>;
  using Shared = typename S::Shared;
  CSF_DYNAMIC_SHARED(Shared, shared);
  const TileOfBlock tile = tile_of_block<S::kRows>(output.height, output.width, output.pieces.count());
  const int first_y = output.pieces.first(tile.piece_y), first_x = output.pieces.first(tile.piece_x);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  ForwardStages<T, S> stages(a, other, channels, tile, first_y, first_x, shared->stage);

  const int item = warp * 4 + lane % 4, column = lane / 4 * kUnit;
  const bool works = item < kPairs * S::kLines;
  const int pair = works ? item / S::kLines : 0, line = works ? item % S::kLines : 0;
  T sum[2][kUnit][kSpan] = {};
#pragma unroll 1
  for (int64_t c0 = 0; c0 < channels; c0 += S::kChannels) {
    const typename S::Stage& stage = stages.take(c0);
#pragma unroll 2
    for (int c = 0; c < S::kChannels; ++c) {
      T source[2][kUnit], target[kUnit + kSpan - 1];
      read_vectors(&stage.a[c][2 * pair * kColumns + column], source[0]);
      read_vectors(&stage.a[c][(2 * pair + 1) * kColumns + column], source[1]);
      read_vectors(&stage.b[c][(2 * pair + line) * kHaloColumns + column], target);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int i = 0; i < kUnit; ++i) {
#pragma unroll
          for (int s = 0; s < kSpan; ++s) sum[r][i][s] += source[r][i] * target[i + s];
        }
      }
    }
  }
  stages.end();
  if (!works) return;

  const int x = tile.x + column;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int y = tile.y + 2 * pair + r, dy = line - r;
    if (dy < 0 || dy >= kSpan || !output.pieces.owns(tile.piece_y, dy) || y >= output.height) continue;
#pragma unroll
    for (int s = 0; s < kSpan; ++s) {
      if (!output.pieces.owns(tile.piece_x, s)) continue;
      Unit<T> unit;
#pragma unroll
      for (int i = 0; i < kUnit; ++i) {
        unit.v[i] = output.product(sum[r][i][s], tile.b, y, x + i, y + first_y + dy, x + i + first_x + s);
      }
      output.store(output.plane(tile, dy, s), y, x, unit);
    }
  }
}

}  // namespace cosegflow::local_correlation_cuda

// local_correlation without flow, backward of float16 and bfloat16 on tensor cores: the gradient to one side, of one
// piece of the window (local_correlation_grid_gradient.cuh).
//
// A block has a tile of 32 columns x 4 rows of that side and a run of channels. A warp has 16 pixels (8 columns of two
// rows); what they need of the gradient is a banded matrix of 16 pixels x (10 rows x 16 columns of the other side). It
// is read once, into 40 registers of a thread, as the first operand of mma, and serves all channels: 16 at a time are
// the columns of the product, 8 sums a thread, which are complete after 10 steps.
// Shared memory: the tile's 81 planes of gradients, and two stages of the halo of 16 channels as they lie in memory,
// which is how ldmatrix wants the second operand; planes are an odd multiple of 16 bytes apart. Copies (cp.async) run
// a stage ahead. The gradients are the caller's numbers and the sums float32: nothing is rounded but the result.
// Per 16 channels a warp has 20 mma.m16n8k16 and 10 ldmatrix.x4.
// Must move (B C (Ha Wa + Hb Wb) + B 81 H W) 2 bytes a side; the halo is read 3.75 times, mostly from L2. Time not
// measured yet: docs/kernels/local_correlation.md has the prediction.
#pragma once

#include "local_correlation/local_correlation_forward_mma_kernel.cuh"
#include "local_correlation/local_correlation_grid_gradient.cuh"

namespace cosegflow::local_correlation_cuda {

template <class T>
struct BackwardMma : MmaTile<4> {
  static constexpr int kStages = 2;
  static constexpr int kResident = 2;  // blocks of a multiprocessor, by registers
  struct Shared {
    alignas(16) T grad[kWindow][kPlane];
    alignas(16) T halo[kStages][kChannels][kHaloPlane];
  };
};

// The banded matrix: a warp's pixels by the columns of one row of the halo, for each of its rows.
template <class T>
__device__ __forceinline__ void read_band(const T (*grad)[BackwardMma<T>::kPlane], const MmaLane& at,
                                          uint32_t (&band)[BackwardMma<T>::kLines][4]) {
#pragma unroll
  for (int line = 0; line < BackwardMma<T>::kLines; ++line) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // as mma wants them: (row 0, row 1) x (columns 0-7, 8-15)
      const int row = i % 2, h = i / 2, dy = line - row;
      uint32_t pair = 0;
      if (dy >= 0 && dy < kSpan) {
        const T* const pixel = &grad[0][(2 * at.pair + row) * kColumns + at.column + at.g];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          uint32_t bits = 0;
          if (at.in_window(h, e)) bits = pixel[(dy * kSpan + at.shift(h, e)) * BackwardMma<T>::kPlane].bits;
          pair |= bits << (16 * e);
        }
      }
      band[line][i] = pair;
    }
  }
}

template <class T, class Out>
__global__ void __launch_bounds__(BackwardMma<T>::kThreads, BackwardMma<T>::kResident)
    local_correlation_backward_mma_kernel(GradientCall<T, Out> call) {
  using S = BackwardMma<T>;
  using Shared = typename S::Shared;
  CSF_DYNAMIC_SHARED(Shared, shared);
  const GradientBlock block = gradient_block<S::kRows>(call);
  const TileOfBlock tile = block.tile;
  const int64_t begin = block.begin, end = block.end;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  copy_gradients<S>(call, tile, shared->grad);
  cp_async_commit();
  const PlaneCopy<T, S::kHaloRows, kHaloUnits> copy(call.other, tile.y + call.first_y, tile.x + call.first_x);
  const T* const from = call.other.plane(tile.b, 0);
  const auto load = [&](int64_t c0, int stage) {
    for (int c = warp; c < S::kChannels; c += S::kWarps) {
      copy.run(shared->halo[stage][c], from + (c0 + c) * call.other.channel, c0 + c < end);
    }
    cp_async_commit();
  };
  load(begin, 0);
  cp_async_wait<1>();
  __syncthreads();

  const MmaLane at;
  uint32_t band[S::kLines][4];
  read_band<T>(shared->grad, at, band);
  // ldmatrix: lanes 8i to 8i + 7 address the channels of tile i, (channels 0-7, 8-15) x (columns 0-7, 8-15).
  const int channel = lane % 8 + lane / 16 * 8;
  const int pixel = 2 * at.pair * kHaloColumns + at.column + lane / 8 % 2 * 8;
  const int y = tile.y + 2 * at.pair, x = tile.x + at.column + at.g;
  const bool upper = x < call.width && y < call.height, lower = x < call.width && y + 1 < call.height;
  const int64_t plane = static_cast<int64_t>(call.height) * call.width;
  Out* result = call.result + call.place(tile.b, begin + 2 * at.q, y, x);  // of the thread's first sum
  int stage = 0;
#pragma unroll 1
  for (int64_t c0 = begin; c0 < end; c0 += S::kChannels, result += S::kChannels * plane) {
    cp_async_wait<0>();
    __syncthreads();  // the stage is there for all, and all have left the other one
    load(c0 + S::kChannels, 1 - stage);
    float sum[2][4] = {};
#pragma unroll
    for (int line = 0; line < S::kLines; ++line) {
      uint32_t of_other[4];
      ldmatrix_x4(of_other, &shared->halo[stage][channel][pixel + line * kHaloColumns]);
      const uint32_t low[2] = {of_other[0], of_other[1]}, high[2] = {of_other[2], of_other[3]};
      mma_m16n8k16<T>(sum[0], band[line], low);
      mma_m16n8k16<T>(sum[1], band[line], high);
    }
    stage = 1 - stage;
    constexpr bool kAdds = sizeof(Out) != sizeof(T);  // halves are complete
    // Sum i is of channel 2 q + 8 (i / 4) + i % 2 and of row i / 2 % 2.
    const auto store = [&](int i, float value) {
      const int64_t to = (i / 4 * 8 + i % 2) * plane + (i / 2 % 2) * call.width;
      store_gradient(result + to, value, kAdds && call.add);
    };
    float finite = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; ++i) finite += sum[i / 4][i % 4] * 0.0f;
    const int left = static_cast<int>(end - c0 < S::kChannels ? end - c0 : S::kChannels) - 2 * at.q;
    if (finite == 0.0f) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (i / 4 * 8 + i % 2 < left && (i / 2 % 2 == 0 ? upper : lower)) store(i, sum[i / 4][i % 4]);
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < 8; ++i) {
        const int c = i / 4 * 8 + i % 2, row = i / 2 % 2;
        if (c < left && (row == 0 ? upper : lower)) store(i, call.exact_sum(tile.b, c0 + 2 * at.q + c, y + row, x));
      }
    }
  }
  cp_async_wait<0>();
}

}  // namespace cosegflow::local_correlation_cuda

// local_correlation without flow, backward of float32 and float64 by multiply-adds: the gradient to one side, of one
// piece of the window (local_correlation_grid_gradient.cuh).
//
// A block has a tile of 32 columns x kRows rows of that side and a run of channels, 16 at a time. A thread has 8
// neighbouring columns and 4 channels: 32 sums in registers. For each row of the halo that meets its own it keeps 16
// values of each of its channels, and for each of the 9 offsets along x reads 8 gradients: 288 FMAs for 16 + 18 reads
// of 16 bytes.
// Shared memory: the tile's 81 planes of gradients, copied once, and the halo of 16 channels, copied for each 16;
// float32 72 KB, so three blocks share a multiprocessor and one computes while others wait for copies. Lanes of a quad
// have the same gradients and four channels, whose planes are 4 values apart modulo 32: no bank conflicts in float32.
// Must move B C (Ha Wa + Hb Wb) + B 81 H W elements a side; the halo is read 3.75 times, mostly from L2. 2 B (2r+1)^2
// C H W FLOPs. Time not measured yet: docs/kernels/local_correlation.md has the prediction.
#pragma once

#include "local_correlation/local_correlation_grid_gradient.cuh"

namespace cosegflow::local_correlation_cuda {

template <class T>
struct BackwardFma {
  static constexpr int kRows = sizeof(T) == 8 ? 2 : 4, kHaloRows = kRows + kSpan - 1;
  static constexpr int kPixels = 8, kOwn = 4, kGroups = 4, kChannels = kOwn * kGroups;
  static constexpr int kThreads = kRows * (kColumns / kPixels) * kGroups, kWarps = kThreads / 32;
  static constexpr int kResident = 3;  // blocks of a multiprocessor of 228 KB
  static constexpr int kPlane = kHaloRows * kHaloColumns + 4;
  static_assert(kPlane % 8 == 4, "the channels of a quad are in banks of their own");
  struct Shared {
    alignas(16) T grad[kWindow][kRows * kColumns];
    alignas(16) T halo[kChannels][kPlane];
  };
};

// Four neighbouring sums to their place, aligned to a unit.
template <class T>
__device__ __forceinline__ void store_unit(T* to, const T* sum, bool add) {
  Unit<T> unit;
#pragma unroll
  for (int i = 0; i < kUnit; ++i) unit.v[i] = sum[i];
  if (add) {
    const Unit<T> before = *reinterpret_cast<const Unit<T>*>(to);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) unit.v[i] += before.v[i];
  }
  *reinterpret_cast<Unit<T>*>(to) = unit;
}

template <class T>
__global__ void __launch_bounds__(BackwardFma<T>::kThreads)
    local_correlation_backward_fma_kernel(GradientCall<T, T> call) {
  using S = BackwardFma<T>;
  using Shared = typename S::Shared;
  CSF_DYNAMIC_SHARED(Shared, shared);
  const GradientBlock block = gradient_block<S::kRows>(call);
  const TileOfBlock tile = block.tile;
  const int64_t begin = block.begin, end = block.end;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const PlaneCopy<T, S::kHaloRows, kHaloUnits> copy(call.other, tile.y + call.first_y, tile.x + call.first_x);
  const T* const from = call.other.plane(tile.b, 0);
  copy_gradients<S>(call, tile, shared->grad);

  const int group = thread % S::kGroups, place = thread / S::kGroups;
  const int column = place % 2 * 16 + place / 2 % 2 * 8, row = place / 4;  // 16 columns between neighbouring quads
  const int y = tile.y + row, x = tile.x + column;
  const int64_t plane = static_cast<int64_t>(call.height) * call.width;
#pragma unroll 1
  for (int64_t c0 = begin; c0 < end; c0 += S::kChannels) {
    for (int c = warp; c < S::kChannels; c += S::kWarps) {
      copy.run(shared->halo[c], from + (c0 + c) * call.other.channel, c0 + c < end);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    T sum[S::kOwn][S::kPixels] = {};
#pragma unroll 1
    for (int dy = call.dy_begin; dy < call.dy_end; ++dy) {
      T feature[S::kOwn][S::kPixels + kSpan - 1];
#pragma unroll
      for (int c = 0; c < S::kOwn; ++c) {
        read_vectors(&shared->halo[group + S::kGroups * c][(row + dy) * kHaloColumns + column], feature[c]);
      }
#pragma unroll
      for (int dx = 0; dx < kSpan; ++dx) {
        T grad[S::kPixels];
        read_vectors(&shared->grad[dy * kSpan + dx][row * kColumns + column], grad);
#pragma unroll
        for (int c = 0; c < S::kOwn; ++c) {
#pragma unroll
          for (int i = 0; i < S::kPixels; ++i) sum[c][i] += grad[i] * feature[c][i + dx];
        }
      }
    }
    __syncthreads();  // all have read the halo
    if (y >= call.height) continue;
    T finite = T(0);
#pragma unroll
    for (int c = 0; c < S::kOwn; ++c) {
#pragma unroll
      for (int i = 0; i < S::kPixels; ++i) finite += sum[c][i] * T(0);
    }
    T* const to = call.result + call.place(tile.b, c0 + group, y, x);
    if (finite == T(0)) {
#pragma unroll
      for (int c = 0; c < S::kOwn; ++c) {
        if (c0 + group + S::kGroups * c >= end) break;
        T* const row_of_channel = to + S::kGroups * c * plane;
#pragma unroll
        for (int i = 0; i < S::kPixels; i += kUnit) {
          if (call.units) {
            if (x + i >= call.width) break;
            store_unit(row_of_channel + i, &sum[c][i], call.add);
          } else {
#pragma unroll
            for (int j = i; j < i + kUnit; ++j) {
              if (x + j < call.width) store_gradient(row_of_channel + j, sum[c][j], call.add);
            }
          }
        }
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < S::kOwn * S::kPixels; ++i) {
        const int c = i / S::kPixels * S::kGroups, at = i % S::kPixels;
        if (c0 + group + c >= end || x + at >= call.width) continue;
        store_gradient(to + c * plane + at, call.exact_sum(tile.b, c0 + group + c, y, x + at), call.add);
      }
    }
  }
}

}  // namespace cosegflow::local_correlation_cuda

// local_correlation: the norms of features, and the gradient through them, for all of its families of kernels.
//
// A block has 32 neighbouring pixels and all channels: 8 warps, each of which walks over every eighth channel, so reads
// of a plane are of neighbours and many are in flight. Their 8 sums for a pixel meet in shared memory, in one order.
// norm: 1 / max(norm, 1e-12) of each pixel. Reads the features once.
// finish: takes the gradient to normalized features through the normalization and converts it; g, the gradient, f the
//   normalized feature: (g - <g, f> f) / norm, and g / norm where the norm was clamped. Reads gradient and features
//   twice, the second time from the caches (32 C (4 + sizeof(T)) bytes a block); without norms it converts only.
// Time not measured yet.
#pragma once

#include "local_correlation/local_correlation_simple_kernels.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kNormPixels = 32, kNormWarps = kThreads / kNormPixels;

// The pixel of a thread, and where its walk over the channels begins.
struct NormPixel {
  int64_t b;
  int pixel, first;
  bool exists;
};
template <class T>
__device__ __forceinline__ NormPixel norm_pixel(const Side<T>& side) {
  const int64_t blocks = (side.positions() + kNormPixels - 1) / kNormPixels;
  const int64_t pixel = blockIdx.x % blocks * kNormPixels + threadIdx.x % kNormPixels;
  return {blockIdx.x / blocks, static_cast<int>(pixel), static_cast<int>(threadIdx.x) / kNormPixels,
          pixel < side.positions()};
}

// The sum over a pixel's threads, to each of them.
template <class A>
__device__ __forceinline__ A sum_of_pixel(A value) {
  using Sums = A[kNormWarps][kNormPixels];
  CSF_SHARED(Sums, sums);
  sums[threadIdx.x / kNormPixels][threadIdx.x % kNormPixels] = value;
  __syncthreads();
  A sum = sums[0][threadIdx.x % kNormPixels];
#pragma unroll
  for (int i = 1; i < kNormWarps; ++i) sum += sums[i][threadIdx.x % kNormPixels];
  return sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) local_correlation_norm_kernel(Side<T> side, accumulate_t<T>* inverse_norm) {
  using Acc = accumulate_t<T>;
  const NormPixel at = norm_pixel(side);
  Acc square = Acc(0);
  if (at.exists) {
    const T* const pixel = side.pixel(at.b, at.pixel / side.width, at.pixel % side.width);
#pragma unroll 8
    for (int64_t c = at.first; c < side.channels; c += kNormWarps) {
      const Acc v = to_float(pixel[c * side.features.stride[1]]);
      square += v * v;
    }
  }
  const Acc norm = sqrt_of(sum_of_pixel(square));
  if (!at.exists || at.first != 0) return;
  inverse_norm[at.b * side.positions() + at.pixel] = Acc(1) / (norm < Acc(1e-12) ? Acc(1e-12) : norm);  // keeps a NaN
}

// gradient, result (B, C, H, W).
template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_finish_kernel(Side<T> side, const accumulate_t<T>* gradient, T* result) {
  using Acc = accumulate_t<T>;
  const NormPixel at = norm_pixel(side);
  const int64_t n = side.positions(), first = at.b * side.channels * n + at.pixel, stride = side.features.stride[1];
  const int y = at.exists ? at.pixel / side.width : 0, x = at.exists ? at.pixel % side.width : 0;
  const T* const feature = side.pixel(at.b, y, x);
  const Acc scale = side.scale(at.b, y, x);
  Acc inner = Acc(0);
  if (side.inverse_norm != nullptr) {
    const bool clamped = !(scale < Acc(1) / Acc(1e-12));  // or NaN, and so is the gradient
    if (at.exists && !clamped) {
#pragma unroll 4
      for (int64_t c = at.first; c < side.channels; c += kNormWarps) {
        inner += gradient[first + c * n] * (to_float(feature[c * stride]) * scale);
      }
    }
    inner = sum_of_pixel(inner);
  }
  if (!at.exists) return;
#pragma unroll 4
  for (int64_t c = at.first; c < side.channels; c += kNormWarps) {
    Acc g = gradient[first + c * n];
    if (side.inverse_norm != nullptr) g = (g - inner * (to_float(feature[c * stride]) * scale)) * scale;
    result[first + c * n] = from_float<T>(g);
  }
}

}  // namespace cosegflow::local_correlation_cuda

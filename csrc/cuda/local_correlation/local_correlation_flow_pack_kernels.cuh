// Planes to rows of channels for local_correlation along a flow, and the norms of rows.
//
// pack: a block turns 32 pixels x 64 channels in shared memory (8.4 KB of float32), both sides in one launch: 8 loads a
//   thread in flight, and blocks enough for all multiprocessors at the sizes of a flow network, where pack.cuh's blocks
//   of 32 pixels x all channels are two or three each. Padding is written as 0. Moves every feature twice.
// norm: an octet a pixel, 128 bytes of it at a time.
// Time not measured yet.
#pragma once

#include "local_correlation/local_correlation_flow_rows.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kPackPixels = 32, kPackDepth = 64;

template <class T>
struct PackedFlowSide {
  View4 features;
  int64_t channels;
  int width, pixels;
  T* rows;     // (B, pixels, pitch)
  int pitch;   // channels and padding
  int blocks;  // of the side; 0: it is not packed
};

template <class T>
__device__ __forceinline__ void pack_block(const PackedFlowSide<T>& side, unsigned block,
                                           T (&tile)[kPackDepth][kPackPixels + 1]) {
  const unsigned depths = (static_cast<unsigned>(side.pitch) + kPackDepth - 1) / kPackDepth;
  const unsigned runs = (static_cast<unsigned>(side.pixels) + kPackPixels - 1) / kPackPixels;
  const int64_t c0 = static_cast<int64_t>(block % depths) * kPackDepth, b = block / depths / runs;
  const int first = static_cast<int>(block / depths % runs) * kPackPixels,
            count = min(kPackPixels, side.pixels - first);
  const int thread = static_cast<int>(threadIdx.x);
  const View4& f = side.features;
  const T* const source = static_cast<const T*>(f.data) + b * f.stride[0];
  const bool channels_across_lanes = f.stride[1] == 1 && side.channels > 1;
#pragma unroll
  for (int i = thread; i < kPackPixels * kPackDepth; i += kThreads) {
    const int pixel = channels_across_lanes ? i / kPackDepth : i % kPackPixels;
    const int c = channels_across_lanes ? i % kPackDepth : i / kPackPixels;
    T value = from_float<T>(accumulate_t<T>(0));
    if (pixel < count && c0 + c < side.channels) {
      const int y = (first + pixel) / side.width, x = (first + pixel) % side.width;
      value = source[(c0 + c) * f.stride[1] + y * f.stride[2] + x * f.stride[3]];
    }
    tile[c][pixel] = value;
  }
  __syncthreads();
  T* const to = side.rows + (b * side.pixels + first) * side.pitch + c0;
#pragma unroll
  for (int i = thread; i < kPackPixels * kPackDepth; i += kThreads) {
    const int pixel = i / kPackDepth, c = i % kPackDepth;
    if (pixel < count && c0 + c < side.pitch) to[static_cast<int64_t>(pixel) * side.pitch + c] = tile[c][pixel];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_flow_pack_kernel(PackedFlowSide<T> a, PackedFlowSide<T> b) {
  using Tile = T[kPackDepth][kPackPixels + 1];
  CSF_SHARED(Tile, tile);
  const unsigned of_a = static_cast<unsigned>(a.blocks);
  if (blockIdx.x < of_a) {
    pack_block(a, blockIdx.x, tile);
  } else {
    pack_block(b, blockIdx.x - of_a, tile);
  }
}

// inverse_norm (B, pixels) of rows; see local_correlation_norm_kernel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_flow_norm_kernel(Rows<T> rows, int64_t batch, int pixels, accumulate_t<T>* inverse_norm) {
  using Acc = accumulate_t<T>;
  using O = Octets<T>;
  const int64_t at = flat_thread() / O::kLanes;
  const bool exists = at < batch * pixels;
  Acc square = Acc(0);
  if (exists) {
    const T* const pixel = rows.of_image(at / pixels) + at % pixels * rows.step;
    for (int i = static_cast<int>(threadIdx.x) % O::kLanes; i < rows.vectors; i += O::kLanes) {
      Acc v[O::kVector];
      warp_cuda::load_vector(pixel + i * O::kVector, v);
#pragma unroll
      for (int j = 0; j < O::kVector; ++j) square += v[j] * v[j];
    }
  }
  square = warp_reduce_sum<O::kLanes>(square);
  if (!exists || threadIdx.x % O::kLanes != 0) return;
  inverse_norm[at] = inverse_norm_of(square);
}

}  // namespace cosegflow::local_correlation_cuda

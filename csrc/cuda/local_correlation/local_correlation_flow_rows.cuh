// Features as local_correlation reads them along a flow: the channels of a pixel side by side, shared by 8 lanes.
//
// Where windows lie only the flow knows, so a warp whose lanes have neighbouring pixels of planes would read whole
// lines where the flow is smooth and a line for each of its lanes where it is not. Rows of channels are whole lines
// whatever the flow is. A warp is four octets: an octet reads 128 bytes of a pixel at once, four octets those of four
// taps, so an instruction moves 512 bytes in four passes of the load and store unit, none of them in vain. Features
// that are channels last are read where they are, planes are packed once, a copy in the second-level cache.
#pragma once

#include "local_correlation/local_correlation_simple_kernels.cuh"
#include "warp/channel_vector.cuh"

namespace cosegflow::local_correlation_cuda {

using warp_cuda::kWholeWarp;

// How a warp reads rows of T.
template <class T>
struct Octets {
  static constexpr int kLanes = 8, kCount = 32 / kLanes;
  static constexpr int kVector = warp_cuda::kVector<T>;                // channels of 16 bytes
  static constexpr int kPieces = (sizeof(T) == 8 ? 8 : 16) / kVector;  // of 16 bytes, of a lane
  static constexpr int kPerLane = kPieces * kVector;
  static constexpr int kChunk = kLanes * kPerLane;  // channels at a time
};

template <class T>
struct Rows {
  const T* data;
  int64_t image;  // elements from image to image
  int step;       // from pixel to pixel
  int vectors;    // of 16 bytes, of a pixel

  __device__ __forceinline__ const T* of_image(int64_t b) const { return data + b * image; }
};

// The number of chunks of channels that these vectors make.
template <class T>
CSF_HD int chunks_of(int vectors) {
  constexpr int kVectors = Octets<T>::kLanes * Octets<T>::kPieces;
  return (vectors + kVectors - 1) / kVectors;
}

// What a lane has of a pixel in one chunk: every eighth vector. Those beyond the last channel are 0.
template <class T>
struct LaneChannels {
  using O = Octets<T>;
  using Acc = accumulate_t<T>;
  using Values = Acc[O::kPieces][O::kVector];
  int first, vectors;
  int pieces;  // that any lane has; the same in all lanes, as is
  bool whole;  // whether every lane has all of its vectors

  __device__ __forceinline__ LaneChannels(int chunk, int vectors_of_pixel)
      : first(chunk * O::kLanes * O::kPieces + static_cast<int>(threadIdx.x) % O::kLanes),
        vectors(vectors_of_pixel),
        pieces((vectors_of_pixel - chunk * O::kLanes * O::kPieces + O::kLanes - 1) / O::kLanes),
        whole((chunk + 1) * O::kLanes * O::kPieces <= vectors_of_pixel) {}

  template <bool kWhole>
  __device__ __forceinline__ void load(const T* pixel, Values& v) const {
    const T* const from = pixel + first * O::kVector;
#pragma unroll
    for (int i = 0; i < O::kPieces; ++i) {
      if (kWhole || first + i * O::kLanes < vectors) {
        warp_cuda::load_vector(from + i * O::kLanes * O::kVector, v[i]);
      } else {
#pragma unroll
        for (int j = 0; j < O::kVector; ++j) v[i][j] = Acc(0);
      }
    }
  }
};

}  // namespace cosegflow::local_correlation_cuda

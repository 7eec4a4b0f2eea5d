// 16 bytes of neighbouring channels, in memory and as numbers of the accumulate type.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/half.h"
#include "primitives/half_pair.cuh"
#include "warp/warp_tiles.cuh"

namespace cosegflow::warp_cuda {

template <class T>
constexpr int kVector = static_cast<int>(16 / sizeof(T));

__device__ __forceinline__ void load_vector(const double* p, double (&v)[2]) {
  const double2 d = *reinterpret_cast<const double2*>(p);
  v[0] = d.x, v[1] = d.y;
}
__device__ __forceinline__ void load_vector(const float* p, float (&v)[4]) {
  const float4 f = *reinterpret_cast<const float4*>(p);
  v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
}

// A bfloat16 is the upper half of a float32: one shift, or one mask.
__device__ __forceinline__ void widen(BFloat16, uint32_t word, float& low, float& high) {
  low = __uint_as_float(word << 16);
  high = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ void widen(Half, uint32_t word, float& low, float& high) {
  low = to_float(Half{static_cast<uint16_t>(word & 0xffffu)});
  high = to_float(Half{static_cast<uint16_t>(word >> 16)});
}

template <class T>
__device__ __forceinline__ void load_vector(const T* p, float (&v)[8]) {
  const uint4 w = *reinterpret_cast<const uint4*>(p);
  widen(T{}, w.x, v[0], v[1]);
  widen(T{}, w.y, v[2], v[3]);
  widen(T{}, w.z, v[4], v[5]);
  widen(T{}, w.w, v[6], v[7]);
}

__device__ __forceinline__ void store_vector(double* p, const double (&v)[2]) {
  *reinterpret_cast<double2*>(p) = make_double2(v[0], v[1]);
}
__device__ __forceinline__ void store_vector(float* p, const float (&v)[4]) {
  *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
}
template <class T>
__device__ __forceinline__ void store_vector(T* p, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(p) = make_uint4(half_pair<T>(v[0], v[1]), half_pair<T>(v[2], v[3]),
                                            half_pair<T>(v[4], v[5]), half_pair<T>(v[6], v[7]));
}

// Calls body(pixel of the tile, first channel) for each of `pixels` x `vectors` pieces of 16 bytes, channels fastest,
// each by one thread of the block.
template <class T, class Body>
__device__ __forceinline__ void for_each_vector(int pixels, int vectors, Body&& body) {
  const int thread = static_cast<int>(threadIdx.x);
  const int pixel_step = kThreads / vectors, vector_step = kThreads % vectors;
  for (int pixel = thread / vectors, vector = thread % vectors; pixel < pixels;) {
    body(pixel, vector * kVector<T>);
    pixel += pixel_step, vector += vector_step;
    if (vector >= vectors) vector -= vectors, ++pixel;
  }
}

}  // namespace cosegflow::warp_cuda

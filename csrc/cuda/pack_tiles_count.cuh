// Counting the allowed pixels of a mask, for pack_tiles: every thread of a block counts its share, several loads in
// flight, 16 bytes a load where the mask is contiguous within an image. What is allowed: mask_weight.cuh.
//
// pack_tiles_count: a block of 256 threads counts 1024 pixels, for large masks only. Moves N * sizeof(mask) bytes;
// bound by memory or by its launch. Fraction of the limit reached: not measured yet.
#pragma once

#include "mask_weight.cuh"
#include "pack_tiles.cuh"
#include "primitives/launch.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow {
namespace {

constexpr int kCountThreads = 256;

// float16 and bfloat16 differ by the bits of infinity only, `infinity`; a half is allowed from 1 to there.
__device__ __forceinline__ bool is_allowed(uint8_t v, uint32_t) { return v != 0; }
__device__ __forceinline__ bool is_allowed(uint16_t v, uint32_t infinity) { return v != 0 && v <= infinity; }
__device__ __forceinline__ bool is_allowed(float v, uint32_t) { return v > 0; }
__device__ __forceinline__ bool is_allowed(double v, uint32_t) { return v > 0; }

// How many of the pixels of 16 bytes are allowed: on the bits, several in a word, where that is fewer instructions.
__device__ __forceinline__ uint32_t nonzero_bytes(uint32_t w) {  // bit 7 of each
  return (((w & 0x7f7f7f7fu) + 0x7f7f7f7fu) | w) & 0x80808080u;
}
// Bits 15 and 31 say which halves are from 1 to the bits of infinity.
__device__ __forceinline__ uint32_t allowed_halves(uint32_t w, uint32_t infinity) {
  const uint32_t magnitude = w & 0x7fff7fffu;
  const uint32_t positive = magnitude + 0x7fff7fffu, nan = magnitude + (0x7fff - infinity) * 0x10001u;
  return positive & ~nan & ~w & 0x80008000u;
}
__device__ __forceinline__ int allowed_float(uint32_t w) { return __uint_as_float(w) > 0 ? 1 : 0; }
__device__ __forceinline__ int allowed_double(uint32_t low, uint32_t high) {
  return __longlong_as_double(static_cast<long long>(static_cast<uint64_t>(high) << 32 | low)) > 0 ? 1 : 0;
}

template <class M>
__device__ __forceinline__ int allowed_in(const uint4& v, uint32_t infinity) {
  if constexpr (sizeof(M) == 1) {
    return __popc(nonzero_bytes(v.x) | nonzero_bytes(v.y) >> 1 | nonzero_bytes(v.z) >> 2 | nonzero_bytes(v.w) >> 3);
  } else if constexpr (sizeof(M) == 2) {
    return __popc(allowed_halves(v.x, infinity) | allowed_halves(v.y, infinity) >> 1 |
                  allowed_halves(v.z, infinity) >> 2 | allowed_halves(v.w, infinity) >> 3);
  } else if constexpr (sizeof(M) == 4) {
    return allowed_float(v.x) + allowed_float(v.y) + allowed_float(v.z) + allowed_float(v.w);
  } else {
    return allowed_double(v.x, v.y) + allowed_double(v.z, v.w);
  }
}

struct AllowedCount {
  int before = 0, total = 0;
};

// This thread's share of the allowed pixels [begin, end) of an image without gaps, and how many of them are below
// `split`. From the first aligned pixel on 16 bytes a load; one thread each counts the pixels before it, after the last
// whole vector and of the vector that `split` cuts: fewer than a vector each. An image that starts anywhere (15 x 15
// pixels of a batch) has some, an aligned one with a multiple of 16 pixels has none.
template <class M>
__device__ __forceinline__ AllowedCount count_flat(const M* image, int begin, int end, int split, uint32_t infinity) {
  constexpr int kPixels = 16 / static_cast<int>(sizeof(M)), kInFlight = 2;
  const int thread = static_cast<int>(threadIdx.x);
  const int skew = static_cast<int>(reinterpret_cast<uintptr_t>(image + begin) / sizeof(M) % kPixels);
  const int first = min(end, begin + (kPixels - skew) % kPixels);
  const int vectors = static_cast<int>(static_cast<unsigned>(end - first) / kPixels),
            split_vector = static_cast<int>(static_cast<unsigned>(max(split - first, 0)) / kPixels);
  const uint4* const vector = reinterpret_cast<const uint4*>(image + first);
  AllowedCount count;
#pragma unroll 1  // not beyond kInFlight: registers
  for (int v = thread; v < vectors; v += kInFlight * kCountThreads) {
    uint4 words[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      words[k] = v + k * kCountThreads < vectors ? vector[v + k * kCountThreads] : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int n = allowed_in<M>(words[k], infinity);
      count.total += n;
      if (v + k * kCountThreads < split_vector) count.before += n;
    }
  }
  if (thread < kPixels) {
    const auto is_allowed_at = [&](int p, int stop) { return p < stop && is_allowed(image[p], infinity); };
    const int last = first + vectors * kPixels, cut = first + split_vector * kPixels;
    const bool head = is_allowed_at(begin + thread, first), tail = is_allowed_at(last + thread, end);
    count.total += (head ? 1 : 0) + (tail ? 1 : 0);
    if (head && begin + thread < split) ++count.before;
    if (tail && last + thread < split) ++count.before;
    if (is_allowed_at(cut + thread, min(split, last))) ++count.before;  // the loop has it in total
  }
  return count;
}

// The same with any strides: a thread steps through the rows, so that it divides once and not for each pixel.
template <class M>
__device__ __forceinline__ AllowedCount count_strided(const M* image, int64_t stride_y, int64_t stride_x, int width,
                                                      int begin, int end, int split, uint32_t infinity) {
  constexpr int kInFlight = sizeof(M) == 8 ? 2 : 4;  // doubles take registers
  const int first = begin + static_cast<int>(threadIdx.x), step_x = kCountThreads % width;
  const int64_t step = kCountThreads / width * stride_y + step_x * stride_x, next_row = stride_y - width * stride_x;
  int x = first % width;
  const M* at = image + first / width * stride_y + x * stride_x;
  AllowedCount count;
#pragma unroll 1
  for (int p = first; p < end; p += kInFlight * kCountThreads) {
    M value[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      value[k] = p + k * kCountThreads < end ? *at : M{};
      x += step_x, at += step;
      if (x >= width) x -= width, at += next_row;
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (!is_allowed(value[k], infinity)) continue;
      ++count.total;
      if (p + k * kCountThreads < split) ++count.before;
    }
  }
  return count;
}

// A mask as it is counted: flat where the pixels of an image lie side by side.
struct CountedMask {
  View3 mask;
  int width;
  bool flat;
};

CountedMask counted_mask(const TileSource& source) {
  const View3& mask = source.mask;
  const bool flat =
      (source.width == 1 || mask.stride[2] == 1) && (source.height == 1 || mask.stride[1] == source.width);
  return {mask, static_cast<int>(source.width), flat};
}

template <class M>
__device__ __forceinline__ AllowedCount count_allowed_of(const CountedMask& m, int64_t b, int begin, int end, int split,
                                                         uint32_t infinity = 0) {
  const M* const image = static_cast<const M*>(m.mask.data) + b * m.mask.stride[0];
  if (m.flat) return count_flat(image, begin, end, split, infinity);
  return count_strided(image, m.mask.stride[1], m.mask.stride[2], m.width, begin, end, split, infinity);
}

__device__ __forceinline__ AllowedCount count_allowed(const CountedMask& m, int64_t b, int begin, int end, int split) {
  switch (m.mask.dtype) {
    case DType::kBool: return count_allowed_of<uint8_t>(m, b, begin, end, split);
    case DType::kFloat16: return count_allowed_of<uint16_t>(m, b, begin, end, split, 0x7c00);
    case DType::kBFloat16: return count_allowed_of<uint16_t>(m, b, begin, end, split, 0x7f80);
    case DType::kFloat32: return count_allowed_of<float>(m, b, begin, end, split);
    case DType::kFloat64: return count_allowed_of<double>(m, b, begin, end, split);
  }
  return {};
}

struct CountSide {
  CountedMask mask;
  int positions;
  int* span_count;
};
struct CountArgs {
  CountSide side[2];
  int blocks_a;
};

__global__ void __launch_bounds__(kCountThreads) pack_tiles_count_kernel(const __grid_constant__ CountArgs args) {
  const bool in_a = static_cast<int>(blockIdx.x) < args.blocks_a;
  const int block = static_cast<int>(blockIdx.x) - (in_a ? 0 : args.blocks_a);
  const CountSide& side = args.side[in_a ? 0 : 1];
  const int spans = static_cast<int>(ceil_div(side.positions, kCountSpan)), span = block % spans;
  const int begin = span * static_cast<int>(kCountSpan),
            end = min(side.positions, begin + static_cast<int>(kCountSpan));
  const int total = block_reduce_sum(count_allowed(side.mask, block / spans, begin, end, end).total);
  if (threadIdx.x == 0) side.span_count[block] = total;
}

}  // namespace
}  // namespace cosegflow

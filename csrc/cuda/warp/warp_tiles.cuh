// What the fast kernels of warp share: tiles of pixels, a pixel's taps as 32-bit offsets, and the sum over the taps.
//
// A block has a tile that is about as high as wide, not a run of pixels: neighbouring rows of the output read the same
// rows of x, so a tile of 32 x 8 pixels brings about 1.4 elements of x into its multiprocessor for each output, a run
// of 256 pixels 2.
#pragma once

#include <cuda_runtime.h>

#include "common/warp_math.h"
#include "entry_checks.cuh"
#include "primitives/launch.cuh"

namespace cosegflow::warp_cuda {

constexpr int kThreads = 256;
constexpr unsigned kWholeWarp = 0xffffffffu;

// How an image is cut into tiles, in the first dimension of the grid: across, then down, then image by image.
struct TileGrid {
  int height, width;  // of the image
  int tile_height, tile_width;
  int across, per_image;
};

inline TileGrid tile_grid(int64_t height, int64_t width, int tile_height, int tile_width) {
  const int64_t across = (width + tile_width - 1) / tile_width, down = (height + tile_height - 1) / tile_height;
  return {static_cast<int>(height), static_cast<int>(width),        tile_height, tile_width,
          static_cast<int>(across), static_cast<int>(across * down)};
}

// The tile of this block: its image and its first pixel.
struct Tile {
  int64_t b;
  int row, column;
};

__device__ __forceinline__ Tile tile_of_block(const TileGrid& grid) {
  const unsigned tile = blockIdx.x % grid.per_image;
  return {blockIdx.x / grid.per_image, static_cast<int>(tile / grid.across) * grid.tile_height,
          static_cast<int>(tile % grid.across) * grid.tile_width};
}

// The pixel of this thread where a tile is 32 wide: a warp has a row of it. Threads beyond the image do the work of a
// pixel at its edge, whose memory exists, and write nothing.
constexpr int kRowWidth = 32, kRows = kThreads / kRowWidth;
constexpr int kPieceWidth = 16;  // of a tile whose threads share a pixel's channels; its height varies

struct TilePixel {
  int64_t b;
  int row, column;
  bool exists;
};

__device__ __forceinline__ TilePixel pixel_of_thread(const TileGrid& grid) {
  const Tile tile = tile_of_block(grid);
  const int row = tile.row + static_cast<int>(threadIdx.x / kRowWidth);
  const int column = tile.column + static_cast<int>(threadIdx.x % kRowWidth);
  return {tile.b, min(row, grid.height - 1), min(column, grid.width - 1), row < grid.height && column < grid.width};
}

template <class T>
__device__ __forceinline__ T* plane_of(const View4& view, int64_t b, int64_t c) {
  return static_cast<T*>(view.data) + b * view.stride[0] + c * view.stride[1];
}

// An address in global memory, computed once: else the compiler adds up its parts for every access.
template <class T>
__device__ __forceinline__ T* in_registers(T* p) {
#if defined(__CUDA_ARCH__)
  asm("" : "+l"(p));
  __builtin_assume(__isGlobal(p));
#endif
  return p;
}

// The place of a pixel within a plane.
__device__ __forceinline__ int place_of(const View4& view, int row, int column) {
  return row * static_cast<int>(view.stride[2]) + column * static_cast<int>(view.stride[3]);
}

template <class A>
__device__ __forceinline__ WarpPoint<A> point_of_pixel(const WarpParams& p, int64_t b, int row, int column) {
  const A* flow = plane_of<const A>(p.flow, b, 0) + place_of(p.flow, row, column);
  return warp_point_of(flow[0], flow[p.flow.stride[1]], static_cast<A>(column), static_cast<A>(row),
                       static_cast<A>(static_cast<int>(p.width) - 1), static_cast<A>(static_cast<int>(p.height) - 1),
                       p.mode, p.padding);
}

template <class A>
struct PixelTaps {
  int offset[4];  // into a plane of x: top left, top right, bottom left, bottom right; 0 where outside
  A weight[4];
  bool inside[4];
  bool whole;  // four different pixels of x, all inside
};

// An image of x, for its taps.
struct TapGeometry {
  int width, height, step_y, step_x;
  bool border;
};

template <class A>
__device__ __forceinline__ PixelTaps<A> pixel_taps(const WarpPoint<A>& point, const TapGeometry& image) {
  PixelTaps<A> taps;
  const bool both = point.finite && !point.nearest;
  taps.whole = both && point.x0 >= 0 && point.x0 + 1 < image.width && point.y0 >= 0 && point.y0 + 1 < image.height;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    int x = point.x0 + (k & 1), y = point.y0 + (k >> 1);
    if (image.border) x = min(x, image.width - 1), y = min(y, image.height - 1);
    taps.inside[k] = (k == 0 ? point.finite : both) && x >= 0 && x < image.width && y >= 0 && y < image.height;
    taps.offset[k] = taps.inside[k] ? y * image.step_y + x * image.step_x : 0;
    taps.weight[k] = ((k & 1) ? point.wx : A(1) - point.wx) * ((k >> 1) ? point.wy : A(1) - point.wy);
  }
  return taps;
}

__device__ __forceinline__ TapGeometry geometry_of_x(const WarpParams& p) {
  return {static_cast<int>(p.width), static_cast<int>(p.height), static_cast<int>(p.x.stride[2]),
          static_cast<int>(p.x.stride[3]), p.padding == WarpPadding::kBorder};
}

template <class A>
__device__ __forceinline__ PixelTaps<A> pixel_taps(const WarpPoint<A>& point, const WarpParams& p) {
  return pixel_taps(point, geometry_of_x(p));
}

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// The value of the sample. A tap outside is given as 0. Spelt out, so that every layout rounds alike.
template <class A>
__device__ __forceinline__ A blend(const A (&weight)[4], A v0, A v1, A v2, A v3) {
  return multiply_add(weight[3], v3, multiply_add(weight[2], v2, multiply_add(weight[1], v1, weight[0] * v0)));
}

// Where the taps of a pixel are in planes. kWhole: the right ones are the neighbours of the left ones, and all inside.
template <bool kWhole, class T>
struct TapPointers {
  const T* at[4];

  template <class A>
  __device__ __forceinline__ TapPointers(const PixelTaps<A>& taps, const T* plane) {
#pragma unroll
    for (int k = 0; k < 4; ++k) at[k] = plane + taps.offset[k];
  }
  // Of the plane that is `ahead` elements further.
  template <class A>
  __device__ __forceinline__ void load(const PixelTaps<A>& taps, int64_t ahead, T (&v)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const T* const from = (kWhole ? at[k & 2] + (k & 1) : at[k]) + ahead;
      v[k] = kWhole || taps.inside[k] ? *from : T{};
    }
  }
  __device__ __forceinline__ void advance(int64_t elements) {
#pragma unroll
    for (int k = 0; k < 4; k += kWhole ? 2 : 1) at[k] += elements;
  }
};

// Whether every element of a plane (and, with `channels`, of an image) is within 2^31 elements of the first. Strides
// may be anything.
inline bool short_offsets(const View4& view, int64_t channels, int64_t height, int64_t width) {
  const auto reach = [](int64_t stride, int64_t size) {
    if (stride == 0 || size == 1) return int64_t{0};
    if (stride < -INT32_MAX) return int64_t{INT32_MAX} + 1;
    return bounded_product(INT32_MAX, stride < 0 ? -stride : stride, size - 1);
  };
  return reach(view.stride[1], channels) + reach(view.stride[2], height) + reach(view.stride[3], width) <= INT32_MAX;
}

// Whether a pixel's channels lie side by side and can be moved 16 bytes at a time.
inline bool whole_vectors(const View4& view, int64_t channels) {
  const int64_t lanes = 16 / element_size(view.dtype);
  return view.stride[1] == 1 && channels % lanes == 0 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0 &&
         view.stride[0] % lanes == 0 && view.stride[2] % lanes == 0 && view.stride[3] % lanes == 0;
}

}  // namespace cosegflow::warp_cuda

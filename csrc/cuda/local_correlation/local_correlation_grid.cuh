// local_correlation without flow: the tiles, pieces and planes that its kernels have in common.
//
// A tile of kColumns x kRows pixels of one side meets its halo in the other side. The window is cut into pieces of up
// to 9 x 9 offsets (kSpan), one for radius 4 and less: a tile's halo in a piece is then 8 columns wider and 8 rows
// higher. A piece begins at an offset that is a multiple of 4, so with rows aligned to 4 pixels ("units") halos are,
// and copies to shared memory are of 4 pixels: 16 bytes of float32, 8 of halves. Pixels outside of the image are
// copied as zeros.
#pragma once

#include "local_correlation/local_correlation_simple_kernels.cuh"
#include "primitives/async_copy.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kColumns = 32;            // of a tile
constexpr int kSpan = 9;                // offsets of a piece along x and along y
constexpr int kWindow = kSpan * kSpan;  // offsets of a piece
constexpr int kUnit = 4;                // pixels of a copy
constexpr int kHaloColumns = kColumns + kSpan - 1;
constexpr int kHaloUnits = kHaloColumns / kUnit, kTileUnits = kColumns / kUnit;

// The side whose rows are whole units: contiguous along x, the rest of the last unit is 0.
template <class T>
struct Planes {
  const T* data;
  int64_t image, channel;  // strides
  int row;
  int height, width;  // width: in whole units

  __device__ __forceinline__ const T* plane(int64_t b, int64_t c) const { return data + b * image + c * channel; }
};

// The offsets of a window, -radius to radius both ways, in pieces.
struct Pieces {
  int radius;

  // Pieces begin 8 apart; each but the last leaves its ninth offset to the next one.
  CSF_HD int reach() const { return radius <= 4 ? 4 : (radius + 3) / 4 * 4; }
  CSF_HD int count() const { return reach() / 4; }
  CSF_HD int first(int piece) const { return -reach() + 8 * piece; }
  // Whether offset first(piece) + d, d of 0 .. 8, is in the window, and this piece's.
  CSF_HD bool owns(int piece, int d) const {
    const int offset = first(piece) + d;
    return offset >= -radius && offset <= radius && (d < kSpan - 1 || piece == count() - 1);
  }
};

// A block's tile and piece, from a flat grid over (image, tile row, tile column, piece along y, piece along x).
struct TileOfBlock {
  int64_t b;
  int y, x;              // the tile's first pixel
  int piece_y, piece_x;  // and of the window
};

template <int kRows>
__device__ __forceinline__ TileOfBlock tile_of_block(int height, int width, int pieces) {
  const int tiles_x = (width + kColumns - 1) / kColumns, tiles_y = (height + kRows - 1) / kRows;
  int block = static_cast<int>(blockIdx.x);
  TileOfBlock t;
  t.piece_x = block % pieces, block /= pieces;
  t.piece_y = block % pieces, block /= pieces;
  t.x = block % tiles_x * kColumns, block /= tiles_x;
  t.y = block % tiles_y * kRows;
  t.b = block / tiles_y;
  return t;
}

template <class T>
__device__ __forceinline__ void copy_unit(T* to, const T* from, bool exists) {
  constexpr int kBytes = kUnit * sizeof(T);
  if constexpr (kBytes <= 16) {
    cp_async<kBytes>(to, from, exists ? kBytes : 0);
  } else {
#pragma unroll
    for (int i = 0; i < kUnit; i += 16 / static_cast<int>(sizeof(T))) cp_async_16(to + i, from + i, exists);
  }
}

// Copies kRows x kUnits units of a plane from pixel (y, x) on, by the lanes of a warp: as many whole rows at once as it
// has lanes for. Where a lane's units lie is the same in each plane, so it is computed once.
template <class T, int kRows, int kUnits>
class PlaneCopy {
  static constexpr int kAtOnce = 32 / kUnits, kTimes = (kRows + kAtOnce - 1) / kAtOnce;
  int64_t offset_, step_;
  unsigned exists_ = 0;  // a bit each time

 public:
  __device__ __forceinline__ PlaneCopy(const Planes<T>& planes, int y, int x) {
    const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / kUnits, at_x = x + lane % kUnits * kUnit;
    offset_ = static_cast<int64_t>(y + row) * planes.row + at_x;
    step_ = static_cast<int64_t>(kAtOnce) * planes.row;
#pragma unroll
    for (int k = 0; k < kTimes; ++k) {
      const int at_y = y + row + k * kAtOnce;
      const bool exists = at_y >= 0 && at_y < planes.height && at_x >= 0 && at_x < planes.width;
      exists_ |= (exists ? 1u : 0u) << k;
    }
  }

  // `plane` need not exist where `exists` is not set: zeros then.
  __device__ __forceinline__ void run(T* to, const T* plane, bool exists) const {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (kAtOnce * kUnits < 32 && lane >= kAtOnce * kUnits) return;
    const unsigned whole = exists ? exists_ : 0u;
#pragma unroll
    for (int k = 0; k < kTimes; ++k) {
      if ((k + 1) * kAtOnce > kRows && lane / kUnits + k * kAtOnce >= kRows) break;
      copy_unit(to + (lane + k * kAtOnce * kUnits) * kUnit, plane + offset_ + k * step_, (whole >> k & 1u) != 0);
    }
  }
};

template <class T>
struct alignas(sizeof(T) * kUnit > 16 ? 16 : sizeof(T) * kUnit) Unit {
  T v[kUnit];
};

// Where the forward stores, and what it does with its sums before: norms, and zeros for targets outside.
template <class T>
struct WindowOutput {
  T* out;  // (B, side, side, Ha, Wa)
  Pieces pieces;
  int height, width, height_b, width_b;
  const accumulate_t<T>*norm_a, *norm_b;  // 1 / norm of each pixel, or null
  bool units;                             // rows of out are aligned to 4 pixels

  __device__ __forceinline__ T* plane(const TileOfBlock& t, int dy, int dx) const {
    const int side = 2 * pieces.radius + 1;
    const int oy = pieces.first(t.piece_y) + dy + pieces.radius, ox = pieces.first(t.piece_x) + dx + pieces.radius;
    return out + ((t.b * side + oy) * side + ox) * (static_cast<int64_t>(height) * width);
  }
  __device__ __forceinline__ void store(T* plane, int y, int x, const Unit<T>& unit) const {
    T* const to = plane + static_cast<int64_t>(y) * width + x;
    if (units) {
      if (x < width) *reinterpret_cast<Unit<T>*>(to) = unit;
      return;
    }
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      if (x + i < width) to[i] = unit.v[i];
    }
  }
  // The product of the features at (y, x) and (yb, xb), from that of the features as they are.
  __device__ __forceinline__ accumulate_t<T> product(accumulate_t<T> sum, int64_t b, int y, int x, int yb,
                                                     int xb) const {
    using Acc = accumulate_t<T>;
    if (yb < 0 || yb >= height_b || xb < 0 || xb >= width_b) return Acc(0);
    if (norm_a == nullptr || y >= height || x >= width) return sum;
    return sum * norm_a[(b * height + y) * width + x] * norm_b[(b * height_b + yb) * width_b + xb];
  }
};

// kCount values from shared memory that is aligned to 16 bytes.
template <int kCount, class T>
__device__ __forceinline__ void read_vectors(const T* from, T (&to)[kCount]) {
  constexpr int kLanes = 16 / sizeof(T);
  struct alignas(16) Vector {
    T v[kLanes];
  };
#pragma unroll
  for (int k = 0; k < kCount; k += kLanes) {
    const Vector vector = *reinterpret_cast<const Vector*>(from + k);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[k + i] = vector.v[i];
  }
}

}  // namespace cosegflow::local_correlation_cuda

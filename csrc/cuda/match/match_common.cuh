// What the fast match kernels share: packed operands, the geometry of a block, columns in shared memory, and the
// host functions that cross translation units (kernels are launched where they are instantiated).
//
// The kernels are written once, over a tile engine that says how a tile of scores is computed and which elements of it
// a thread holds: MmaTileProduct (mma_tile_product.cuh) for halves, SimtTileProduct (match_simt_tile.cuh) for float32
// and float64. Scores are s = dot * inv_norm_a * inv_norm_b, logits beta * s + log m, in the accumulate type.
// x and y are relative to the centre of b's grid, which halves the magnitudes that float32 sums.
#pragma once

#include <cstdint>

#include "common/round_up.h"
#include "cosegflow/match.h"
#include "pack.cuh"
#include "pack_tiles.cuh"
#include "primitives/online_softmax.cuh"

namespace cosegflow::match_cuda {

template <class Acc>
struct alignas(16) Column {  // of a tile: a target
  Acc x, y, inv_norm, log_weight;
};

template <class Acc>
__device__ __forceinline__ Column<Acc> column_at(int pixel, int width, int height, Acc inv_norm, Acc log_weight) {
  return {static_cast<Acc>(pixel % width) - static_cast<Acc>(width - 1) / 2,
          static_cast<Acc>(pixel / width) - static_cast<Acc>(height - 1) / 2, inv_norm, log_weight};
}

// Targets at and beyond the count get log_weight -inf, so that no element of a tile needs a bounds check.
template <class T, class Acc = accumulate_t<T>>
__device__ __forceinline__ Column<Acc> load_column(const PackedSide<T>& side, int64_t b, int j, int count, int width,
                                                   int height) {
  if (j >= count) return {Acc(0), Acc(0), Acc(0), minus_infinity<Acc>()};
  const int64_t at = b * side.positions + j;
  const int pixel = side.index[at];
  return column_at(pixel, width, height, side.inv_norm[at], side.log_weight[at]);
}

// What a forward reads of a side, whoever has packed it.
template <class T>
struct Operand {
  using Acc = accumulate_t<T>;
  int64_t batch = 0, positions = 0;  // positions: rows that an image has room for
  int64_t depth = 0;                 // numbers of a row
  int64_t pitch = 0, stride = 1;     // row r of image b is number (b * pitch + r) * stride of
  const Acc *inv_norm = nullptr, *log_weight = nullptr;
  const T* features = nullptr;  // (B, positions, depth)
  const int *index = nullptr, *count = nullptr;

  // Only halves come in both packings; to the others a constant saves a register that they lack.
  __device__ __forceinline__ int64_t at(int64_t b, int64_t row) const {
    return sizeof(T) == 2 ? (b * pitch + row) * stride : b * positions + row;
  }

  Operand() = default;
  Operand(const PackedSide<T>& side)
      : batch(side.batch),
        positions(side.positions),
        depth(side.padded_channels),
        pitch(side.positions),
        inv_norm(side.inv_norm),
        log_weight(side.log_weight),
        features(side.features),
        index(side.index),
        count(side.count) {}
  Operand(const TileSide<T>& side)
      : batch(side.batch),
        positions(side.positions),
        depth(side.depth),
        pitch(side.pitch),
        stride(2),
        inv_norm(reinterpret_cast<const Acc*>(side.scale)),
        log_weight(side.scale == nullptr ? nullptr : reinterpret_cast<const Acc*>(side.scale) + 1),  // null: only sizes
        features(side.features),
        index(side.index),
        count(side.count) {
    static_assert(sizeof(Scale) == 2 * sizeof(float), "the stride");
  }
};

template <class T, class Acc = accumulate_t<T>>
__device__ __forceinline__ Column<Acc> load_column(const Operand<T>& side, int64_t b, int j, int count, int width,
                                                   int height) {
  if (j >= count) return {Acc(0), Acc(0), Acc(0), minus_infinity<Acc>()};
  const int64_t at = side.at(b, j);
  const int pixel = side.index[b * side.positions + j];
  return column_at(pixel, width, height, side.inv_norm[at], side.log_weight[at]);
}

// Whole tiles of rows, split along the targets where rows alone would leave multiprocessors idle.
struct BlockPlace {
  int64_t b;
  int row_tile, split;
};
__device__ __forceinline__ BlockPlace block_place(int row_tiles, int splits) {
  const int64_t rest = blockIdx.x / splits;
  return {rest / row_tiles, static_cast<int>(rest % row_tiles), static_cast<int>(blockIdx.x % splits)};
}
// The tiles of one split: [first, end).
__device__ __forceinline__ void split_range(int tiles, int splits, int split, int& first, int& end) {
  const int each = (tiles + splits - 1) / splits;
  first = min(tiles, split * each);
  end = min(tiles, first + each);
}

// How many parts the targets are split into: enough for two blocks on each of ~132 multiprocessors. The forward keeps
// partial states for each part, so it sets a cap.
inline int choose_splits(int64_t row_blocks, int64_t column_tiles, int64_t cap) {
  const int64_t wanted = ceil_div(264, row_blocks < 1 ? 1 : row_blocks);
  const int64_t most = column_tiles < cap ? column_tiles : cap;
  return static_cast<int>(wanted < most ? wanted : most);
}

template <class T>
struct ForwardArgs {
  using Acc = accumulate_t<T>;
  Operand<T> a, b;
  int width_b, height_b;
  View1 beta;
  int row_tiles, splits;
  OnlineSoftmax<Acc>* partial;  // (splits, B, Na): states of compact rows
  int* best = nullptr;  // (splits, B, Na): the compact target with the largest logit, -1: none; null: not wanted
};

// One chunk of the backward: `images` images from image b0 on, rows [row_begin, row_begin + rows) of each.
template <class T>
struct GradientArgs {
  using Acc = accumulate_t<T>;
  PackedSide<T> a, b;  // from image b0 on
  int width_a, width_b, height_b;
  View1 beta;  // this and the views below from image b0 on
  View4 flow, grad_flow;
  View3 lse, grad_lse;
  int row_begin, rows;
  int row_tiles, splits;
  int64_t pitch;     // of a row of dscore and of columns: a multiple of the tile
  T* dscore;         // (images, rows, pitch): d(loss)/ds; of halves with factors, see half_gradient.cuh
  Acc* columns;      // (images, row_tiles, 2, pitch): sums over a tile's rows of dlogit and of dlogit * s; or null
  const int* bound;  // Half: (images): bits of the largest |d(loss)/ds| that there may be
  float* unscale;    // Half: (images), written: 1 / the factor of dscore
};

// The extents of the engine of T, for the host.
template <class T>
struct TileExtent {
  static constexpr int kRows = 128, kCols = 128;
};
template <>
struct TileExtent<double> {
  static constexpr int kRows = 64, kCols = 64;
};

// match_forward_mma_cuda.cu (halves), match_forward_simt_cuda.cu (float, double)
template <class T>
Status launch_forward(const ForwardArgs<T>& args, Stream stream);
// match_backward_mma_cuda.cu, match_backward_simt_cuda.cu
template <class T>
Status launch_score_gradient(const GradientArgs<T>& args, int64_t images, Stream stream);

// The view from image b on.
template <int Rank>
View<Rank> from_image(View<Rank> v, int64_t b) {
  if (v.data != nullptr) v.data = static_cast<char*>(v.data) + b * v.stride[0] * element_size(v.dtype);
  return v;
}

// Whole operations, with their workspaces. match_simple_cuda.cu, match_forward_cuda.cu, match_backward_cuda.cu.
size_t simple_backward_bytes(const MatchParams& p);
Status simple_forward(const MatchParams& p, Stream stream);
Status simple_backward(const MatchParams& p, void* workspace, Stream stream);
size_t tiled_forward_bytes(const MatchParams& p);
Status tiled_forward(const MatchParams& p, void* workspace, Stream stream);
// match_hopper_cuda.cu
size_t hopper_forward_bytes(const MatchParams& p);
Status hopper_forward(const MatchParams& p, void* workspace, Stream stream);
// match_backward_hopper_cuda.cu; null where it takes the call, else the reason why not
const char* why_not_hopper_backward(const MatchParams& p, int capability);
size_t hopper_backward_bytes(const MatchParams& p);
Status hopper_backward(const MatchParams& p, void* workspace, Stream stream);
size_t tiled_backward_bytes(const MatchParams& p);
Status tiled_backward(const MatchParams& p, void* workspace, Stream stream);

}  // namespace cosegflow::match_cuda

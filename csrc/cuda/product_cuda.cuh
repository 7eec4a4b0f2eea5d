// The products of the backward passes, batched, with device-side counts:
//   out[b](i, c) (+)= sum_k lhs[b](i, k) * scale[b](k) * rhs[b](k, c)
//
// Block: a 128 x 64 tile of out (64 x 64 for double) by tile_product.cuh; one block owns it from the first k to the
// last, so that the result is the same from run to run. lhs is the gradient of the scores, read through a functor
// (plain or transposed: both gradients come from one matrix); rhs are packed features, converted and scaled on load.
// Registers: the microtile and the next slab. Shared memory: two slabs (13 KiB for float, 17 KiB for double).
// Only live rows are touched: i < rows, row_begin + i < row_count[b], and the same for k. Grids are sized for the
// dense case; a block without a live row returns at once.
// Moves rows * depth lhs values per 64 channels and 2 * rows * depth * channels FLOPs: bound by FMA throughput.
// Fraction of the limit reached: not measured yet.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "cosegflow/types.h"
#include "primitives/launch.cuh"
#include "tile_product.cuh"

namespace cosegflow {

template <class T>
struct ProductArgs {
  using Acc = accumulate_t<T>;
  int64_t batch = 0, rows = 0, depth = 0;     // the dense extents of i and k
  int64_t channels = 0, padded_channels = 0;  // of out, and the pitch of rhs
  const int* row_count = nullptr;             // (batch); null: dense
  const int* depth_count = nullptr;           // (batch); null: dense
  int64_t row_begin = 0, depth_begin = 0;     // window: i = 0 is row row_begin of out, k = 0 row depth_begin of rhs
  const T* rhs = nullptr;                     // (batch, rhs_rows, padded_channels)
  const Acc* scale = nullptr;                 // (batch, rhs_rows); null: 1
  int64_t rhs_rows = 0;
  Acc* out = nullptr;  // (batch, out_rows, channels)
  int64_t out_rows = 0;
  bool accumulate = false;  // add to what is there instead of overwriting it
};

// The plain left-hand side: value(b, r, c) of a row-major matrix per image. For the product with the transposed
// matrix, r runs over k and c over i.
template <class Acc>
struct MatrixLhs {
  const Acc* data;
  int64_t pitch, batch_stride;
  __device__ __forceinline__ Acc operator()(int64_t b, int64_t r, int64_t c) const {
    return data[b * batch_stride + r * pitch + c];
  }
};

template <class Acc>
struct GradientProductTile {
  using type = TileProduct<float, 128, 64, 8>;
};
template <>
struct GradientProductTile<double> {
  using type = TileProduct<double, 64, 64, 8>;
};

// How many of `extent` rows, starting at `begin`, are below count[b].
__device__ __forceinline__ int64_t live_rows(const int* count, int64_t b, int64_t begin, int64_t extent) {
  if (count == nullptr) return extent;
  const int64_t rest = count[b] - begin;
  return rest < 0 ? 0 : (rest < extent ? rest : extent);
}

template <class T, bool kTransposed, class Lhs>
__global__ void __launch_bounds__(256, 2) gradient_product_kernel(ProductArgs<T> args, Lhs lhs) {
  using Acc = accumulate_t<T>;
  using Tile = typename GradientProductTile<Acc>::type;
  using Shared = typename Tile::Shared;
  CSF_SHARED(Shared, shared);

  const int64_t col_tiles = (args.channels + Tile::kCols - 1) / Tile::kCols;
  const int64_t row_tiles = (args.rows + Tile::kRows - 1) / Tile::kRows;
  const int64_t c0 = blockIdx.x % col_tiles * Tile::kCols;
  const int64_t i0 = blockIdx.x / col_tiles % row_tiles * Tile::kRows;
  const int64_t b = blockIdx.x / col_tiles / row_tiles;
  const int64_t rows = live_rows(args.row_count, b, args.row_begin, args.rows);
  if (i0 >= rows) return;
  const int64_t depth = live_rows(args.depth_count, b, args.depth_begin, args.depth);
  if (depth == 0 && args.accumulate) return;

  const T* rhs = args.rhs + (b * args.rhs_rows + args.depth_begin) * args.padded_channels;
  const Acc* scale = args.scale == nullptr ? nullptr : args.scale + b * args.rhs_rows + args.depth_begin;
  const auto load_lhs = [&](int64_t i, int64_t k) -> Acc {
    if (i >= rows || k >= depth) return Acc(0);
    return kTransposed ? lhs(b, k, i) : lhs(b, i, k);
  };
  const auto load_rhs = [&](int64_t c, int64_t k) -> Acc {
    if (c >= args.channels || k >= depth) return Acc(0);
    const Acc value = to_float(rhs[k * args.padded_channels + c]);
    return scale == nullptr ? value : value * scale[k];
  };

  typename Tile::Accumulators acc;
  Tile::clear(acc);
  Tile::template multiply<kTransposed ? Contiguous::kRow : Contiguous::kDepth, Contiguous::kRow>(
      shared, acc, i0, c0, depth, load_lhs, load_rhs);

  Acc* out = args.out + (b * args.out_rows + args.row_begin) * args.channels;
#pragma unroll
  for (int m = 0; m < Tile::kM; ++m) {
    const int64_t i = i0 + Tile::row(m);
#pragma unroll
    for (int n = 0; n < Tile::kN; ++n) {
      const int64_t c = c0 + Tile::col(n);
      if (i >= rows || c >= args.channels) continue;
      Acc* at = out + i * args.channels + c;
      *at = args.accumulate ? *at + acc[m][n] : acc[m][n];
    }
  }
}

template <bool kTransposed, class T, class Lhs>
Status launch_gradient_product(const ProductArgs<T>& args, const Lhs& lhs, Stream stream) {
  using Tile = typename GradientProductTile<accumulate_t<T>>::type;
  const int64_t blocks =
      (args.channels + Tile::kCols - 1) / Tile::kCols * ((args.rows + Tile::kRows - 1) / Tile::kRows) * args.batch;
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {"cosegflow: the gradient product needs more than 2^31 blocks"};
  return launch(&gradient_product_kernel<T, kTransposed, Lhs>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0,
                stream, args, lhs);
}

}  // namespace cosegflow

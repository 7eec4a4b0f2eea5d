// Packed rows of halves to rows of norm 1, rounded to their own type: the features of a product with the gradient of a
// volume, or of scores in float16 (half_gradient.cuh), where the factor 1 / norm can be put nowhere else.
//
// A thread takes 8 neighbouring channels of a row: 16 bytes in, 16 out. Moves 2 * C * N * sizeof(T): bound by memory.
#pragma once

#include <climits>
#include <cstdint>

#include "common/round_up.h"
#include "pack.cuh"
#include "pack_tiles.cuh"
#include "primitives/half_pair.cuh"
#include "primitives/launch.cuh"

namespace cosegflow {

template <class T>
struct NormalizeRowsArgs {
  int64_t batch, positions, depth;  // rows that an image has room for, of `depth` numbers, a multiple of 8
  const T* features;                // (B, positions, depth)
  // 1 / norm of row r of image b is inv_norm[(b * inv_norm_pitch + r) * inv_norm_stride].
  const float* inv_norm;
  int64_t inv_norm_pitch, inv_norm_stride;
  const int* count;  // (B): rows that there are
  int row_step;      // rows up to the next multiple of it are written too
  T* out;            // (B, positions, depth)
};

template <class T>
__global__ void __launch_bounds__(256) normalize_rows_kernel(NormalizeRowsArgs<T> args) {
  const int64_t pieces = args.depth / 8, i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  const int64_t row = i / pieces, b = row / args.positions, r = row % args.positions;
  if (b >= args.batch || r >= (args.count[b] + args.row_step - 1) / args.row_step * args.row_step) return;
  const float inv_norm = args.inv_norm[(b * args.inv_norm_pitch + r) * args.inv_norm_stride];
  const uint4 in = reinterpret_cast<const uint4*>(args.features)[i];
  const auto scaled = [&](uint32_t pair) {
    const float low = to_float(T{static_cast<uint16_t>(pair & 0xffffu)});
    const float high = to_float(T{static_cast<uint16_t>(pair >> 16)});
    return half_pair<T>(low * inv_norm, high * inv_norm);
  };
  reinterpret_cast<uint4*>(args.out)[i] = {scaled(in.x), scaled(in.y), scaled(in.z), scaled(in.w)};
}

template <class T>
Status launch_normalize_rows(const NormalizeRowsArgs<T>& args, Stream stream) {
  const int64_t blocks = ceil_div(args.batch * args.positions * (args.depth / 8), 256);
  if (blocks > INT_MAX) return {"cosegflow: the features are too large for one launch"};
  return launch(&normalize_rows_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
}

// out (B, positions, depth); null: nothing is done. Of a TileSide also the zeros behind the last row.
template <class T>
Status normalize_rows(const TileSide<T>& side, T* out, Stream stream) {
  if (out == nullptr) return {};
  const float* const inv_norm = &side.scale->inv_norm;
  return launch_normalize_rows<T>(
      {side.batch, side.positions, side.depth, side.features, inv_norm, side.pitch, 2, side.count, kTileRowStep, out},
      stream);
}

template <class T>
Status normalize_rows(const PackedSide<T>& side, T* out, Stream stream) {
  if (out == nullptr) return {};
  return launch_normalize_rows<T>({side.batch, side.positions, side.padded_channels, side.features, side.inv_norm,
                                   side.positions, 1, side.count, 1, out},
                                  stream);
}

}  // namespace cosegflow

// The two products of a backward on Hopper, in one launch, from a chunk of ds, the (scaled) gradient of the scores of a
// row run of some images:
//   out_a[i, c] = sum_j ds[i, j] b[j, c]        out_b[j, c] (+)= sum_i ds[i, j] a[i, c]
// in float32, the depth in order; where a product has few tiles and much depth, in several partial sums, which whoever
// reads them adds in order. Counts are on the device: neither rows nor depth beyond them are computed.
#pragma once

#include <cstdint>

#include "common/round_up.h"
#include "cosegflow/types.h"
#include "hopper/tile_shape.cuh"

namespace cosegflow::hopper {

// One of the two: rows of ds (or its columns) against the features of the other side.
struct ProductSide {
  const int* rows = nullptr;   // (images): rows of out that there are, at most row_bound
  const int* depth = nullptr;  // (images): of the sum
  int64_t row_bound = 0, depth_bound = 0;
  int first_depth = 0;   // the feature row that belongs to depth 0
  float* out = nullptr;  // (images, out_rows, channels), from the chunk's first row on; null: not wanted
  int64_t out_rows = 0;  // of an image
  int64_t partial = 0;   // numbers from one partial sum to the next
  int splits = 1;        // partial sums
  bool accumulate = false;
};

template <class T>
struct GradientProductArgs {
  // (images, row_room, pitch): row_room a multiple of 256, pitch of 64. Up to the next multiple of 64 of each count it
  // holds zeros.
  const T* ds = nullptr;
  int64_t images = 0, row_room = 0, pitch = 0;
  // (images, feature_rows, depth): packed (pack_tiles.cuh), finite up to the next multiple of 64 of each count.
  const T *features_a = nullptr, *features_b = nullptr;
  int64_t feature_rows_a = 0, feature_rows_b = 0, feature_depth = 0;
  int64_t channels = 0;  // at most feature_depth
  ProductSide a, b;
};

// Of 256 rows x 128 channels.
inline int64_t product_tiles(int64_t images, int64_t rows, int64_t channels) {
  return images * ceil_div(rows, kRows) * ceil_div(channels, kCols);
}

// Adds the partial sums of rows of one image, in order.
struct PartsArgs {
  const float* parts;  // (splits, ..., channels)
  int splits;
  int64_t partial;  // numbers from one to the next
  const int* rows;  // that there are, on the device; at most row_bound
  int64_t row_bound, channels;
  float* out;
};
Status launch_add_parts(const PartsArgs& args, Stream stream);

// T is Half or BFloat16.
template <class T>
Status launch_gradient_products(const GradientProductArgs<T>& args, Stream stream);

}  // namespace cosegflow::hopper

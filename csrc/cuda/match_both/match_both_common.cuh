// What the fast match_both kernels share: they are match's tile engines (match/match_common.cuh) with a second softmax,
// over the columns of a tile. Host functions that cross translation units are declared here.
#pragma once

#include <cstdint>

#include "common/match_directions.h"
#include "match/match_common.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::match_both_cuda {

using match_cuda::block_place;
using match_cuda::BlockPlace;
using match_cuda::choose_splits;
using match_cuda::Column;
using match_cuda::load_column;
using match_cuda::split_range;
using match_cuda::TileExtent;

constexpr size_t kDefaultChunkBytes = size_t{64} << 20;

// Keeps the compiler from reading rows and columns far ahead, into registers that it lacks. Nothing depends on it.
__device__ __forceinline__ void fence_loads() {
#if !defined(COSEGFLOW_HOSTSIM)
  __syncwarp();
#endif
}

// Some tiles of rows, from row tile `tile_begin` on, of all images.
template <class T>
struct ForwardArgs {
  using Acc = accumulate_t<T>;
  PackedSide<T> a, b;
  int width_a, height_a, width_b, height_b;
  View1 beta;
  int tile_begin, row_tiles, splits;
  OnlineSoftmax<Acc>* rows;     // (splits, B, Na): states of compact rows
  OnlineSoftmax<Acc>* columns;  // (B, row_tiles, Nb): states of compact columns, one for each tile of rows
};

// A compact pixel in the backward: as a source, its lse, expected position and incoming gradients; as a target, its
// place and weight. Positions of matches and places are relative to the centre of the image that they lie in.
template <class Acc>
struct alignas(16) Pixel {
  Acc inv_norm, lse, match_x, match_y, grad_x, grad_y, grad_lse;
  Acc x, y, log_weight;
};

// What a tile takes for a pixel beyond the count: both probabilities are 0.
template <class Acc>
__device__ __forceinline__ Pixel<Acc> no_pixel() {
  const Acc zero = Acc(0), infinity = -minus_infinity<Acc>();
  return {zero, infinity, zero, zero, zero, zero, zero, zero, zero, -infinity};
}

// One chunk of the backward: `images` images from image b0 on, rows [row_begin, row_begin + rows) of each.
template <class T>
struct GradientArgs {
  using Acc = accumulate_t<T>;
  PackedSide<T> a, b;                    // this and all below from image b0 on
  const Pixel<Acc>*pixels_a, *pixels_b;  // (images, Na), (images, Nb)
  View1 beta;
  int row_begin, rows;
  int row_tiles, splits;
  int64_t pitch;      // of a row of dscore and of columns: a multiple of the tile
  Acc* dscore;        // (images, rows, pitch): d(loss)/ds of both directions
  Acc* columns;       // (images, row_tiles, 2, pitch): over a tile's rows, sums of a's dlogit and of both * s; or null
  Acc* row_sums;      // over the columns of a split, sums of b's dlogit; null where not wanted
  int64_t row_pitch;  // from one split to the next: (splits, B, Na)
};

// match_both_forward_mma_cuda.cu (halves), match_both_forward_simt_cuda.cu (float, double)
template <class T>
Status launch_forward(const ForwardArgs<T>& args, Stream stream);
// match_both_backward_mma_cuda.cu, match_both_backward_simt_cuda.cu
template <class T>
Status launch_score_gradient(const GradientArgs<T>& args, int64_t images, Stream stream);

// Whole operations. match_both_simple_cuda.cu, match_both_forward_cuda.cu, match_both_backward_cuda.cu.
size_t simple_forward_bytes(const MatchBothParams& p);
size_t simple_backward_bytes(const MatchBothParams& p);
Status simple_forward(const MatchBothParams& p, void* workspace, Stream stream);
Status simple_backward(const MatchBothParams& p, void* workspace, Stream stream);
size_t tiled_forward_bytes(const MatchBothParams& p);
Status tiled_forward(const MatchBothParams& p, void* workspace, Stream stream);
// match_both_hopper_cuda.cu; taken where hopper::why_not of one direction says null.
size_t hopper_forward_bytes(const MatchBothParams& p);
Status hopper_forward(const MatchBothParams& p, void* workspace, Stream stream);
// match_both_backward_hopper_cuda.cu; taken where hopper::why_not_backward says null.
size_t hopper_backward_bytes(const MatchBothParams& p);
Status hopper_backward(const MatchBothParams& p, void* workspace, Stream stream);
size_t tiled_backward_bytes(const MatchBothParams& p);
Status tiled_backward(const MatchBothParams& p, void* workspace, Stream stream);

}  // namespace cosegflow::match_both_cuda

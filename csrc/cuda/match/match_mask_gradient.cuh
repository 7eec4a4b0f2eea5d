// What the mask and beta get of a backward of match: sums of dlogit and of dlogit * s that the score gradient left for
// runs of rows, added in order. One thread a target adds the runs of a chunk, one block an image adds targets, or
// tiles. No atomics, no barrier but the block sums: the bits are the same on every run. Bound by memory: one or two
// numbers for each run of 32 or 128 rows and target.
#pragma once

#include <climits>
#include <cstdint>

#include "cosegflow/match.h"
#include "mask_weight.cuh"
#include "primitives/launch.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow::match_cuda {

template <class Acc>
struct ColumnSums {
  const Acc* columns;            // (images, runs, 2, pitch)
  const int *count_a, *count_b;  // (images)
  int64_t images;
  int row_begin, rows;       // of the chunk; live rows of image b: min(rows, count_a[b] - row_begin)
  bool first;                // the first chunk of its images: sums are overwritten
  int tile_rows, tile_runs;  // the runs of each so many rows
  int64_t runs, pitch;       // runs that an image has room for
  int kinds;
  Acc* sums;  // (images, kinds, pitch)
};

// Block: 32 columns; each of its 8 warps adds every 8th run, then one adds the 8 sums, in order.
template <class Acc>
__global__ void __launch_bounds__(256) match_add_columns_kernel(ColumnSums<Acc> args) {
  using Parts = Acc[8][32];
  CSF_SHARED(Parts, parts);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 32 + lane;  // pitch is a multiple of 32
  const int64_t b = i / (args.kinds * args.pitch), which_and_j = i % (args.kinds * args.pitch);
  if (i / 32 * 32 >= args.images * args.kinds * args.pitch) return;  // the whole block
  const int live = min(args.rows, args.count_a[b] - args.row_begin);
  const int runs = live <= 0 ? 0 : (live + args.tile_rows - 1) / args.tile_rows * args.tile_runs;
  const bool counts = which_and_j % args.pitch < args.count_b[b];
  Acc sum = Acc(0);
  for (int run = warp; counts && run < runs; run += 8) {
    sum += args.columns[(b * args.runs + run) * args.kinds * args.pitch + which_and_j];
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || !counts) return;
#pragma unroll
  for (int w = 1; w < 8; ++w) sum += parts[w][lane];
  args.sums[i] = args.first ? sum : args.sums[i] + sum;
}

template <class Acc>
Status launch_add_columns(const ColumnSums<Acc>& args, Stream stream) {
  const int64_t blocks = (args.images * args.kinds * args.pitch + 31) / 32;
  if (blocks > INT_MAX) return {"match: too many target pixels for one launch"};
  return launch(&match_add_columns_kernel<Acc>, dim3(static_cast<unsigned>(blocks)), dim3(256), 0, stream, args);
}

// Sums of dlogit s of whole tiles.
template <class Acc>
struct TileSums {
  const Acc* tiles;              // (images, runs, pitch)
  const int *count_a, *count_b;  // (images): live rows of the chunk, targets
  int images;
  bool first;                           // the first chunk of its images: sums are overwritten
  int tile_rows, tile_runs, tile_cols;  // the runs of each so many rows; the columns of a tile
  int64_t runs, pitch;                  // runs and tiles that an image has room for
  Acc* sums;                            // (images)
};

// A block an image.
template <class Acc>
__global__ void __launch_bounds__(256) match_add_tiles_kernel(TileSums<Acc> args) {
  const int64_t b = blockIdx.x;
  const int live = args.count_a[b], tiles = (args.count_b[b] + args.tile_cols - 1) / args.tile_cols;
  const int runs = (live + args.tile_rows - 1) / args.tile_rows * args.tile_runs;
  Acc sum = Acc(0);
  for (int i = threadIdx.x; i < runs * tiles; i += 256) {
    sum += args.tiles[(b * args.runs + i / tiles) * args.pitch + i % tiles];
  }
  sum = block_reduce_sum(sum);
  if (threadIdx.x == 0) args.sums[b] = args.first ? sum : args.sums[b] + sum;
}

template <class Acc>
struct MaskAndBeta {
  const Acc* sums;  // (B, kinds, pitch)
  int64_t pitch;
  int kinds;
  const Acc* beta_sums;      // (B), where kinds is 1
  const int *count, *index;  // of b: (B), (B, positions)
  int64_t batch, positions;
  int width;
  View3 mask, grad_mask;  // grad_mask: null where not wanted
  View1 grad_beta;        // likewise
};

// d(loss)/dm_j = sum_i dlogit_ij / m_j, scattered to the raster; excluded targets keep the 0 of the memset.
template <class Acc>
__global__ void __launch_bounds__(256) match_mask_gradient_kernel(MaskAndBeta<Acc> args) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= args.batch * args.positions) return;
  const int64_t b = i / args.positions, j = i % args.positions;
  if (j >= args.count[b]) return;
  const int64_t y = args.index[i] / args.width, x = args.index[i] % args.width;
  const View3& grad = args.grad_mask;
  static_cast<Acc*>(grad.data)[b * grad.stride[0] + y * grad.stride[1] + x * grad.stride[2]] =
      args.sums[b * args.kinds * args.pitch + j] / mask_weight<Acc>(args.mask, b, y, x).weight;
}

template <class Acc>
__global__ void __launch_bounds__(256) match_beta_gradient_kernel(MaskAndBeta<Acc> args) {
  const int64_t b = blockIdx.x;
  Acc sum = Acc(0);
  if (args.kinds == 1) {
    sum = args.beta_sums[b];
  } else {
    for (int j = threadIdx.x; j < args.count[b]; j += 256) sum += args.sums[(b * 2 + 1) * args.pitch + j];
    sum = block_reduce_sum(sum);
  }
  if (threadIdx.x == 0) static_cast<Acc*>(args.grad_beta.data)[b * args.grad_beta.stride[0]] = sum;
}

template <class Acc>
Status launch_mask_and_beta(const MaskAndBeta<Acc>& args, Stream stream) {
  if (args.grad_mask.data != nullptr) {
    const int64_t n = args.batch * args.positions;
    if (Status s = memset_async(args.grad_mask.data, 0, static_cast<size_t>(n) * sizeof(Acc), stream); !s.ok())
      return s;
    if (Status s = launch(&match_mask_gradient_kernel<Acc>, dim3(static_cast<unsigned>((n + 255) / 256)), dim3(256), 0,
                          stream, args);
        !s.ok()) {
      return s;
    }
  }
  if (args.grad_beta.data == nullptr) return {};
  return launch(&match_beta_gradient_kernel<Acc>, dim3(static_cast<unsigned>(args.batch)), dim3(256), 0, stream, args);
}

}  // namespace cosegflow::match_cuda

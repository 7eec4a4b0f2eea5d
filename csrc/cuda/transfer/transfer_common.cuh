// What the files of transfer share: the operands of one chunk of rows, and the host functions that cross translation
// units (kernels are launched where they are instantiated).
//
// transfer_cuda.cu drives both sets of kernels in the same way. Both sides are packed (pack.cuh), values and incoming
// gradients too: compact rows, channels last, in the accumulate type. Then rows are taken in chunks whose probabilities
// fit a bounded workspace:
//   forward: peak and sum of every row;  P = exp(beta s + log m - peak) / sum;  out = P values
//   backward: D = g values^T;  (s again) P = exp(beta s + log m - lse) and dS = beta P (D - delta);
//     then dS b_hat, dS^T a_hat, P^T g
// The fast kernels are match's forward (match_forward_kernel.cuh) for peak and sum, transfer_tile_kernels.cuh, and the
// products of product_cuda.cuh; the simple ones are transfer_simple_cuda.cu: a thread an element, plain loops.
#pragma once

#include <cstdint>

#include "common/round_up.h"
#include "cosegflow/transfer.h"
#include "match/match_common.cuh"
#include "pack.cuh"
#include "product_cuda.cuh"

namespace cosegflow::transfer_cuda {

using match_cuda::ForwardArgs;
using match_cuda::TileExtent;

// One chunk: `images` images (all pointers are from the first of them on), rows [row_begin, row_begin + rows) of the
// compact rows of each.
template <class T>
struct ChunkArgs {
  using Acc = accumulate_t<T>;
  PackedSide<T> a, b;
  View1 beta;
  int64_t images = 0, value_channels = 0;
  int row_begin = 0, rows = 0, row_tiles = 0, splits = 1;
  int64_t pitch = 0;              // of a row of probability, dscore and columns: a multiple of the tile
  const Acc* values = nullptr;    // (images, Nb, V), compact
  const Acc* grad_out = nullptr;  // (images, Na, V), compact; backward only
  // (images, Na), compact. Forward: the largest logit and 1 / sum; backward: lse and delta = <grad_out_i, out_i>.
  const Acc *base = nullptr, *extra = nullptr;
  Acc* probability = nullptr;  // (images, rows, pitch)
  Acc* dscore = nullptr;       // (images, rows, pitch): D, then dS; backward only
  Acc* columns = nullptr;      // (images, row_tiles, 2, pitch): sums over a tile's rows of dlogit, dlogit * s; or null
};

// Halves in transfer_mma_cuda.cu, float and double in transfer_simt_cuda.cu.
template <class T>
Status launch_states(const ForwardArgs<T>& args, Stream stream);
template <class T>
Status launch_probability(const ChunkArgs<T>& args, Stream stream);
template <class T>
Status launch_gradient(const ChunkArgs<T>& args, Stream stream);

// The whole forward in the pipeline of Hopper: transfer_hopper_cuda.cu. Null where it takes the call, else why not.
const char* why_not_hopper(const TransferParams& p, int capability);
size_t hopper_forward_bytes(const TransferParams& p);
Status hopper_forward(const TransferParams& p, void* workspace, Stream stream);
// And the backward: transfer_backward_hopper_cuda.cu.
const char* why_not_hopper_backward(const TransferParams& p, int capability);
size_t hopper_backward_bytes(const TransferParams& p);
Status hopper_backward(const TransferParams& p, void* workspace, Stream stream);

// The same by plain loops: transfer_simple_cuda.cu.
template <class T>
Status simple_states(const PackedSide<T>& a, const PackedSide<T>& b, View1 beta,
                     OnlineSoftmax<accumulate_t<T>>* partial, Stream stream);
template <class T>
Status simple_probability(const ChunkArgs<T>& args, Stream stream);
template <class T>
Status simple_gradient(const ChunkArgs<T>& args, Stream stream);
template <bool kTransposed, class T>
Status simple_product(const ProductArgs<T>& args, const MatrixLhs<accumulate_t<T>>& lhs, Stream stream);

}  // namespace cosegflow::transfer_cuda

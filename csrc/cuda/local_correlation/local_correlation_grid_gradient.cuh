// local_correlation without flow, backward: what its two kernels read and where they store.
//
// The gradient to a pixel's feature is the sum, over its window in the other side, of gradient planes times features;
// for fa and for fb alike, since the planes are turned to the side whose gradient is formed (the pack kernels). One
// piece of the window is one launch; later pieces add to what earlier ones left.
#pragma once

#include "local_correlation/local_correlation_grid.cuh"

namespace cosegflow::local_correlation_cuda {

// Out: T, or the accumulate type where the gradient is not formed in its place: before the normalization, or, of
// halves, over several pieces.
template <class T, class Out>
struct GradientCall {
  using Acc = accumulate_t<T>;
  Planes<T> grad;                  // 81 planes of the piece in place of channels, of the side whose gradient is formed
  Planes<T> other;                 // the features of the other side, normalized where that is asked for
  int height, width, other_width;  // in pixels
  int64_t channels, run;           // in all, and of a block
  int first_y, first_x;            // the piece's first offset
  int dy_begin, dy_end, dx_begin, dx_end;  // what of the piece is in the window
  Out* result;                             // (B, C, H, W)
  bool add;                                // to what is there
  bool units;                              // rows of the result are aligned to 4 pixels

  // A piece's products have zeros where the window has ended or the other side has, and 0 times inf is NaN. So where a
  // sum is not finite it is formed again, of what is in the window alone.
  __device__ __forceinline__ Acc exact_sum(int64_t b, int64_t c, int y, int x) const {
    Acc sum = Acc(0);
    const T* const feature = other.plane(b, c);
#pragma unroll 1
    for (int dy = dy_begin; dy < dy_end; ++dy) {
      const int other_y = y + first_y + dy;
      if (other_y < 0 || other_y >= other.height) continue;
#pragma unroll 1
      for (int dx = dx_begin; dx < dx_end; ++dx) {
        const int other_x = x + first_x + dx;
        if (other_x < 0 || other_x >= other_width) continue;
        sum += static_cast<Acc>(to_float(grad.plane(b, dy * kSpan + dx)[static_cast<int64_t>(y) * grad.row + x])) *
               static_cast<Acc>(to_float(feature[static_cast<int64_t>(other_y) * other.row + other_x]));
      }
    }
    return sum;
  }

  // The element in `result` or `sums`.
  __device__ __forceinline__ int64_t place(int64_t b, int64_t c, int y, int x) const {
    return ((b * channels + c) * height + y) * width + x;
  }
};

// A block's tile and its channels begin .. end - 1.
struct GradientBlock {
  TileOfBlock tile;
  int64_t begin, end;
};
template <int kRows, class T, class Out>
__device__ __forceinline__ GradientBlock gradient_block(const GradientCall<T, Out>& call) {
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * call.run, end = begin + call.run;
  return {tile_of_block<kRows>(call.height, call.width, 1), begin, end < call.channels ? end : call.channels};
}

// Copies the tile's planes of gradients (S: kRows, kWarps), a plane a warp at a time.
template <class S, class T, class Out, int kPlane>
__device__ __forceinline__ void copy_gradients(const GradientCall<T, Out>& call, const TileOfBlock& tile,
                                               T (&to)[kWindow][kPlane]) {
  const PlaneCopy<T, S::kRows, kTileUnits> copy(call.grad, tile.y, tile.x);
  for (int offset = static_cast<int>(threadIdx.x) / 32; offset < kWindow; offset += S::kWarps) {
    copy.run(to[offset], call.grad.plane(tile.b, offset), true);
  }
}

// Out is T, or Acc for sums.
template <class Out, class Acc>
__device__ __forceinline__ void store_gradient(Out* to, Acc value, bool add) {
  if (add) value += static_cast<Acc>(to_float(*to));
  *to = from_float<Out>(value);
}

}  // namespace cosegflow::local_correlation_cuda

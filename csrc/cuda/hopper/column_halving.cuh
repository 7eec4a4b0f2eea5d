// Sums of a piece's columns (score_gradient.cuh) over the rows of a warp, taken in as soon as two columns of a thread
// are known: each time half of the lanes go on with one, so that four numbers at most wait, and 7 shuffles are enough.
#pragma once

#include <cuda_runtime.h>

#include "hopper/thread_tile.cuh"

namespace cosegflow::hopper {

class ColumnHalving {
 public:
  // The sums over the thread's rows of its columns 2 u and 2 u + 1 of the piece, u = 0, 1, 2, 3 in turn. All lanes.
  __device__ __forceinline__ void add(int u, float first, float second) {
    float sum = keep_half(first, second, 16);
    if (u % 2 == 1) sum = keep_half(pair_, sum, 8);
    if (u == 1) four_ = sum;
    if (u == 3) four_ = keep_half(four_, sum, 4);
    if (u % 2 == 0) pair_ = sum;
  }
  // Afterwards: the sum of the column of the tile that is the lane's, in piece `piece`.
  __device__ __forceinline__ float sum() const { return four_; }
  static __device__ __forceinline__ int column(int piece) {
    const int lane = ThreadTile::lane();
    return piece * 32 + (lane & 4) * 4 + (lane & 8) + lane % 4 * 2 + lane / 16;
  }

 private:
  // Half of the lanes go on with a, the others with b: each with what both of two lanes had of it.
  static __device__ __forceinline__ float keep_half(float a, float b, unsigned lanes) {
    const bool upper = (threadIdx.x & lanes) != 0;
    const float got = __shfl_xor_sync(0xffffffffu, upper ? a : b, static_cast<int>(lanes));
    return (upper ? b : a) + got;
  }

  float pair_ = 0.0f, four_ = 0.0f;
};

}  // namespace cosegflow::hopper

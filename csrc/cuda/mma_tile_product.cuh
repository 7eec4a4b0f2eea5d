// Tensor-core tiles: a block of 256 threads walks along a strip of 128 x 128 tiles of a b^T, a and b being rows of
// halves, channels last (pack.cuh), and hands each finished tile, in registers, to an epilogue.
//
// Registers: 8 warps as 4 x 2, each owns 32 x 64 of the tile: 2 x 8 mma tiles, 64 float32 accumulators a thread.
// Shared memory: a ring of 4 stages, each a slab of 32 channels of 128 rows of a and of b (16 KiB): 64 KiB, so two
//   blocks fit an SM of sm_80. A row of a slab is 64 bytes, four 16-byte chunks; chunk c of row r lies at
//   c ^ (r / 2 % 4), so the 8 rows that an ldmatrix reads together touch all 32 banks once, and so do the stores.
// Pipeline: cp.async runs three slabs ahead, across tile borders: while an epilogue computes, the next tile arrives.
//   One barrier a slab: it publishes the slab that has landed and frees the one before it.
// For each slab a warp issues 12 ldmatrix.x4 and 32 mma.m16n8k16: 21 FMAs per byte of shared memory.
// For each 128 x 128 x C tile a block reads 512 C bytes from L2: 32 FMAs per byte. Bound by the tensor cores; fraction
// of their rate reached: not measured yet.
// Rows beyond the count and channels beyond the padded ones read as 0 and their memory is not touched.
#pragma once

#include <cstdint>

#include "primitives/async_copy.cuh"
#include "primitives/launch.cuh"
#include "primitives/mma.cuh"

namespace cosegflow {

template <class T>
struct MmaTileProduct {
  static constexpr int kThreads = 256;
  static constexpr int kRows = 128, kCols = 128, kDepth = 32, kStages = 4;
  static constexpr int kSlab = (kRows + kCols) * kDepth;  // elements of a stage: a, then b
  static constexpr size_t kSharedBytes = static_cast<size_t>(kStages) * kSlab * sizeof(T);
  static constexpr int kWarpsM = 4, kWarpsN = 2, kWarpRows = kRows / kWarpsM, kWarpCols = kCols / kWarpsN;
  static constexpr int kTilesM = kWarpRows / 16, kTilesN = kWarpCols / 8;
  using Accumulators = float[kTilesM][kTilesN][4];

  // The strip: `rows` rows of a (at most 128), and of b the tiles [first, end) of `count` rows.
  struct Strip {
    const T* a;
    const T* b;
    int rows, count;
    int first, end;
    int depth;  // the padded channels: the pitch of both
  };

  // begin(tile) before the product of a tile, with at least one barrier before epilogue(tile, accumulators).
  template <class Begin, class Epilogue>
  static __device__ __forceinline__ void run(T* shared, const Strip& strip, const Begin& begin,
                                             const Epilogue& epilogue) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int slabs = (strip.depth + kDepth - 1) / kDepth;

    // This thread copies one 16-byte chunk of rows copy_row and copy_row + 64 of both operands. Bases that are equal
    // for the block and 32-bit offsets within a tile keep the addresses in few registers.
    const int copy_row = threadIdx.x / 4, copy_chunk = threadIdx.x % 4;
    const int copy_to = swizzle(copy_row, copy_chunk);  // row + 64 has the same swizzle
    const unsigned half = static_cast<unsigned>(kRows / 2 * strip.depth);
    int copy_tile = strip.first, copy_channel = 0;
    const auto copy_next = [&](int stage) {
      if (copy_tile < strip.end) {
        const T* const b = strip.b + static_cast<int64_t>(copy_tile) * kCols * strip.depth;
        const int rest = strip.count - copy_tile * kCols;
        const int channel = copy_channel + copy_chunk * 8;
        const unsigned from = static_cast<unsigned>(copy_row * strip.depth + channel);
        const bool inside = channel < strip.depth;
        T* const to = shared + stage * kSlab + copy_to;
        cp_async_16(to, strip.a + from, inside && copy_row < strip.rows);
        cp_async_16(to + kRows / 2 * kDepth, strip.a + (from + half), inside && copy_row + kRows / 2 < strip.rows);
        cp_async_16(to + kRows * kDepth, b + from, inside && copy_row < rest);
        cp_async_16(to + (kRows + kCols / 2) * kDepth, b + (from + half), inside && copy_row + kCols / 2 < rest);
        copy_channel += kDepth;
        if (copy_channel >= strip.depth) {
          copy_channel = 0;
          ++copy_tile;
        }
      }
      cp_async_commit();  // an empty group at the end keeps the count
    };

    // Where this lane's rows of the ldmatrix tiles begin; see mma.cuh for the order of the four tiles.
    const int row_a = warp / kWarpsN * kWarpRows + lane % 16, chunk_a = lane / 16;
    const int row_b = warp % kWarpsN * kWarpCols + lane % 8 + lane / 16 * 8, chunk_b = lane / 8 % 2;
    // From one k to the next the chunk changes by 2, which is one bit of its place.
    const int lane_a = swizzle(row_a, chunk_a), lane_b = swizzle(kRows + row_b, chunk_b);

    for (int s = 0; s < kStages - 1; ++s) copy_next(s);
    int stage = 0;
    for (int tile = strip.first; tile < strip.end; ++tile) {
      begin(tile);
      Accumulators acc;
#pragma unroll
      for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
        for (int n = 0; n < kTilesN; ++n) acc[m][n][0] = acc[m][n][1] = acc[m][n][2] = acc[m][n][3] = 0.0f;
      }
      for (int slab = 0; slab < slabs; ++slab) {
        cp_async_wait<kStages - 2>();
        __syncthreads();
        copy_next(stage == 0 ? kStages - 1 : stage - 1);  // the stage that everybody has finished reading
#pragma unroll
        for (int k = 0; k < kDepth / 8; k += 2) {
          const T* const a = shared + ((stage * kSlab + lane_a) ^ (k * 8));
          const T* const b = shared + ((stage * kSlab + lane_b) ^ (k * 8));
          uint32_t fragment_a[kTilesM][4];
#pragma unroll
          for (int m = 0; m < kTilesM; ++m) {
            ldmatrix_x4(fragment_a[m], a + m * 16 * kDepth);
          }
#pragma unroll
          for (int n = 0; n < kTilesN; n += 2) {
            uint32_t r[4];
            ldmatrix_x4(r, b + n * 8 * kDepth);
            const uint32_t left[2] = {r[0], r[1]}, right[2] = {r[2], r[3]};
#pragma unroll
            for (int m = 0; m < kTilesM; ++m) {
              mma_m16n8k16<T>(acc[m][n], fragment_a[m], left);
              mma_m16n8k16<T>(acc[m][n + 1], fragment_a[m], right);
            }
          }
        }
        stage = stage + 1 == kStages ? 0 : stage + 1;
      }
      epilogue(tile, acc);
    }
    cp_async_wait<0>();
  }

  // ---- which elements of the tile a thread holds: kThreadRows x kThreadCols of them --------------------------------
  static constexpr int kThreadRows = kTilesM * 2, kThreadCols = kTilesN * 2;
  static constexpr int kRowLanes = 4;        // neighbouring lanes that share their rows
  static constexpr int kRowWarps = kWarpsN;  // warps that share their rows
  static __device__ __forceinline__ int row(int r) {
    return static_cast<int>(threadIdx.x) / 32 / kWarpsN * kWarpRows + r / 2 * 16 + r % 2 * 8 +
           static_cast<int>(threadIdx.x) % 32 / 4;
  }
  static __device__ __forceinline__ int col(int c) {
    return static_cast<int>(threadIdx.x) / 32 % kWarpsN * kWarpCols + c / 2 * 8 + c % 2 +
           static_cast<int>(threadIdx.x) % 4 * 2;
  }
  static __device__ __forceinline__ float& value(Accumulators& acc, int r, int c) {
    return acc[r / 2][c / 2][r % 2 * 2 + c % 2];
  }
  // Which of the kRowWarps, and of the kColWarps, this thread's warp is.
  static constexpr int kColWarps = kWarpsM;  // warps that share their columns
  static __device__ __forceinline__ int row_warp() { return static_cast<int>(threadIdx.x) / 32 % kWarpsN; }
  static __device__ __forceinline__ int col_warp() { return static_cast<int>(threadIdx.x) / 32 / kWarpsN; }

 private:
  static __device__ __forceinline__ int swizzle(int row, int chunk) {
    return row * kDepth + (chunk ^ (row / 2 % 4)) * 8;
  }
};

}  // namespace cosegflow

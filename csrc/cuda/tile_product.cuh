// A block of 256 threads computes a BM x BN tile of sum_k a(i, k) b(j, k) in the accumulate type (float, double).
//
// Registers: each thread owns a kM x kN microtile, so that one value read from shared memory feeds kM or kN FMAs.
// Shared memory: two slabs of BK columns of a and of b, k-major, so that the threads of a warp read whole 16-byte
// vectors of neighbouring rows. While slab s is multiplied, slab s + 1 is on its way from global memory to registers;
// it is stored into the other buffer afterwards, which costs one barrier a slab.
// Operands come through loaders, `Acc load(i, k)`, which return 0 outside of the operand: type conversion, scales,
// gates and transposition are theirs. With i0 = j0 = 0 they count rows from the tile's first one, and may take `int`:
// 32-bit offsets from a base of their own cost half the registers. A flag per operand says which of the two indices is
// contiguous in memory; neighbouring threads then read neighbouring addresses.
// The 16 threads of half a warp share their rows: a row is reduced by shuffles of width 16.
#pragma once

#include <cstdint>

#include "primitives/launch.cuh"

namespace cosegflow {

enum class Contiguous { kDepth, kRow };  // a(i, k): neighbours in memory are k and k + 1, or i and i + 1

template <class Acc, int BM, int BN, int BK>
struct TileProduct {
  static constexpr int kThreads = 256;
  static constexpr int kRows = BM, kCols = BN;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(Acc));
  static constexpr int kM = BM / 16, kN = BN / 16;
  static constexpr int kLoadsA = BM * BK / kThreads, kLoadsB = BN * BK / kThreads;
  // Unrolled all the way, a microtile of 64 lets the compiler load so far ahead that it spills.
  static constexpr int kUnroll = kM * kN >= 64 ? 2 : BK;
  static_assert(kM % kVector == 0 && kN % kVector == 0, "a microtile is made of 16-byte vectors");
  static_assert(kLoadsA * kThreads == BM * BK && kLoadsB * kThreads == BN * BK, "every thread loads as much");

  // One vector of padding per line spreads the transposing stores over the banks and keeps the lines aligned.
  struct Shared {
    alignas(16) Acc a[2][BK][BM + kVector];
    alignas(16) Acc b[2][BK][BN + kVector];
  };
  struct alignas(16) Vector {
    Acc value[kVector];
  };
  using Accumulators = Acc[kM][kN];

  // The row (column) within the tile of accumulator m (n) of this thread. Vectors are dealt out in turn, so that
  // 16 threads read 16 neighbouring vectors.
  static __device__ __forceinline__ int row(int m) {
    return (m / kVector) * 16 * kVector + (static_cast<int>(threadIdx.x) / 16) * kVector + m % kVector;
  }
  static __device__ __forceinline__ int col(int n) {
    return (n / kVector) * 16 * kVector + (static_cast<int>(threadIdx.x) % 16) * kVector + n % kVector;
  }

  static __device__ __forceinline__ void clear(Accumulators& acc) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kN; ++n) acc[m][n] = Acc(0);
    }
  }

  // acc += the product over k in [0, depth) of the tile whose first row is i0 and whose first column is j0; loaders are
  // asked for k up to the next multiple of BK. All 256 threads call it with equal arguments. It ends with a barrier:
  // `shared` is free again when it returns.
  template <Contiguous kOrderA, Contiguous kOrderB, class LoadA, class LoadB>
  static __device__ __forceinline__ void multiply(Shared& shared, Accumulators& acc, int64_t i0, int64_t j0,
                                                  int64_t depth, const LoadA& load_a, const LoadB& load_b) {
    Acc next_a[kLoadsA], next_b[kLoadsB];
    fetch<kOrderA, BM>(next_a, i0, 0, load_a);
    fetch<kOrderB, BN>(next_b, j0, 0, load_b);
    int buffer = 0;
    for (int64_t k0 = 0; k0 < depth; k0 += BK, buffer ^= 1) {
      store<kOrderA, BM>(shared.a[buffer], next_a);
      store<kOrderB, BN>(shared.b[buffer], next_b);
      // Nobody still reads this buffer: whoever passed the last barrier had finished the slab before last.
      __syncthreads();
      if (k0 + BK < depth) {
        fetch<kOrderA, BM>(next_a, i0, k0 + BK, load_a);
        fetch<kOrderB, BN>(next_b, j0, k0 + BK, load_b);
      }
#pragma unroll kUnroll
      for (int k = 0; k < BK; ++k) {
        Acc a[kM], b[kN];
        read_vectors<kM>(a, shared.a[buffer][k] + (threadIdx.x / 16) * kVector);
        read_vectors<kN>(b, shared.b[buffer][k] + (threadIdx.x % 16) * kVector);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int n = 0; n < kN; ++n) acc[m][n] += a[m] * b[n];
        }
      }
    }
    __syncthreads();
  }

 private:
  // The place in a slab of the n-th value that this thread carries.
  template <Contiguous kOrder, int kRowsOfSlab>
  static __device__ __forceinline__ void place(int n, int& i, int& k) {
    const int e = static_cast<int>(threadIdx.x) + n * kThreads;
    if (kOrder == Contiguous::kDepth) {
      i = e / BK, k = e % BK;
    } else {
      i = e % kRowsOfSlab, k = e / kRowsOfSlab;
    }
  }

  template <Contiguous kOrder, int kRowsOfSlab, int kLoads, class Load>
  static __device__ __forceinline__ void fetch(Acc (&values)[kLoads], int64_t i0, int64_t k0, const Load& load) {
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      int i, k;
      place<kOrder, kRowsOfSlab>(n, i, k);
      values[n] = load(i0 + i, k0 + k);
    }
  }

  template <Contiguous kOrder, int kRowsOfSlab, int kLoads>
  static __device__ __forceinline__ void store(Acc (&slab)[BK][kRowsOfSlab + kVector], const Acc (&values)[kLoads]) {
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      int i, k;
      place<kOrder, kRowsOfSlab>(n, i, k);
      slab[k][i] = values[n];
    }
  }

  template <int kCount>
  static __device__ __forceinline__ void read_vectors(Acc (&values)[kCount], const Acc* line) {
#pragma unroll
    for (int n = 0; n < kCount; n += kVector) {
      const Vector v = *reinterpret_cast<const Vector*>(line + n * 16);
#pragma unroll
      for (int e = 0; e < kVector; ++e) values[n + e] = v.value[e];
    }
  }
};

// The tile for scores: square, as large as the registers allow.
template <class Acc>
struct ScoreTile;
template <>
struct ScoreTile<float> {
  using type = TileProduct<float, 128, 128, 8>;
};
template <>
struct ScoreTile<double> {
  using type = TileProduct<double, 64, 64, 8>;
};
template <class Acc>
using score_tile_t = typename ScoreTile<Acc>::type;

}  // namespace cosegflow

// Tensor-core building blocks: ldmatrix fills registers with 8x8 tiles of 16-bit numbers, mma.sync multiplies them.
//
// Layout of an 8x8 tile in registers: lane t holds elements (row t/4, columns 2*(t%4) and 2*(t%4)+1), the lower column
// in the lower half of the register. mma_m16n8k16 computes d(16x8, f32) += a(16x16) * b(16x8):
//   a[0..3]: the tiles of A at (0,0), (8,0), (0,8), (8,8) (row, k);
//   b[0..1]: the tiles of B at k = 0 and k = 8, each stored by column: lane t holds (k 2*(t%4) and +1, column t/4);
//   d[0..3]: (row t/4, columns 2*(t%4) and +1), then the same of row t/4 + 8.
// So with A kept as rows x k and B as columns x k in shared memory (both "k fastest"), ldmatrix without `trans` fits
// both; `trans` serves a B (or A) that has k as the slow index.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/half.h"

namespace cosegflow {

#if defined(COSEGFLOW_HOSTSIM)

namespace detail {

template <int Tiles, bool Transposed>
struct LdmatrixLane {
  const void* row;
  uint32_t r[Tiles];

  static void combine(void* const* lane, unsigned) {
    for (int tile = 0; tile < Tiles; ++tile) {
      uint16_t m[8][8];
      for (int i = 0; i < 8; ++i) std::memcpy(m[i], static_cast<LdmatrixLane*>(lane[8 * tile + i])->row, 16);
      for (int t = 0; t < 32; ++t) {
        const int i = t / 4, j = 2 * (t % 4);
        const uint32_t low = Transposed ? m[j][i] : m[i][j], high = Transposed ? m[j + 1][i] : m[i][j + 1];
        static_cast<LdmatrixLane*>(lane[t])->r[tile] = low | high << 16;
      }
    }
  }
};

// Lanes 8i to 8i+7 give the addresses of the rows of tile i; addresses of further lanes are ignored.
template <int Tiles, bool Transposed>
inline void ldmatrix(uint32_t (&r)[Tiles], const void* row) {
  if (hostsim::lane_id() < 8 * Tiles) hostsim::check_shared(row, 16, 16, "ldmatrix");
  LdmatrixLane<Tiles, Transposed> lane{row, {}};
  hostsim::warp_collective("ldmatrix", 0xffffffffu, &lane, &LdmatrixLane<Tiles, Transposed>::combine, true);
  for (int i = 0; i < Tiles; ++i) r[i] = lane.r[i];
}

template <class T>
struct MmaLane {
  float* d;
  const uint32_t* a;
  const uint32_t* b;

  static float low(uint32_t r) { return to_float(T{static_cast<uint16_t>(r)}); }
  static float high(uint32_t r) { return to_float(T{static_cast<uint16_t>(r >> 16)}); }

  static void combine(void* const* lane, unsigned) {
    float a[16][16], b[16][8], d[16][8];  // a by row, b by k
    for (int t = 0; t < 32; ++t) {
      const auto& l = *static_cast<const MmaLane*>(lane[t]);
      const int g = t / 4, k = 2 * (t % 4);
      for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i % 2), column = k + 8 * (i / 2);
        a[row][column] = low(l.a[i]);
        a[row][column + 1] = high(l.a[i]);
      }
      for (int i = 0; i < 2; ++i) {
        b[k + 8 * i][g] = low(l.b[i]);
        b[k + 8 * i + 1][g] = high(l.b[i]);
      }
      for (int i = 0; i < 4; ++i) d[g + 8 * (i / 2)][k + i % 2] = l.d[i];
    }
    for (int row = 0; row < 16; ++row) {
      for (int k = 0; k < 16; ++k) {
        for (int n = 0; n < 8; ++n) d[row][n] += a[row][k] * b[k][n];
      }
    }
    for (int t = 0; t < 32; ++t) {
      const auto& l = *static_cast<const MmaLane*>(lane[t]);
      for (int i = 0; i < 4; ++i) l.d[i] = d[t / 4 + 8 * (i / 2)][2 * (t % 4) + i % 2];
    }
  }
};

}  // namespace detail

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row_ptr) { detail::ldmatrix<4, false>(r, shared_row_ptr); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row_ptr) {
  detail::ldmatrix<4, true>(r, shared_row_ptr);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row_ptr) { detail::ldmatrix<2, false>(r, shared_row_ptr); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row_ptr) {
  detail::ldmatrix<2, true>(r, shared_row_ptr);
}

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>, "mma_m16n8k16 multiplies Half or BFloat16");
  detail::MmaLane<T> lane{d, a, b};
  hostsim::warp_collective("mma_m16n8k16", 0xffffffffu, &lane, &detail::MmaLane<T>::combine, true);
}

#else

// Below sm_80 there is no m16n8k16: the callers take the simple kernels there, reaching one of these is a bug.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define CSF_NEEDS_SM80(...) __trap()
#else
#define CSF_NEEDS_SM80(...) __VA_ARGS__
#endif

// The row address of this lane: lanes 8i to 8i+7 give the rows of tile i, each 16 bytes and 16-byte aligned.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row_ptr) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row_ptr));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row_ptr) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row_ptr));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* shared_row_ptr) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row_ptr));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* shared_row_ptr) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row_ptr));
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same<T, Half>::value || std::is_same<T, BFloat16>::value,
                "mma_m16n8k16 multiplies Half or BFloat16");
  if constexpr (std::is_same<T, Half>::value) {
    CSF_NEEDS_SM80(asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),
        "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));
  } else {
    CSF_NEEDS_SM80(asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),
        "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));
  }
}
#undef CSF_NEEDS_SM80

#endif

}  // namespace cosegflow

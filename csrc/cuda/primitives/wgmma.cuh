// wgmma: a warpgroup (four warps, the first of them a multiple of 4) multiplies tiles in shared memory into registers,
// asynchronously. Of d(64 x 128, float32) += a(64 x 16) b(128 x 16)^T, warp w of the four holds rows 16 w to 16 w + 15:
// lane t has in d[4 j + 2 h + e] the element (16 w + 8 h + t / 4, 8 j + 2 (t % 4) + e), for h and e in 0, 1.
//
// An operand is K-major, rows of the tile being runs of 64 neighbours in depth, or MN-major: then it lies turned, runs
// of 64 neighbouring rows for each depth, which is how features lie in a product that sums over pixels.
//
//   wgmma_fence();                         // after d was touched by anything but wgmma
//   for (int s = 0; s < 4; ++s) wgmma_m64n128k16<T>(d, at_depth(a, s), at_depth(b, s), s > 0);
//   wgmma_commit();
//   wgmma_wait<0>();                       // all groups but the newest `Pending` of this warp are done
//   keep_in_registers(d);                  // no use of d is moved above this line
//
// Between the first wgmma and the wait nothing else may read or write d, and nobody may overwrite the tiles.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/half.h"

namespace cosegflow {

enum class Major : int { kK = 0, kMn = 1 };

// Tiles in shared memory as bulk_load_tile leaves them: lines of 64 halves (128 bytes), 128-byte swizzle, groups of 8
// lines 1024 bytes apart. A line of a K-major tile is a row; of an MN-major one it is 64 rows at one depth, and each 64
// rows have a box of their own, of 64 lines: kTurnedBox bytes.
// The bits of the matrix descriptor: start address / 16 from 0 (not here), leading byte offset / 16 from 16 (from 64
// rows to the next of an MN-major tile; not used by the other), stride byte offset / 16 (from one group of 8 lines to
// the next) from 32, the swizzle from 62 (1: 128 bytes).
constexpr int kTurnedRows = 64, kTurnedBox = kTurnedRows * 128;
template <Major kMajor>
constexpr uint64_t kOperandLayout = uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 |
                                    (kMajor == Major::kK ? uint64_t{1} : uint64_t{kTurnedBox >> 4}) << 16;
// Bytes from a depth to the 16th after it.
template <Major kMajor>
constexpr int kDepthStep = kMajor == Major::kK ? 32 : 2048;

#if defined(COSEGFLOW_HOSTSIM)

template <Major kMajor>
struct OperandOf : hostsim::SharedOperand {};
using SharedOperand = OperandOf<Major::kK>;

template <Major kMajor = Major::kK>
inline OperandOf<kMajor> shared_operand(const void* tile) {
  return {hostsim::shared_operand(tile, kOperandLayout<kMajor>, kMajor == Major::kMn)};
}
template <Major kMajor>
inline OperandOf<kMajor> at_depth(OperandOf<kMajor> op, int step) {
  op.start += kDepthStep<kMajor> * step;
  return op;
}
inline void wgmma_fence(hostsim::Place place = {}) { hostsim::wgmma_fence(place); }
inline void wgmma_commit(hostsim::Place place = {}) { hostsim::wgmma_commit(place); }
template <int Pending>
inline void wgmma_wait(hostsim::Place place = {}) {
  static_assert(Pending >= 0 && Pending <= 7, "wgmma.wait_group waits until at most 0 to 7 groups are pending");
  hostsim::wgmma_wait(Pending, place);
}
template <class T, Major kA, Major kB>
inline void wgmma_m64n128k16(float (&d)[64], OperandOf<kA> a, OperandOf<kB> b, bool accumulate,
                             hostsim::Place place = {}) {
  static_assert(std::is_same_v<T, Half> || std::is_same_v<T, BFloat16>, "wgmma multiplies Half or BFloat16");
  hostsim::wgmma_m64n128k16(d, a, b, accumulate, std::is_same_v<T, BFloat16>, place);
}
template <int N>
inline void keep_in_registers(float (&)[N]) {}

#else

// wgmma is a feature of sm_90a alone; elsewhere the callers take other kernels, reaching one of these is a bug.
#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define CSF_NEEDS_SM90A(...) __trap()
#else
#define CSF_NEEDS_SM90A(...) __VA_ARGS__
#endif

template <Major kMajor>
struct OperandOf {
  uint64_t descriptor;
};
using SharedOperand = OperandOf<Major::kK>;

// tile: the 1024-byte aligned start of a row 0, or of any row that is a multiple of 8 (of 64 where it lies turned).
template <Major kMajor = Major::kK>
__device__ __forceinline__ OperandOf<kMajor> shared_operand(const void* tile) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(tile));
  return {kOperandLayout<kMajor> | (address & 0x3ffffu) >> 4};
}

// The 16 depths from depth 16 * step on (step 0 to 3).
template <Major kMajor>
__device__ __forceinline__ OperandOf<kMajor> at_depth(OperandOf<kMajor> op, int step) {
  return {op.descriptor + static_cast<uint64_t>(kDepthStep<kMajor> / 16 * step)};
}

// Registers and shared memory written so far are visible to the wgmma that follow. All lanes of the warpgroup.
__device__ __forceinline__ void wgmma_fence() {
  CSF_NEEDS_SM90A(asm volatile("wgmma.fence.sync.aligned;" :: : "memory"));
}

__device__ __forceinline__ void wgmma_commit() {
  CSF_NEEDS_SM90A(asm volatile("wgmma.commit_group.sync.aligned;" :: : "memory"));
}

template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  static_assert(Pending >= 0 && Pending <= 7, "wgmma.wait_group waits until at most 0 to 7 groups are pending");
  CSF_NEEDS_SM90A(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory"));
}

// d += a b^T, or d = a b^T where !accumulate. T is Half or BFloat16.
template <class T, Major kA, Major kB>
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], OperandOf<kA> a, OperandOf<kB> b, bool accumulate) {
  static_assert(std::is_same<T, Half>::value || std::is_same<T, BFloat16>::value, "wgmma multiplies Half or BFloat16");
#define CSF_WGMMA(type)                                                                                             \
  asm volatile(                                                                                                     \
      "{\n"                                                                                                         \
      ".reg .pred accumulate;\n"                                                                                    \
      "setp.ne.b32 accumulate, %66, 0;\n"                                                                           \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                                                  \
      " {"                                                                                                          \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                      \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                            \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                            \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                           \
      "%64, %65, accumulate, 1, 1, %67, %68;\n"                                                                     \
      "}"                                                                                                           \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), \
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),      \
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),     \
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),     \
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),     \
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),     \
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),     \
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])                   \
      : "l"(a.descriptor), "l"(b.descriptor), "r"(static_cast<int>(accumulate)), "n"(static_cast<int>(kA)),         \
        "n"(static_cast<int>(kB))                                                                                   \
      : "memory")
  if constexpr (std::is_same<T, Half>::value) {
    CSF_NEEDS_SM90A(CSF_WGMMA("f16"));
  } else {
    CSF_NEEDS_SM90A(CSF_WGMMA("bf16"));
  }
#undef CSF_WGMMA
}

// The compiler moves no use of d across this.
template <int N>
__device__ __forceinline__ void keep_in_registers(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#undef CSF_NEEDS_SM90A

#endif

}  // namespace cosegflow

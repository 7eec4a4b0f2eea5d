// Bulk copies from global to shared memory by the copy engine (TMA): one thread issues, the bytes are reported to an
// mbarrier. Of a tile, rows of 64 halves (128 bytes) come to lie one after the other, and the eight 16-byte chunks of a
// row are permuted by the 128-byte swizzle: bits 4 to 6 of a chunk's address are XORed with bits 7 to 9. That is the
// layout that wgmma.cuh reads.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cosegflow/types.h"
#include "primitives/mbarrier.cuh"

#if !defined(COSEGFLOW_HOSTSIM)
#include <cuda.h>
#endif

namespace cosegflow {

constexpr int kTileDepth = 64;     // halves of a row of a tile: the 128 bytes of the swizzle
constexpr int kTileSwizzle = 128;  // bytes; what wgmma.cuh's descriptors say too

// Describes halves (images, rows, depth) in global memory and the box that one copy takes of them. A kernel takes it as
// `const __grid_constant__ TensorMap` and passes its address on.
#if defined(COSEGFLOW_HOSTSIM)
using TensorMap = hostsim::TensorMap;
#else
struct TensorMap {
  CUtensorMap opaque;
};
#endif

// data: (images, rows, depth) halves, row-major, 16-byte aligned, depth a multiple of 8. The box is 1 x box_rows x 64
// (box_rows from 8 to 256, a multiple of 8); of what lies outside the tensor come zeros. Host function.
Status make_tensor_map(TensorMap& map, const void* data, int64_t depth, int64_t rows, int64_t images, int box_rows);

#if defined(COSEGFLOW_HOSTSIM)

inline void prefetch_tensor_map(const TensorMap* map) { hostsim::check_tensor_map(map); }
inline void bulk_load_tile(void* shared, const TensorMap* map, Mbarrier* bar, int channel, int row, int image,
                           hostsim::Place place = {}) {
  hostsim::bulk_load_tile(shared, map, &bar->opaque, channel, row, image, place);
}
inline void bulk_load(void* shared, const void* global, unsigned bytes, Mbarrier* bar, hostsim::Place place = {}) {
  hostsim::bulk_load(shared, global, bytes, &bar->opaque, place);
}

#else

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define CSF_NEEDS_SM90(...) __trap()
#else
#define CSF_NEEDS_SM90(...) __VA_ARGS__
#endif

__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
  CSF_NEEDS_SM90(asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"));
}

// The box whose first half is (image, row, channel), to `shared` (1024-byte aligned). One thread; 128 * box_rows bytes
// are reported to `bar`, also where the box reaches beyond the tensor.
__device__ __forceinline__ void bulk_load_tile(void* shared, const TensorMap* map, Mbarrier* bar, int channel, int row,
                                               int image) {
  CSF_NEEDS_SM90(asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(detail::shared_address(shared)),
      "l"(map), "r"(channel), "r"(row), "r"(image), "r"(detail::shared_address(bar)) : "memory"));
}

// `bytes` (a multiple of 16) from `global` to `shared` (both 16-byte aligned). One thread.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, unsigned bytes, Mbarrier* bar) {
  CSF_NEEDS_SM90(
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, "
                   "[%3];" ::"r"(detail::shared_address(shared)),
                   "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(detail::shared_address(bar)) : "memory"));
}

#undef CSF_NEEDS_SM90

#endif

}  // namespace cosegflow

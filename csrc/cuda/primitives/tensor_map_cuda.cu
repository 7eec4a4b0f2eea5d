// Builds tensor maps. The driver's function for it is looked up at run time, so that the library needs no -lcuda.
#include <atomic>

#include "primitives/bulk_copy.cuh"
#include "primitives/launch.cuh"

namespace cosegflow {
namespace {

// The limits of cuTensorMapEncodeTiled, so that a bad call gets a clear message on every machine.
Status check_tensor_map_arguments(const void* data, int64_t depth, int64_t rows, int64_t images, int box_rows) {
  constexpr int64_t kMaxSize = int64_t{1} << 32, kMaxStride = int64_t{1} << 40;
  if (data == nullptr) return {"make_tensor_map: data is null"};
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0) return {"make_tensor_map: data is not 16-byte aligned"};
  if (depth < 8 || depth % 8 != 0) return {"make_tensor_map: depth is not a positive multiple of 8"};
  if (rows < 1 || images < 1) return {"make_tensor_map: rows and images must be positive"};
  if (depth > kMaxSize || rows > kMaxSize || images > kMaxSize) return {"make_tensor_map: a size is beyond 2^32"};
  if (rows >= kMaxStride / (2 * depth)) return {"make_tensor_map: an image has 2^40 bytes or more"};
  if (box_rows < 8 || box_rows > 256 || box_rows % 8 != 0) {
    return {"make_tensor_map: box_rows is not a multiple of 8 from 8 to 256"};
  }
  return {};
}

}  // namespace

#if defined(COSEGFLOW_HOSTSIM)

Status make_tensor_map(TensorMap& map, const void* data, int64_t depth, int64_t rows, int64_t images, int box_rows) {
  const Status status = check_tensor_map_arguments(data, depth, rows, images, box_rows);
  if (status.ok()) map = {data, depth, rows, images, box_rows, kTileSwizzle};
  return status;
}

#else

namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static_assert(kTileSwizzle == 128, "the name below");
constexpr CUtensorMapSwizzle kSwizzle = CU_TENSOR_MAP_SWIZZLE_128B;

// A failure is not kept: the next call may find a driver.
Status find_encode(Encode& encode) {
  static std::atomic<Encode> known{nullptr};
  encode = known.load(std::memory_order_relaxed);
  if (encode != nullptr) return {};
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    return cuda_status(error);
  }
  if (result != cudaDriverEntryPointSuccess || function == nullptr) {
    return {"cosegflow: the NVIDIA driver has no cuTensorMapEncodeTiled: update it to 580 or newer"};
  }
  encode = reinterpret_cast<Encode>(function);
  known.store(encode, std::memory_order_relaxed);
  return {};
}

}  // namespace

Status make_tensor_map(TensorMap& map, const void* data, int64_t depth, int64_t rows, int64_t images, int box_rows) {
  const Status status = check_tensor_map_arguments(data, depth, rows, images, box_rows);
  if (!status.ok()) return status;
  Encode encode = nullptr;
  if (Status s = find_encode(encode); !s.ok()) return s;
  const auto size = [](int64_t n) { return static_cast<cuuint64_t>(n); };
  const cuuint64_t sizes[3] = {size(depth), size(rows), size(images)};
  const cuuint64_t strides[2] = {size(2 * depth), size(2 * depth * rows)};  // bytes, of all but the fastest
  const cuuint32_t box[3] = {kTileDepth, static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  // Copied as bits, so one integer type serves both halves; all bits zero is zero in both.
  const CUresult error = encode(&map.opaque, CU_TENSOR_MAP_DATA_TYPE_UINT16, 3, const_cast<void*>(data), sizes, strides,
                                box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, kSwizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    return {"cosegflow: cuTensorMapEncodeTiled refused a tensor map (a bug in cosegflow)", static_cast<int>(error)};
  }
  return {};
}

#endif

}  // namespace cosegflow

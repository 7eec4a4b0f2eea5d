// cosegflow: the types and the rules that every operation's header shares. No torch and no CUDA header is needed to
// include it. Examples: docs/cpp.md.
//
// Every operation has one header with a params struct, launch functions, and `*_workspace_bytes_*` where a launch
// function needs a workspace. Set the sizes and the views of a params struct; fields with a default may stay as they
// are. A launch function keeps neither the struct nor a pointer to it.
//
// Where. `*_cpu` works on host memory, on the calling thread and its helpers (CpuRuntime), and returns when it is done.
// `*_cuda` works on memory of the current device, enqueues on the stream (null: the default stream) and returns without
// waiting; the arrays and the workspace belong to the call until the stream has passed it. It does not allocate, so it
// captures into a CUDA graph. A build without CUDA has no `*_cuda` functions: linking says so.
//
// Workspace. Its size depends on the params (sizes, dtypes, options, and which outputs are set), on the runtime's
// num_threads, and on the current device: ask with what the launch gets. It is aligned to 16 bytes (cudaMalloc and
// malloc give that), its contents do not matter before or after, and calls that may overlap need one each. 0 bytes:
// pass null. warp and cycle_error on the CPU need none; warp keeps scratch memory with each thread instead.
//
// Errors. Params are checked before any work: a bad size, dtype, pointer, alignment, stride, option or workspace gives
// a Status that names the field, and nothing is written. A CUDA error of a launch is in Status::cuda_error; errors of
// running kernels appear at the next synchronisation, as always. A batch of 0 is no error. The size of a workspace for
// bad sizes is 0. What a mask, a flow or any other array holds is not looked at; every value is allowed. Nothing throws
// but std::bad_alloc on the CPU.
//
// Threads. All functions may be called from several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cosegflow/version.h"

#if defined(_WIN32)
#define COSEGFLOW_API __declspec(dllexport)
#else
#define COSEGFLOW_API __attribute__((visibility("default")))
#endif

struct CUstream_st;  // what cudaStream_t points to

namespace cosegflow {

// The version of the library, as COSEGFLOW_VERSION has that of the headers.
COSEGFLOW_API int library_version();

// Whether params structs of these headers have the layout that the library expects: equal major and minor versions.
inline bool library_fits_headers() { return library_version() / 100 == COSEGFLOW_VERSION / 100; }

// Element types. kBool is one byte, 0 or 1 (masks only).
enum class DType : int32_t { kFloat16, kBFloat16, kFloat32, kFloat64, kBool };

// Bytes of one element.
constexpr int64_t element_size(DType t) {
  switch (t) {
    case DType::kFloat16:
    case DType::kBFloat16: return 2;
    case DType::kFloat32: return 4;
    case DType::kFloat64: return 8;
    case DType::kBool: return 1;
  }
  return 0;
}

// The type that coordinates, log-sum-exp and accumulators have for inputs of type `t`: float64 for float64, else
// float32.
constexpr DType accumulate_type(DType t) { return t == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32; }

using Stream = CUstream_st*;

// How float32 products are formed on CUDA, as torch.get_float32_matmul_precision() names it: kHighest as accurately as
// float32 multiply-adds; kHigh by tensor cores, each number as a sum of two bfloat16 (16 bits of it); kMedium rounded
// to bfloat16. Sums are float32 in all three. Other types take no notice, nor does the CPU.
enum class Precision : int32_t { kHighest, kHigh, kMedium };

// A strided view of device (or host, for `*_cpu`) memory, aligned to its elements; the sizes are those of the params.
// Strides count elements and may be 0 (inputs), negative and in any order, so non-contiguous, expanded and
// channels_last tensors need no copy; fields that say so are contiguous. `data == nullptr` means "not given".
template <int Rank>
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride[Rank] = {};
};
using View1 = View<1>;  // (B)
using View3 = View<3>;  // (B, H, W)
using View4 = View<4>;  // (B, C, H, W)

// A view of a contiguous array of these sizes. What a params struct calls an input is not written.
template <int Rank>
constexpr View<Rank> contiguous_view(const void* data, DType dtype, const int64_t (&sizes)[Rank]) {
  View<Rank> view{const_cast<void*>(data), dtype, {}};
  for (int64_t i = Rank - 1, stride = 1; i >= 0; stride *= sizes[i--]) view.stride[i] = stride;
  return view;
}

// How a call went.
struct [[nodiscard]] Status {
  const char* message = nullptr;  // null: success. Else a string literal; nothing has to be freed
  int cuda_error = 0;             // a cudaError_t where the CUDA runtime reported one
  constexpr bool ok() const { return message == nullptr; }
};

// How a CPU kernel gets its threads. `{}`: the calling thread alone. With num_threads alone, a call starts that many
// less one and joins them.
struct CpuRuntime {
  // Your thread pool, or null: calls body(begin, end, context) over [0, n) in disjoint ranges of at least `grain` (the
  // last may be shorter), possibly concurrently, and waits for all.
  void (*parallel_for)(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) = nullptr;
  int num_threads = 1;  // how many threads parallel_for uses: sizes the workspace
};

}  // namespace cosegflow

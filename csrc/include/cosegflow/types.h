// cosegflow: the types that every operation's header shares. No torch, no CUDA header is needed to include this.
//
// Every operation has one header with a params struct, a `*_workspace_bytes` function and launch functions
// (`*_cuda` on a stream, `*_cpu` on the calling thread and its helpers). A launch function never allocates and
// never waits: the caller passes a workspace (aligned to 64 bytes), and a Status says what went wrong.
//
// Params are checked before any work: a bad size, dtype, pointer, stride or option gives a Status that names the field,
// and nothing is written. A batch of 0 is no error. The size of a workspace for bad sizes is 0. What a mask, a flow or
// any other array holds is not looked at; every value is allowed.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define COSEGFLOW_API __declspec(dllexport)
#else
#define COSEGFLOW_API __attribute__((visibility("default")))
#endif

struct CUstream_st;  // what cudaStream_t points to

namespace cosegflow {

constexpr int kVersionMajor = 0;
constexpr int kVersionMinor = 1;

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

// A strided view of device (or host, for `*_cpu`) memory. Strides count elements and may be 0 or any order, so
// non-contiguous, expanded and channels_last tensors need no copy. `data == nullptr` means "not given".
template <int Rank>
struct View {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t stride[Rank] = {};
};
using View1 = View<1>;  // (B)
using View3 = View<3>;  // (B, H, W)
using View4 = View<4>;  // (B, C, H, W)

// Empty message: success. Messages are string literals, nothing has to be freed.
struct [[nodiscard]] Status {
  const char* message = nullptr;
  int cuda_error = 0;  // a cudaError_t where the CUDA runtime reported one
  constexpr bool ok() const { return message == nullptr; }
};

// How a CPU kernel gets its threads. A null parallel_for means std::thread.
struct CpuRuntime {
  // Calls body(begin, end, context) over [0, n) in ranges of at least `grain`, possibly concurrently, and waits.
  void (*parallel_for)(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) = nullptr;
  int num_threads = 1;  // how many threads parallel_for uses: sizes the workspace
};

}  // namespace cosegflow

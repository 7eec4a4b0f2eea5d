#include "torch/execution.h"

#include <dlfcn.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

namespace cosegflow::binding {
namespace {

void torch_threads(int64_t n, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  require(torch_parallel_for(0, n, grain, body, context) == 0, "torch's parallel_for failed");
}

}  // namespace

const CpuRuntime& cpu_runtime() {
  thread_local CpuRuntime runtime{&torch_threads, 1};
  runtime.num_threads = static_cast<int>(torch::stable::get_num_threads());  // torch.set_num_threads may change it
  return runtime;
}

Stream current_stream(int32_t device_index) {
  // Linking the symbol would make the import fail beside a CPU build of torch; Stream::nativeHandle() is newer than
  // the ABI that is targeted. libtorch_cuda is loaded locally, so RTLD_DEFAULT would not find it.
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  require(getter != nullptr, "torch's current CUDA stream cannot be found (aoti_torch_get_current_cuda_stream)");
  void* stream = nullptr;
  require(getter(device_index, &stream) == 0, "torch would not tell its current CUDA stream");
  return static_cast<Stream>(stream);
}

Workspace workspace(const Tensor& like, size_t bytes) {
  Workspace space;
  if (bytes == 0) return space;
  constexpr size_t kAlignment = 64;
  space.storage = empty(like, {static_cast<int64_t>(bytes + kAlignment)}, ScalarType::Byte);
  const auto address = reinterpret_cast<uintptr_t>(space.storage->data_ptr());
  space.data = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  return space;
}

}  // namespace cosegflow::binding

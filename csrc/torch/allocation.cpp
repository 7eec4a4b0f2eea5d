// Tensors that torch allocates. Where it cannot, its own message is told: the error of the stable ABI has none.
#include <dlfcn.h>

#include "torch/tensor_view.h"

namespace cosegflow::binding {
namespace {

// torch's message for the last error of this thread. From torch 2.13 on, so looked up like the current stream.
const char* torch_message() {
  using Getter = const char* (*)();
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<Getter>(dlsym(library, "torch_exception_get_what_without_backtrace"));
  }();
  return getter == nullptr ? "most likely out of memory (torch tells the reason from 2.13 on)" : getter();
}

}  // namespace

Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  try {
    return torch::stable::new_empty(like, {sizes.data(), sizes.size()}, dtype);
  } catch (const std::runtime_error&) {
    fail("a tensor of shape " + text_of(sizes) + " cannot be allocated: " + torch_message());
  }
}

}  // namespace cosegflow::binding

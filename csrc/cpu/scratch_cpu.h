// Scratch memory that a calling thread keeps from call to call. Fresh pages cost more than the kernels that would fill
// them (a fault for every 4 KB), so memory that is needed at every call is worth keeping; what is large is not kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace cosegflow {

class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    Kept& kept = of_this_thread();
    if (bytes > kKeptBytes || kept.in_use) {
      own_.reset(new char[bytes + kAlignment]);
      data_ = aligned(own_.get());
      return;
    }
    if (kept.bytes < bytes) {
      kept.bytes = 0;
      kept.memory.reset();
      kept.memory.reset(new char[bytes + kAlignment]);
      kept.bytes = bytes;
    }
    kept.in_use = in_use_ = true;
    data_ = aligned(kept.memory.get());
  }
  ~Scratch() {
    if (in_use_) of_this_thread().in_use = false;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return data_; }

 private:
  static constexpr size_t kKeptBytes = 16 << 20, kAlignment = 64;
  struct Kept {
    std::unique_ptr<char[]> memory;
    size_t bytes = 0;
    bool in_use = false;
  };
  static Kept& of_this_thread() {
    static thread_local Kept kept;
    return kept;
  }
  static void* aligned(char* p) {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(p) + kAlignment - 1) / kAlignment * kAlignment);
  }

  std::unique_ptr<char[]> own_;
  void* data_ = nullptr;
  bool in_use_ = false;
};

}  // namespace cosegflow

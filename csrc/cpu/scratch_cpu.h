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
    for (Kept& kept : of_this_thread()) {
      if (bytes > kKeptBytes || kept.in_use) continue;
      if (kept.bytes < bytes) {
        kept.bytes = 0;
        kept.memory.reset();
        kept.memory.reset(new char[bytes + kAlignment]);
        kept.bytes = bytes;
      }
      kept_ = &kept;
      kept.in_use = true;
      data_ = aligned(kept.memory.get());
      return;
    }
    own_.reset(new char[bytes + kAlignment]);
    data_ = aligned(own_.get());
  }
  ~Scratch() {
    if (kept_ != nullptr) kept_->in_use = false;
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
  using KeptOnes = Kept[2];  // what a task takes inside a call that has taken one itself
  static KeptOnes& of_this_thread() {
    static thread_local KeptOnes kept;
    return kept;
  }
  static void* aligned(char* p) {
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(p) + kAlignment - 1) / kAlignment * kAlignment);
  }

  std::unique_ptr<char[]> own_;
  void* data_ = nullptr;
  Kept* kept_ = nullptr;
};

}  // namespace cosegflow

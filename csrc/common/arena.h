// Carves arrays out of the caller's workspace. The same function lays a workspace out twice: over no memory, to learn
// its size, and over the caller's, to get the pointers; so the two cannot disagree.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cosegflow {

class Arena {
 public:
  static constexpr uintptr_t kAlignment = 64;  // of every array: a cache line, and more than any vector access needs

  explicit Arena(void* memory = nullptr) : base_(reinterpret_cast<uintptr_t>(memory)), at_(align(base_)) {}

  template <class T>
  T* take(int64_t count) {
    const uintptr_t begin = at_;
    at_ = align(at_ + sizeof(T) * static_cast<uintptr_t>(count));
    return base_ == 0 ? nullptr : reinterpret_cast<T*>(begin);
  }

  // Bytes so far, with room to align memory that is not; 0 where nothing was taken.
  size_t bytes() const { return at_ == align(base_) ? 0 : at_ - base_ + kAlignment; }

 private:
  static uintptr_t align(uintptr_t at) { return (at + kAlignment - 1) / kAlignment * kAlignment; }
  uintptr_t base_, at_;
};

}  // namespace cosegflow

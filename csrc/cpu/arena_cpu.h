// Carves arrays out of a workspace. The same function lays a workspace out twice: over no memory, to learn its size,
// and over the caller's, to get the pointers; so the two cannot disagree.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cosegflow {

class Arena {
 public:
  static constexpr uintptr_t kAlignment = 64;  // of every array: a cache line, and the widest vector

  explicit Arena(void* memory = nullptr) : base_(reinterpret_cast<uintptr_t>(memory)), at_(align(base_)) {}

  template <class T>
  T* take(int64_t count) {
    const uintptr_t begin = at_;
    at_ = align(at_ + sizeof(T) * static_cast<uintptr_t>(count));
    return base_ == 0 ? nullptr : reinterpret_cast<T*>(begin);
  }

  // Bytes so far, with room to align memory that is not.
  size_t bytes() const { return at_ - base_ + kAlignment; }

 private:
  static uintptr_t align(uintptr_t at) { return (at + kAlignment - 1) / kAlignment * kAlignment; }
  uintptr_t base_, at_;
};

constexpr int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
constexpr int64_t divide_up(int64_t n, int64_t step) { return (n + step - 1) / step; }

}  // namespace cosegflow

// Dividing the caller's workspace: one function lays the buffers out, and runs twice. With a null base it only counts
// the bytes that the launch will need; with the workspace it hands out the pointers. The two cannot disagree.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cosegflow {

class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}

  // `count` elements of U, aligned to 256 bytes relative to the base (cp.async and vector loads need 16).
  template <class U>
  U* take(int64_t count) {
    char* const here = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(U) + 255) / 256 * 256;
    return reinterpret_cast<U*>(here);
  }
  size_t bytes() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

}  // namespace cosegflow

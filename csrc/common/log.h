// COSEGFLOW_LOG=1: which path a call takes, and why a faster one was not, once a process for each line, on stderr:
//
//   cosegflow: match: portable kernels (mma.sync): the device has no wgmma
//
// Off (unset, empty or 0) it costs one relaxed load. On, a repeated line costs a hash of it and a lock; nothing is
// allocated, and strings need not outlive the call.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace cosegflow {
namespace log_detail {

constexpr int kUnknown = 0, kOff = 1, kOn = 2;
inline std::atomic<int> state{kUnknown};

// The variable is read once: threads that get here together read the same.
inline int read_state() {
  const char* value = std::getenv("COSEGFLOW_LOG");
  const bool off = value == nullptr || value[0] == '\0' || (value[0] == '0' && value[1] == '\0');
  const int now = off ? kOff : kOn;
  state.store(now, std::memory_order_relaxed);
  return now;
}

// FNV-1a of a string and the 0 that ends it.
inline uint64_t add_to_hash(uint64_t hash, const char* text) {
  do {
    hash = (hash ^ static_cast<unsigned char>(*text)) * uint64_t{1099511628211};
  } while (*text++ != '\0');
  return hash;
}

inline void say_once(const char* operation, const char* path, const char* reason) {
  constexpr int kMost = 256;  // lines; there are fewer operations times reasons
  static std::mutex mutex;
  static uint64_t said[kMost];
  static int count = 0;
  uint64_t hash = add_to_hash(uint64_t{14695981039346656037u}, operation);
  hash = add_to_hash(add_to_hash(hash, path), reason == nullptr ? "" : reason);
  const std::lock_guard<std::mutex> lock(mutex);
  for (int i = 0; i < count; ++i) {
    if (said[i] == hash) return;
  }
  if (count == kMost) return;
  said[count++] = hash;
  std::fprintf(stderr, "cosegflow: %s: %s%s%s\n", operation, path, reason == nullptr ? "" : ": ",
               reason == nullptr ? "" : reason);
}

}  // namespace log_detail

// Whether log_path says anything: to ask before a reason is put together.
inline bool log_wanted() {
  const int state = log_detail::state.load(std::memory_order_relaxed);
  return (state == log_detail::kUnknown ? log_detail::read_state() : state) == log_detail::kOn;
}

// `path`: the kernels taken. `reason`: why no faster ones were; null where there are none.
inline void log_path(const char* operation, const char* path, const char* reason) {
  if (log_wanted()) log_detail::say_once(operation, path, reason);
}

}  // namespace cosegflow

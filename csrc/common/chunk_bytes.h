// How much of a backward's recomputed volume exists at a time, where the caller does not say.
#pragma once

#include <cstddef>
#include <cstdlib>

namespace cosegflow {

// COSEGFLOW_CHUNK_MB, a whole number of MiB from 1 on; 0 where it is not set or says nothing. Read once, because the
// workspace and the launch of a call have to agree on it.
inline size_t chunk_bytes_wanted() {
  static const size_t wanted = [] {
    const char* const value = std::getenv("COSEGFLOW_CHUNK_MB");
    const long megabytes = value == nullptr ? 0 : std::strtol(value, nullptr, 10);
    return megabytes > 0 && megabytes < (1 << 20) ? static_cast<size_t>(megabytes) << 20 : size_t{0};
  }();
  return wanted;
}

// What a caller asked for, or else the environment, or else 0: the default.
inline size_t chunk_bytes_of(size_t asked) { return asked > 0 ? asked : chunk_bytes_wanted(); }

}  // namespace cosegflow

// hostsim: what the scheduler tells the shared memory and the cp.async queues.
#pragma once

#include <cstddef>
#include <string>

namespace cosegflow {
namespace hostsim {

constexpr size_t kMaxStaticShared = 48 * 1024;  // what ptxas allows
constexpr size_t kMaxShared = 99 * 1024;        // of a block on sm_86 and later, static and dynamic together

void begin_block_shared(size_t dynamic_bytes);
// Empty, or which variable was written beyond its end (the builds without AddressSanitizer see no more than that).
std::string end_block_shared();

void begin_block_async();

}  // namespace hostsim
}  // namespace cosegflow

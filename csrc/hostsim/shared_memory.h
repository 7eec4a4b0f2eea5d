// hostsim: what the walk over the blocks tells the shared memory and those who work on it asynchronously.
#pragma once

#include <cstddef>
#include <string>

namespace cosegflow {
namespace hostsim {

constexpr size_t kMaxStaticShared = 48 * 1024;  // what ptxas allows
constexpr size_t kMaxShared = 99 * 1024;        // of a block on sm_86 and later, static and dynamic together
constexpr size_t kMaxSharedHopper = 227 * 1024;

void begin_block_shared(size_t dynamic_bytes, bool hopper);
// Empty, or which variable was written beyond its end (the builds without AddressSanitizer see no more than that).
std::string end_block_shared();

// Shared memory as bulk copies and wgmma see it: plain stores show there only after a fence_proxy_async(). Where the
// two differ, somebody has stored and not fenced. Only in launches by launch_hopper.
unsigned char* async_view(const void* shared);  // fails in other launches; p must be within shared memory
void publish_stores();                          // makes the two equal

void begin_block_async();

void begin_block_mbarriers();
std::string end_block_mbarriers();  // empty, or which copy nobody waited for
bool finish_late_copies();          // those that sleeping threads wait for; false if there are none

void begin_block_wgmma(int threads);
std::string end_block_wgmma();

void begin_block_warpgroups(int threads);
std::string end_block_warpgroups();

}  // namespace hostsim
}  // namespace cosegflow

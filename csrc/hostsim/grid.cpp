// hostsim: a launch: checks what the driver would check, walks over the blocks, words the errors.
#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

#include "hostsim/scheduler.h"
#include "hostsim/shared_memory.h"

namespace cosegflow {
namespace hostsim {
namespace {

std::mutex one_launch_at_a_time;
Order order = Order::kForward;
uint64_t order_seed = 0;
Counters total{};
std::string message;  // of the last failed launch: a Status does not own its text

Scheduler& scheduler() {
  static Scheduler s;
  return s;
}

std::string kernel_name(const Launch& launch) {
  std::string name;  // stays empty for a kernel in an anonymous namespace: the place of the launch says enough
  Dl_info info{};
  if (dladdr(launch.kernel, &info) != 0 && info.dli_sname != nullptr && info.dli_saddr == launch.kernel) {
    int failed = 0;
    char* readable = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &failed);
    name = failed == 0 ? readable : info.dli_sname;
    std::free(readable);
  }
  return name;
}

Status failed(const Launch& launch, const std::string& where, const std::string& reason) {
  const std::string name = kernel_name(launch);
  message = "hostsim: kernel " + name + (name.empty() ? "" : ", ") + "launched at " + launch.site.file + ":" +
            std::to_string(launch.site.line) + where + ": " + reason;
  return {message.c_str(), 0};
}

std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

// The limits of every architecture from sm_80 on (of sm_90 for a kernel of its own); empty if they are kept.
std::string over_limit(const Launch& l) {
  const dim3 b = l.block, g = l.grid;
  const uint64_t threads = static_cast<uint64_t>(b.x) * b.y * b.z;
  if (threads == 0 || threads > 1024 || b.x > 1024 || b.y > 1024 || b.z > 64) return "block of " + text(b) + " threads";
  if (g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) return "grid of " + text(g) + " blocks";
  if (l.dynamic_shared_bytes > (l.hopper ? kMaxSharedHopper : kMaxShared)) {
    return std::to_string(l.dynamic_shared_bytes) + " bytes of dynamic shared memory";
  }
  return {};
}

}  // namespace

void set_order(Order o, uint64_t seed) {
  order = o;
  order_seed = seed;
}

Counters counters(bool reset) {
  Counters c = total;
  c.switches = scheduler().switches;
  if (reset) {
    total = {};
    scheduler().switches = 0;
  }
  return c;
}

Status run(const Launch& launch) {
  const dim3 g = launch.grid;
  const uint64_t blocks = static_cast<uint64_t>(g.x) * g.y * g.z;
  if (blocks == 0) return {};
  const std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  const std::string problem = over_limit(launch);
  if (!problem.empty()) return failed(launch, "", "the GPU cannot run this: " + problem);

  Random shuffle{order_seed};
  std::vector<uint64_t> shuffled;  // block numbers, in random order only
  if (order == Order::kRandom) {
    for (uint64_t i = 0; i < blocks; ++i) shuffled.push_back(i);
    for (uint64_t i = blocks - 1; i > 0; --i) std::swap(shuffled[i], shuffled[shuffle.next() % (i + 1)]);
  }

  Scheduler& s = scheduler();
  s.prepare(launch.block, launch.body, launch.context, order);
  gridDim = g;
  blockDim = launch.block;
  ++total.launches;
  const int threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  for (uint64_t i = 0; i < blocks; ++i) {
    uint64_t number = i;
    if (order == Order::kReverse) number = blocks - 1 - i;
    if (order == Order::kRandom) number = shuffled[i];
    blockIdx = {static_cast<unsigned>(number % g.x), static_cast<unsigned>(number / g.x % g.y),
                static_cast<unsigned>(number / g.x / g.y)};
    begin_block_shared(launch.dynamic_shared_bytes, launch.hopper);
    begin_block_async();
    begin_block_mbarriers();
    begin_block_wgmma(threads);
    begin_block_warpgroups(threads);
    std::string reason = s.run_block(order_seed * 0x9e3779b97f4a7c15u + number);
    if (reason.empty()) reason = end_block_shared();
    if (reason.empty()) reason = end_block_mbarriers();
    if (reason.empty()) reason = end_block_wgmma();
    if (reason.empty()) reason = end_block_warpgroups();
    if (!reason.empty()) return failed(launch, ", block " + text(blockIdx), reason);
    ++total.blocks;
    total.threads += static_cast<uint64_t>(threads);
  }
  return {};
}

// ---- what kernels call --------------------------------------------------------------------------------------------

void fail(const char* format, ...) {
  char reason[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(reason, sizeof(reason), format, arguments);
  va_end(arguments);
  Scheduler& s = scheduler();
  if (!s.running()) throw std::runtime_error(reason);
  s.abandon("thread " + text(threadIdx) + ": " + reason);
}

int block_barrier(Barrier kind, int predicate, const char* file, int line) {
  return scheduler().barrier(kind, predicate, file, line);
}

void warp_collective(const char* name, unsigned mask, void* mine, Combine combine, bool whole_warp) {
  scheduler().collective(name, mask, mine, combine, whole_warp);
}

int lane_id() { return scheduler().lane(); }
int linear_thread() { return scheduler().current(); }
void yield() { scheduler().yield(); }
void pass() { scheduler().pass(); }
void sleep(Describe describe, const void* context) { scheduler().sleep(describe, context); }
void wake(int thread) { scheduler().wake(thread); }
bool late() { return scheduler().late(); }

}  // namespace hostsim
}  // namespace cosegflow

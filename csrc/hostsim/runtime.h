// hostsim: what kernels, and the host emulations in cuda/primitives, ask of the scheduler (scheduler.cpp).
//
// One OS thread runs one block at a time. Every CUDA thread is a fiber that runs until it has to wait for others: at a
// block barrier or at a warp collective. Everything here that "fails" ends the launch on the spot, which then returns a
// Status whose message names the kernel, the block and the thread; the fibers are abandoned where they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cosegflow/types.h"
#include "hostsim/types.h"

// Set at each switch of fibers. Plain globals: a process simulates one launch at a time.
extern uint3 threadIdx __attribute__((visibility("hidden")));
extern uint3 blockIdx __attribute__((visibility("hidden")));
extern dim3 blockDim __attribute__((visibility("hidden")));
extern dim3 gridDim __attribute__((visibility("hidden")));
constexpr int warpSize = 32;

namespace cosegflow {
namespace hostsim {

// ---- launching --------------------------------------------------------------------------------------------------

// A stream that remembers where the launch was written, for messages.
struct LaunchSite {
  Stream stream;
  const char* file;
  int line;
  LaunchSite(Stream s, const char* f = __builtin_FILE(), int l = __builtin_LINE()) : stream(s), file(f), line(l) {}
};

struct Launch {
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  LaunchSite site;
  const void* kernel;           // its address: the key to its name
  void (*body)(void* context);  // calls the kernel, once per thread
  void* context;
  bool hopper;  // a kernel for sm_90: more shared memory
};

Status run(const Launch& launch);

enum class Order { kForward, kReverse, kRandom };
void set_order(Order order, uint64_t seed);  // of threads and of blocks, for the launches that follow

// Counters since the last reset, for tests and measurements.
struct Counters {
  uint64_t launches, blocks, threads, switches;
};
Counters counters(bool reset);

// ---- inside a kernel --------------------------------------------------------------------------------------------

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

enum class Barrier { kSync, kOr, kAnd, kCount };
// Waits for every thread of the block; returns the reduction of `predicate` over them.
int block_barrier(Barrier kind, int predicate, const char* file, int line);

// A warp collective: every lane brings a pointer to its own arguments, the last of the lanes named in `mask` makes
// `combine` read all arguments and write all results, then all go on. All lanes must bring the same `combine` and mask.
using Combine = void (*)(void* const* lane, unsigned mask);  // lane[i] is null for a lane that does not take part
// Lanes that a last, partial warp lacks count as absent, unless `whole_warp` makes them an error.
void warp_collective(const char* name, unsigned mask, void* mine, Combine combine, bool whole_warp = false);

int lane_id();
int linear_thread();

// Lets others run (spin loops); fails where nobody makes progress any more.
void yield();
// Lets others run once: for calls after which someone else may be faster.
void pass();

// Waits until another thread calls wake() for this one. `describe` words what for, should nobody ever do.
using Describe = std::string (*)(const void* context);
void sleep(Describe describe, const void* context);
void wake(int thread);

// Whether asynchronous work that a thread waits for goes on until nobody else can run (forward order), is done at once
// (reverse), or either (random).
bool late();

// ---- shared memory (shared_memory.cpp) ----------------------------------------------------------------------------

struct SharedSite {  // one static shared variable of one kernel (or device function)
  const char* name;
  size_t bytes;
  size_t alignment;
};
void* static_shared(const SharedSite& site);
void* dynamic_shared();
// Fails unless [p, p + bytes) lies within one shared variable of this block and p is aligned.
void check_shared(const void* p, size_t bytes, size_t alignment, const char* what);
// Which variable p points into, and how far, for messages.
std::string describe_shared(const void* p);

// ---- cp.async (async_copy.cpp) --------------------------------------------------------------------------------------

void async_copy_issue(void* shared_dst, const void* global_src, int bytes, int valid_bytes);
void async_copy_commit();
void async_copy_wait(int pending);

}  // namespace hostsim
}  // namespace cosegflow

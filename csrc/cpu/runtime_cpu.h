// Threads for the CPU kernels: parallel_for with a lambda, over the caller's threads or plain std::thread.
//
// The library owns no pool. Where CpuRuntime::parallel_for is given (the torch binding passes at::parallel_for) the
// caller's threads are used; the default starts num_threads - 1 threads for the call, which costs tens of
// microseconds: fine for kernels that run for milliseconds.
#pragma once

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "cosegflow/types.h"

namespace cosegflow {

// A workspace grows with the threads: a number that no machine has must not make it overflow.
inline int thread_count(const CpuRuntime& runtime) { return std::clamp(runtime.num_threads, 1, 1024); }

// Calls body(begin, end) on disjoint ranges that cover [0, n), each of at least `grain` but the last, and waits.
// `body` must not throw.
template <class Body>
void parallel_for(const CpuRuntime& runtime, int64_t n, int64_t grain, Body&& body) {
  if (n <= 0) return;
  grain = std::max<int64_t>(1, grain);
  if (n <= grain) return body(int64_t{0}, n);
  using Plain = std::remove_reference_t<Body>;
  if (runtime.parallel_for != nullptr) {
    auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<Plain*>(context))(begin, end); };
    return runtime.parallel_for(n, grain, call, const_cast<void*>(static_cast<const void*>(&body)));
  }
  const int64_t parts = std::min<int64_t>(thread_count(runtime), (n + grain - 1) / grain);
  const int64_t size = (n + parts - 1) / parts;
  std::vector<std::thread> helpers;
  int64_t begin = size;  // the first range is the calling thread's own
  try {
    for (; begin < n; begin += size) {
      helpers.emplace_back([&body, begin, end = std::min(n, begin + size)] { body(begin, end); });
    }
  } catch (const std::system_error&) {
    body(begin, n);  // no more threads to be had: the rest runs here
  }
  body(int64_t{0}, std::min(n, size));
  for (std::thread& helper : helpers) helper.join();
}

// Calls body(slot) once for each slot in [0, slots), concurrently where the runtime has the threads. A slot is the
// unit that owns scratch memory and partial sums, so results depend on the number of slots and never on timing.
template <class Body>
void parallel_slots(const CpuRuntime& runtime, int64_t slots, Body&& body) {
  parallel_for(runtime, slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) body(slot);
  });
}

}  // namespace cosegflow

// What both kinds of local_correlation on the CPU share, and their entry points: `grid` without flow, where every
// target is a pixel, and `flow`, where it lies between pixels.
#pragma once

#include "common/round_up.h"
#include "cosegflow/local_correlation.h"
#include "cpu/runtime_cpu.h"

namespace cosegflow {

// Calls body(slot, i) for all i in [0, n): a slot takes one contiguous range, in order.
template <class Body>
void for_each_in_slots(const CpuRuntime& runtime, int64_t slots, int64_t n, Body&& body) {
  parallel_slots(runtime, slots, [&](int64_t slot) {
    const int64_t end = n * (slot + 1) / slots;
    for (int64_t i = n * slot / slots; i < end; ++i) body(slot, i);
  });
}

// So many threads that each has work for some tens of microseconds.
inline int64_t local_correlation_slots(const LocalCorrelationParams& p, const CpuRuntime& runtime) {
  constexpr int64_t kProductsPerSlot = 1 << 18;
  const int64_t products = p.height_a * p.width_a * p.side() * p.side() * p.channels;
  return std::clamp<int64_t>(products / kProductsPerSlot, 1, thread_count(runtime));
}

// Bytes of the workspace, or with one the work. One of the two directions.
struct LocalCorrelationCall {
  const LocalCorrelationParams& params;
  const CpuRuntime& runtime;
  bool backward;
};
size_t local_correlation_grid_bytes(const LocalCorrelationCall&);
size_t local_correlation_flow_bytes(const LocalCorrelationCall&);
Status local_correlation_grid(const LocalCorrelationCall&, void* workspace);
Status local_correlation_flow(const LocalCorrelationCall&, void* workspace);

}  // namespace cosegflow

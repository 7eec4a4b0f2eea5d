// hostsim: what sm_90 adds: mbarriers, bulk copies, wgmma, warpgroups. Called by the emulations in cuda/primitives; see
// there for what each function means and docs/hostsim.md for when asynchronous work happens here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hostsim/runtime.h"

namespace cosegflow {
namespace hostsim {

// Where a call was written, for messages: a default argument of the wrappers, `Place place = {}`.
struct Place {
  const char* file;
  int line;
  Place(const char* f = __builtin_FILE(), int l = __builtin_LINE()) : file(f), line(l) {}
};

// ---- mbarriers (mbarrier.cpp) ---------------------------------------------------------------------------------------

void mbarrier_init(uint64_t* bar, unsigned arrivals);
void fence_proxy_async();
void mbarrier_arrive(uint64_t* bar, unsigned expect_bytes, Place place);
void mbarrier_wait(uint64_t* bar, unsigned parity, Place place);

// ---- bulk copies (bulk_copy.cpp) ------------------------------------------------------------------------------------

struct TensorMap {  // halves (images, rows, depth), and the rows of a box
  const void* data;
  int64_t depth, rows, images;
  int box_rows;
  int swizzle;  // bytes
};
void check_tensor_map(const TensorMap* map);
void bulk_load_tile(void* shared, const TensorMap* map, uint64_t* bar, int channel, int row, int image, Place place);
void bulk_load(void* shared, const void* global, unsigned bytes, uint64_t* bar, Place place);

// ---- wgmma (wgmma.cpp) ----------------------------------------------------------------------------------------------

struct SharedOperand {
  const unsigned char* start;
  uint64_t layout;  // the descriptor's bits but for the start address
  bool turned;      // MN-major
};
SharedOperand shared_operand(const void* tile, uint64_t layout, bool turned);
void wgmma_fence(Place place);
void wgmma_commit(Place place);
void wgmma_wait(int pending, Place place);
void wgmma_m64n128k16(float (&d)[64], SharedOperand a, SharedOperand b, bool accumulate, bool bfloat16, Place place);

// ---- warpgroups (warpgroup.cpp) -------------------------------------------------------------------------------------

void set_registers(int registers, bool more, Place place);
void named_barrier(int id, int threads, Place place);
bool elect_one();

}  // namespace hostsim
}  // namespace cosegflow

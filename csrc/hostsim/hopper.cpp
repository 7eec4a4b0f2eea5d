#include "hostsim/hopper.h"

namespace cosegflow {
namespace hostsim {

void mbarrier_init(uint64_t*, unsigned) { fail("not yet"); }
void fence_proxy_async() { fail("not yet"); }
void mbarrier_arrive(uint64_t*, unsigned, Place) { fail("not yet"); }
void mbarrier_wait(uint64_t*, unsigned, Place) { fail("not yet"); }
void check_tensor_map(const TensorMap*) { fail("not yet"); }
void bulk_load_tile(void*, const TensorMap*, uint64_t*, int, int, int, Place) { fail("not yet"); }
void bulk_load(void*, const void*, unsigned, uint64_t*, Place) { fail("not yet"); }
SharedOperand shared_operand(const void*) { fail("not yet"); }
void wgmma_fence(Place) { fail("not yet"); }
void wgmma_commit(Place) { fail("not yet"); }
void wgmma_wait(int, Place) { fail("not yet"); }
void wgmma_m64n128k16(float (&)[64], SharedOperand, SharedOperand, bool, bool, Place) { fail("not yet"); }
void set_registers(int, bool, Place) { fail("not yet"); }
void named_barrier(int, int, Place) { fail("not yet"); }
bool elect_one() { fail("not yet"); }

}  // namespace hostsim
}  // namespace cosegflow

// Small kernels, right and deliberately wrong, that test cuda/primitives and the simulation itself.
#pragma once

#include <cstdint>

#include "cosegflow/types.h"

namespace cosegflow {

struct PrimitiveTest {
  const void* a = nullptr;
  const void* b = nullptr;
  void* out = nullptr;
  int parameter = 0;  // what it means depends on the test
  int block = 32;     // threads
  int grid = 1;
  int64_t dynamic_bytes = 0;
  int fault = 0;            // of run_hopper_test: which mistake to make; 0: none
  int64_t numbers[7] = {};  // of run_hopper_test: what they mean depends on the test
};

// Status with the message "unknown" for a name that is none of the tests.
Status run_primitive_test(const char* name, const PrimitiveTest& test, Stream stream);
Status run_hopper_test(const char* name, const PrimitiveTest& test, Stream stream);

}  // namespace cosegflow

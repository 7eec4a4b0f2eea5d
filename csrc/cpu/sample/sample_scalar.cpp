// The sampling kernels for any machine: vectors of 16 bytes, which compile to SSE2 on x86-64 and to NEON on 64-bit ARM.
#include "cpu/sample/sample_kernels.h"

#include <utility>

#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // cells are wider than registers; the functions that take them are inlined
#endif

#define CSF_ISA scalar
#define CSF_VECTOR_BYTES 16

#include "cpu/tile/vector_math.h"

#include "cpu/sample/sample_kernel.h"

namespace cosegflow {
const SampleKernels<float> kSampleScalarFloat = scalar::kSampleTable<float>;
const SampleKernels<double> kSampleScalarDouble = scalar::kSampleTable<double>;
}  // namespace cosegflow

// The window kernels for any machine: vectors of 16 bytes, which compile to SSE2 on x86-64 and to NEON on 64-bit ARM.
#include "cpu/window/window_kernels.h"

#define CSF_ISA scalar
#define CSF_VECTOR_BYTES 16

#include "cpu/tile/vector_math.h"

#include "cpu/window/window_kernel.h"

namespace cosegflow {
const WindowKernels<float> kScalarWindowFloat = scalar::kWindowTable<float>;
const WindowKernels<double> kScalarWindowDouble = scalar::kWindowTable<double>;
}  // namespace cosegflow

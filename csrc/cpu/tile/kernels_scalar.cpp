// The tile kernels for any machine: vectors of 16 bytes, which compile to SSE2 on x86-64 and to NEON on 64-bit ARM.
#include "cpu/tile/tile_kernels.h"

#define CSF_ISA scalar
#define CSF_VECTOR_BYTES 16

#include "cpu/tile/vector_math.h"

#include "cpu/tile/product_kernel.h"
#include "cpu/tile/softmax_both_kernel.h"
#include "cpu/tile/softmax_kernel.h"
#include "cpu/tile/transfer_kernel.h"
#include "cpu/tile/window_kernel.h"

namespace cosegflow {
const TileKernels<float> kScalarFloat = scalar::kTable<float>;
const TileKernels<double> kScalarDouble = scalar::kTable<double>;
}  // namespace cosegflow

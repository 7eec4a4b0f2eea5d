// Which window kernels this machine runs.
#include "cpu/tile/isa.h"
#include "cpu/window/window_kernels.h"

namespace cosegflow {

template <>
const WindowKernels<float>& window_kernels<float>() {
#if defined(__x86_64__)
  if (chosen_isa() >= kAvx512) return kAvx512WindowFloat;
  if (chosen_isa() == kAvx2) return kAvx2WindowFloat;
#endif
  return kScalarWindowFloat;
}

template <>
const WindowKernels<double>& window_kernels<double>() {
#if defined(__x86_64__)
  if (chosen_isa() >= kAvx512) return kAvx512WindowDouble;
  if (chosen_isa() == kAvx2) return kAvx2WindowDouble;
#endif
  return kScalarWindowDouble;
}

}  // namespace cosegflow

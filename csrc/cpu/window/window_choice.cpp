// Which window kernels this machine runs: those of the instruction set that the tile kernels have.
#include "cpu/tile/tile_kernels.h"
#include "cpu/window/window_kernels.h"

namespace cosegflow {

template <>
const WindowKernels<float>& window_kernels<float>() {
#if defined(__x86_64__)
  const TileKernels<float>* const chosen = &tile_kernels<float>();
  if (chosen == &kAvx512Float) return kAvx512WindowFloat;
  if (chosen == &kAvx2Float) return kAvx2WindowFloat;
#endif
  return kScalarWindowFloat;
}

template <>
const WindowKernels<double>& window_kernels<double>() {
#if defined(__x86_64__)
  const TileKernels<double>* const chosen = &tile_kernels<double>();
  if (chosen == &kAvx512Double) return kAvx512WindowDouble;
  if (chosen == &kAvx2Double) return kAvx2WindowDouble;
#endif
  return kScalarWindowDouble;
}

}  // namespace cosegflow

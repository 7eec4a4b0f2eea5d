// Which tile kernels this machine runs.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/tile/isa.h"
#include "cpu/tile/tile_kernels.h"

namespace cosegflow {
namespace {

enum Isa { kScalar, kAvx2, kAvx512 };

Isa supported() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma")) {
    return kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
  return kScalar;
}

// COSEGFLOW_CPU_ISA can only ask for less than the machine has.
Isa choose() {
  const Isa best = supported();
  const char* wanted = std::getenv("COSEGFLOW_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  const char* names[] = {"scalar", "avx2", "avx512"};
  for (int isa = kScalar; isa <= kAvx512; ++isa) {
    if (std::strcmp(wanted, names[isa]) == 0) return isa < best ? static_cast<Isa>(isa) : best;
  }
  std::fprintf(stderr, "cosegflow: COSEGFLOW_CPU_ISA=%s is not one of scalar, avx2, avx512 and is ignored\n", wanted);
  return best;
}

Isa chosen() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace

#if defined(__x86_64__)
template <>
const TileKernels<float>& tile_kernels<float>() {
  return chosen() == kAvx512 ? kAvx512Float : chosen() == kAvx2 ? kAvx2Float : kScalarFloat;
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  return chosen() == kAvx512 ? kAvx512Double : chosen() == kAvx2 ? kAvx2Double : kScalarDouble;
}
#else
template <>
const TileKernels<float>& tile_kernels<float>() {
  return kScalarFloat;
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  return kScalarDouble;
}
#endif

int chosen_isa() { return chosen(); }

}  // namespace cosegflow

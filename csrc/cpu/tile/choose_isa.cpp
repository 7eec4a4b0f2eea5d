// Which tile kernels this machine runs.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/tile/isa.h"
#include "cpu/tile/tile_kernels.h"

namespace cosegflow {
namespace {

Isa supported() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma")) {
    return __builtin_cpu_supports("avx512bf16") ? kAvx512Bf16 : kAvx512;
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
  const char* names[] = {"scalar", "avx2", "avx512", "avx512_bf16"};
  for (int isa = kScalar; isa <= kAvx512Bf16; ++isa) {
    if (std::strcmp(wanted, names[isa]) == 0) return isa < best ? static_cast<Isa>(isa) : best;
  }
  std::fprintf(stderr,
               "cosegflow: COSEGFLOW_CPU_ISA=%s is not one of scalar, avx2, avx512, avx512_bf16 and is ignored\n",
               wanted);
  return best;
}

}  // namespace

Isa chosen_isa() {
  static const Isa isa = choose();
  return isa;
}

#if defined(__x86_64__)
template <>
const TileKernels<float>& tile_kernels<float>() {
  const Isa isa = chosen_isa();
  return isa == kAvx512Bf16 ? kAvx512Bf16Float
         : isa == kAvx512   ? kAvx512Float
         : isa == kAvx2     ? kAvx2Float
                            : kScalarFloat;
}
template <>
const TileKernels<double>& tile_kernels<double>() {
  const Isa isa = chosen_isa();
  return isa >= kAvx512 ? kAvx512Double : isa == kAvx2 ? kAvx2Double : kScalarDouble;
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

}  // namespace cosegflow

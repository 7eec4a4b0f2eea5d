// Which sampling kernels this machine runs.
#include "cpu/sample/sample_kernels.h"
#include "cpu/tile/isa.h"

namespace cosegflow {

#if defined(__x86_64__)
template <>
const SampleKernels<float>& sample_kernels<float>() {
  return chosen_isa() >= kAvx512 ? kSampleAvx512Float : chosen_isa() == kAvx2 ? kSampleAvx2Float : kSampleScalarFloat;
}
template <>
const SampleKernels<double>& sample_kernels<double>() {
  return chosen_isa() >= kAvx512 ? kSampleAvx512Double
         : chosen_isa() == kAvx2 ? kSampleAvx2Double
                                 : kSampleScalarDouble;
}
#else
template <>
const SampleKernels<float>& sample_kernels<float>() {
  return kSampleScalarFloat;
}
template <>
const SampleKernels<double>& sample_kernels<double>() {
  return kSampleScalarDouble;
}
#endif

}  // namespace cosegflow

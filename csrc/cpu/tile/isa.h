// Which instruction set the CPU kernels of this process use: 0 scalar, 1 AVX2, 2 AVX-512.
#pragma once

namespace cosegflow {

// The best of the machine, or the lower one that COSEGFLOW_CPU_ISA=scalar|avx2|avx512 asks for.
int chosen_isa();

}  // namespace cosegflow

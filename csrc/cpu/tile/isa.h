// Which instruction set the CPU kernels of this process use.
#pragma once

namespace cosegflow {

enum Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

// The best of the machine, or the lower one that COSEGFLOW_CPU_ISA=scalar|avx2|avx512|avx512_bf16 asks for.
Isa chosen_isa();

}  // namespace cosegflow

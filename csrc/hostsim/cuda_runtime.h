// hostsim: a stand-in for the CUDA toolkit's header of this name. With `-I csrc/hostsim`, g++ compiles the project's
// .cu files against it (-x c++) and runs their kernels on the CPU. See docs/hostsim.md.
#pragma once

#if defined(__CUDACC__)
#error "csrc/hostsim is for g++ only: remove it from nvcc's include path"
#endif

#include "hostsim/runtime.h"
#include "hostsim/types.h"

#include "hostsim/atomics.h"
#include "hostsim/collectives.h"
#include "hostsim/device_math.h"
#include "hostsim/hopper.h"

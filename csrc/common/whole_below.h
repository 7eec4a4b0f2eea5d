// The integer part of a coordinate.
#pragma once

#include "common/half.h"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace cosegflow {

// The largest int of at most x, which fits. On baseline x86-64 std::floor is a call, and the rest of the point is not.
template <class A>
CSF_HD int whole_below(A x) {
#if defined(__CUDA_ARCH__)
  return static_cast<int>(std::floor(x));
#else
  const int whole = static_cast<int>(x);
  return whole - (static_cast<A>(whole) > x);
#endif
}

}  // namespace cosegflow

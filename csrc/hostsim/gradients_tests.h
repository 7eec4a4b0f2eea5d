// The shared pieces of the backward passes, one at a time.
#pragma once

#include "cosegflow/types.h"
#include "normalize_backward.cuh"

namespace cosegflow {

// args.grad_f_hat and what else there is, for T of `type`; the pointers are to that type.
template <class T>
Status run_normalize_backward(const NormalizeBackwardArgs<T>& args, Stream stream);

}  // namespace cosegflow

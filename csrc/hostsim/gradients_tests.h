// The shared pieces of the backward passes, one at a time.
#pragma once

#include "cosegflow/types.h"
#include "gradient_product_mma.cuh"
#include "normalize_backward.cuh"

namespace cosegflow {

template <class T>
Status run_normalize_backward(const NormalizeBackwardArgs<T>& args, Stream stream);

// T is Half or BFloat16.
template <class T>
Status run_gradient_product(const ProductArgs<T>& args, const HalfLhs<T>& lhs, bool transposed,
                            const ProductSplits& splits, Stream stream);

}  // namespace cosegflow

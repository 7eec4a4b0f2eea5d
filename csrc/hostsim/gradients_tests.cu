// See gradients_tests.h.
#include "hostsim/gradients_tests.h"

namespace cosegflow {

template <class T>
Status run_normalize_backward(const NormalizeBackwardArgs<T>& args, Stream stream) {
  return launch_normalize_backward(args, stream);
}

template <class T>
Status run_gradient_product(const ProductArgs<T>& args, const HalfLhs<T>& lhs, bool transposed,
                            const ProductSplits& splits, Stream stream) {
  return transposed ? launch_gradient_product<true>(args, lhs, stream, splits)
                    : launch_gradient_product<false>(args, lhs, stream, splits);
}

template Status run_normalize_backward<Half>(const NormalizeBackwardArgs<Half>&, Stream);
template Status run_normalize_backward<BFloat16>(const NormalizeBackwardArgs<BFloat16>&, Stream);
template Status run_normalize_backward<float>(const NormalizeBackwardArgs<float>&, Stream);
template Status run_normalize_backward<double>(const NormalizeBackwardArgs<double>&, Stream);
template Status run_gradient_product<Half>(const ProductArgs<Half>&, const HalfLhs<Half>&, bool, const ProductSplits&,
                                           Stream);
template Status run_gradient_product<BFloat16>(const ProductArgs<BFloat16>&, const HalfLhs<BFloat16>&, bool,
                                               const ProductSplits&, Stream);

}  // namespace cosegflow

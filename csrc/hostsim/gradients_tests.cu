// See gradients_tests.h.
#include "hostsim/gradients_tests.h"

namespace cosegflow {

template <class T>
Status run_normalize_backward(const NormalizeBackwardArgs<T>& args, Stream stream) {
  return launch_normalize_backward(args, stream);
}

template Status run_normalize_backward<Half>(const NormalizeBackwardArgs<Half>&, Stream);
template Status run_normalize_backward<BFloat16>(const NormalizeBackwardArgs<BFloat16>&, Stream);
template Status run_normalize_backward<float>(const NormalizeBackwardArgs<float>&, Stream);
template Status run_normalize_backward<double>(const NormalizeBackwardArgs<double>&, Stream);

}  // namespace cosegflow

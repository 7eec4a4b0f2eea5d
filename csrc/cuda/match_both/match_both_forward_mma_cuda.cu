// match_both forward for float16 and bfloat16: mma.sync with float32 accumulators. See match_both_forward_kernel.cuh.
#include "match/match_mma_tile.cuh"
#include "match_both/match_both_forward_kernel.cuh"

namespace cosegflow::match_both_cuda {

template <class T>
Status launch_forward(const ForwardArgs<T>& args, Stream stream) {
  return launch_forward_with<T, match_cuda::MmaEngine<T>>(args, stream);
}
template Status launch_forward(const ForwardArgs<Half>&, Stream);
template Status launch_forward(const ForwardArgs<BFloat16>&, Stream);

}  // namespace cosegflow::match_both_cuda

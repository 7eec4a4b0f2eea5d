// match forward for float16 and bfloat16: mma.sync with float32 accumulators. See match_forward_kernel.cuh.
#include "match/match_forward_kernel.cuh"
#include "match/match_mma_tile.cuh"

namespace cosegflow::match_cuda {

template <class T>
Status launch_forward(const ForwardArgs<T>& args, Stream stream) {
  return launch_forward_with<T, MmaEngine<T>>(args, stream);
}
template Status launch_forward(const ForwardArgs<Half>&, Stream);
template Status launch_forward(const ForwardArgs<BFloat16>&, Stream);

}  // namespace cosegflow::match_cuda

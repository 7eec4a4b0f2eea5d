// match_both forward for float32 and float64: FMA in full precision. See match_both_forward_kernel.cuh.
#include "match/match_simt_tile.cuh"
#include "match_both/match_both_forward_kernel.cuh"

namespace cosegflow::match_both_cuda {

template <class T>
Status launch_forward(const ForwardArgs<T>& args, Stream stream) {
  return launch_forward_with<T, match_cuda::SimtEngine<T>>(args, stream);
}
template Status launch_forward(const ForwardArgs<float>&, Stream);
template Status launch_forward(const ForwardArgs<double>&, Stream);

}  // namespace cosegflow::match_both_cuda

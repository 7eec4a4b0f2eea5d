// match forward for float32 (FMA, "highest") and float64. See match_forward_kernel.cuh.
#include "match/match_forward_kernel.cuh"
#include "match/match_simt_tile.cuh"

namespace cosegflow::match_cuda {

template <class T>
Status launch_forward(const ForwardArgs<T>& args, Stream stream) {
  return launch_forward_with<T, SimtEngine<T>>(args, stream);
}
template Status launch_forward(const ForwardArgs<float>&, Stream);
template Status launch_forward(const ForwardArgs<double>&, Stream);

}  // namespace cosegflow::match_cuda

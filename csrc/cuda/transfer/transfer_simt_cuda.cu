// The tiled kernels of transfer for float32 (full precision) and float64: FMA tiles. See transfer_tile_kernels.cuh.
#include "match/match_forward_kernel.cuh"
#include "match/match_simt_tile.cuh"
#include "transfer/transfer_tile_kernels.cuh"

namespace cosegflow::transfer_cuda {

template <class T>
Status launch_states(const ForwardArgs<T>& args, Stream stream) {
  return match_cuda::launch_forward_with<T, match_cuda::SimtEngine<T>>(args, stream);
}
template <class T>
Status launch_probability(const ChunkArgs<T>& args, Stream stream) {
  return launch_tiles<T, match_cuda::SimtEngine<T>, false>(args, stream);
}
template <class T>
Status launch_gradient(const ChunkArgs<T>& args, Stream stream) {
  return launch_gradient_with<T, match_cuda::SimtEngine<T>>(args, stream);
}
template Status launch_states(const ForwardArgs<float>&, Stream);
template Status launch_probability(const ChunkArgs<float>&, Stream);
template Status launch_gradient(const ChunkArgs<float>&, Stream);
template Status launch_states(const ForwardArgs<double>&, Stream);
template Status launch_probability(const ChunkArgs<double>&, Stream);
template Status launch_gradient(const ChunkArgs<double>&, Stream);

}  // namespace cosegflow::transfer_cuda

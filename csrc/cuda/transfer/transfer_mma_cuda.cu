// The tiled kernels of transfer for float16 and bfloat16: mma.sync with float32 accumulators. See
// transfer_tile_kernels.cuh.
#include "match/match_forward_kernel.cuh"
#include "match/match_mma_tile.cuh"
#include "transfer/transfer_tile_kernels.cuh"

namespace cosegflow::transfer_cuda {

template <class T>
Status launch_states(const ForwardArgs<T>& args, Stream stream) {
  return match_cuda::launch_forward_with<T, match_cuda::MmaEngine<T>>(args, stream);
}
template <class T>
Status launch_probability(const ChunkArgs<T>& args, Stream stream) {
  return launch_tiles<T, match_cuda::MmaEngine<T>, false>(args, stream);
}
template <class T>
Status launch_gradient(const ChunkArgs<T>& args, Stream stream) {
  return launch_gradient_with<T, match_cuda::MmaEngine<T>>(args, stream);
}
template Status launch_states(const ForwardArgs<Half>&, Stream);
template Status launch_probability(const ChunkArgs<Half>&, Stream);
template Status launch_gradient(const ChunkArgs<Half>&, Stream);
template Status launch_states(const ForwardArgs<BFloat16>&, Stream);
template Status launch_probability(const ChunkArgs<BFloat16>&, Stream);
template Status launch_gradient(const ChunkArgs<BFloat16>&, Stream);

}  // namespace cosegflow::transfer_cuda

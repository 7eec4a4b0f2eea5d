// The recomputed scores of match_both's backward for float32 and float64. See match_both_gradient_kernel.cuh.
#include "match/match_simt_tile.cuh"
#include "match_both/match_both_gradient_kernel.cuh"

namespace cosegflow::match_both_cuda {

template <class T>
Status launch_score_gradient(const GradientArgs<T>& args, int64_t images, Stream stream) {
  return launch_score_gradient_with<T, match_cuda::SimtEngine<T>>(args, images, stream);
}
template Status launch_score_gradient(const GradientArgs<float>&, int64_t, Stream);
template Status launch_score_gradient(const GradientArgs<double>&, int64_t, Stream);

}  // namespace cosegflow::match_both_cuda

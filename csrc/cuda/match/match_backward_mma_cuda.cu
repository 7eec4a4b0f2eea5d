// The recomputed scores of match's backward for float16 and bfloat16. See match_score_gradient_kernel.cuh.
#include "match/match_mma_tile.cuh"
#include "match/match_score_gradient_kernel.cuh"

namespace cosegflow::match_cuda {

template <class T>
Status launch_score_gradient(const GradientArgs<T>& args, int64_t images, Stream stream) {
  return launch_score_gradient_with<T, MmaEngine<T>>(args, images, stream);
}
template Status launch_score_gradient(const GradientArgs<Half>&, int64_t, Stream);
template Status launch_score_gradient(const GradientArgs<BFloat16>&, int64_t, Stream);

}  // namespace cosegflow::match_cuda

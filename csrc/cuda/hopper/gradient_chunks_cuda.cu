// What gradient_chunks.cuh launches that is not a template: a thread an image, next to nothing.
#include "hopper/gradient_chunks.cuh"

namespace cosegflow::hopper {
namespace {

__global__ void __launch_bounds__(256) gradient_unscale_kernel(const int* bound, int64_t batch, float* unscale) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (b < batch) unscale[b] = range_unscale(__int_as_float(bound[b]));
}

}  // namespace

Status launch_unscale(const int* bound, int64_t batch, float* unscale, Stream stream) {
  return launch(&gradient_unscale_kernel, dim3(static_cast<unsigned>(ceil_div(batch, 256))), dim3(256), 0, stream,
                bound, batch, unscale);
}

}  // namespace cosegflow::hopper

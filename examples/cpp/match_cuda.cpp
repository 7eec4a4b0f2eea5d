// Matches two feature maps and warps one onto the other, on a GPU: device pointers, a workspace and a stream of its
// own. Compares the results with those of the CPU. Ends with 77 where there is no device.
#include "pair.h"

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

// A Status has a message, and a cudaError_t where the CUDA runtime reported one.
void check(cosegflow::Status status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s", status.message);
  if (status.cuda_error != 0) {
    std::fprintf(stderr, ": %s", cudaGetErrorString(static_cast<cudaError_t>(status.cuda_error)));
  }
  std::fputc('\n', stderr);
  std::exit(1);
}

// Device memory. What cudaMalloc returns is aligned to more than the 16 bytes that a workspace needs.
class DeviceArray {
 public:
  explicit DeviceArray(size_t bytes) : bytes_(bytes) {
    if (bytes > 0) check(cudaMalloc(&data_, bytes));
  }
  DeviceArray(const std::vector<float>& from, cudaStream_t stream) : DeviceArray(from.size() * sizeof(float)) {
    check(cudaMemcpyAsync(data_, from.data(), bytes_, cudaMemcpyHostToDevice, stream));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  void* data() const { return data_; }
  float* floats() const { return static_cast<float*>(data_); }
  void copy_to(std::vector<float>& to, cudaStream_t stream) const {
    check(cudaMemcpyAsync(to.data(), data_, bytes_, cudaMemcpyDeviceToHost, stream));
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

struct Results {
  std::vector<float> flow = std::vector<float>(2 * kPixels), lse = std::vector<float>(kPixels),
                     confidence = std::vector<float>(kPixels), warped = std::vector<float>(kChannels * kPixels);
};

Results on_the_gpu(const std::vector<float>& fa, const std::vector<float>& fb) {
  Results results;
  // [launch]
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const DeviceArray device_fa(fa, stream), device_fb(fb, stream), beta({kBeta}, stream);
  const DeviceArray flow(2 * kPixels * sizeof(float)), lse(kPixels * sizeof(float));
  const DeviceArray confidence(kPixels * sizeof(float)), warped(kChannels * kPixels * sizeof(float));

  const auto match = match_params(device_fa.floats(), device_fb.floats(), beta.floats(), flow.floats(), lse.floats(),
                                  confidence.floats());
  const DeviceArray workspace(cosegflow::match_forward_workspace_bytes_cuda(match));
  check(cosegflow::match_forward_cuda(match, workspace.data(), stream));
  check(cosegflow::warp_forward_cuda(warp_params(device_fb.floats(), flow.floats(), warped.floats()), stream));

  flow.copy_to(results.flow, stream), lse.copy_to(results.lse, stream);
  confidence.copy_to(results.confidence, stream), warped.copy_to(results.warped, stream);
  check(cudaStreamSynchronize(stream));  // launches do not wait; the arrays must live until here
  check(cudaStreamDestroy(stream));
  // [launch]
  return results;
}

Results on_the_cpu(const std::vector<float>& fa, const std::vector<float>& fb) {
  Results r;
  const auto match = match_params(fa.data(), fb.data(), &kBeta, r.flow.data(), r.lse.data(), r.confidence.data());
  std::vector<char> workspace(cosegflow::match_forward_workspace_bytes_cpu(match, {}));
  check(cosegflow::match_forward_cpu(match, workspace.data(), {}));
  check(cosegflow::warp_forward_cpu(warp_params(fb.data(), r.flow.data(), r.warped.data()), {}));
  return r;
}

bool close(const char* name, const std::vector<float>& found, const std::vector<float>& wanted, float tolerance) {
  float worst = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const float error = std::fabs(found[i] - wanted[i]);
    if (!(error <= worst)) worst = error;  // a NaN stays
    if (std::isnan(worst)) break;
  }
  std::printf("%-10s largest difference from the CPU %.2g, allowed %.2g\n", name, worst, tolerance);
  return worst <= tolerance;
}

}  // namespace

int main() {
  int devices = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&devices); error != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no CUDA device: %s\n", cudaGetErrorString(error));
    return 77;
  }
  const std::vector<float> fa = features(0, 0), fb = features(kShiftX, kShiftY);
  const Results gpu = on_the_gpu(fa, fb), cpu = on_the_cpu(fa, fb);
  const bool good[] = {close("flow", gpu.flow, cpu.flow, 5e-3f), close("lse", gpu.lse, cpu.lse, 1e-3f),
                       close("confidence", gpu.confidence, cpu.confidence, 1e-3f),
                       close("warped", gpu.warped, cpu.warped, 5e-3f)};
  return good[0] && good[1] && good[2] && good[3] ? 0 : 1;
}

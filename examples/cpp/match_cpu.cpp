// Matches two feature maps and warps one onto the other, on the CPU: a C++ compiler, no torch, no CUDA.
#include "pair.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

void check(cosegflow::Status status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message);
  std::exit(1);
}

}  // namespace

int main() {
  if (!cosegflow::library_fits_headers()) {
    std::fprintf(stderr, "compiled for cosegflow %d, running with %d\n", COSEGFLOW_VERSION,
                 cosegflow::library_version());
    return 1;
  }
  const std::vector<float> fa = features(0, 0), fb = features(kShiftX, kShiftY);
  std::vector<float> flow(2 * kPixels), lse(kPixels), confidence(kPixels), warped(kChannels * kPixels);

  // [launch]
  cosegflow::CpuRuntime runtime;  // parallel_for may lead to your own thread pool
  runtime.num_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));

  const auto match = match_params(fa.data(), fb.data(), &kBeta, flow.data(), lse.data(), confidence.data());
  std::vector<char> workspace(cosegflow::match_forward_workspace_bytes_cpu(match, runtime));
  check(cosegflow::match_forward_cpu(match, workspace.data(), runtime));

  check(cosegflow::warp_forward_cpu(warp_params(fb.data(), flow.data(), warped.data()), runtime));
  // [launch]

  std::puts("  x   y    flow x    flow y       lse  confidence");
  float flow_error = 0, warp_error = 0;
  for (int64_t y = 0; y < kHeight - kShiftY; ++y) {  // pixels of a that are in b too
    for (int64_t x = 0; x < kWidth - kShiftX; ++x) {
      const int64_t p = y * kWidth + x;
      flow_error = std::fmax(flow_error, std::hypot(flow[p] - kShiftX, flow[kPixels + p] - kShiftY));
      for (int64_t c = 0; c < kChannels; ++c) {
        warp_error = std::fmax(warp_error, std::fabs(warped[c * kPixels + p] - fa[c * kPixels + p]));
      }
      if (x % 12 == 0 && y % 7 == 0) {
        std::printf("%3d %3d %9.5f %9.5f %9.5f  %10.6f\n", static_cast<int>(x), static_cast<int>(y), flow[p],
                    flow[kPixels + p], lse[p], confidence[p]);
      }
    }
  }
  std::printf("largest error: flow %.2g px, warped features %.2g\n", flow_error, warp_error);
  return flow_error < 1e-2f && warp_error < 1e-2f ? 0 : 1;  // a NaN fails
}

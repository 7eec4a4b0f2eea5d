// What the two engines of products along a flow are given: a run of pixels, and where its windows are summed.
#pragma once

#include "local_correlation/local_correlation_flow_windows.cuh"

namespace cosegflow::local_correlation_cuda {

// From the window of a pixel to that of the next, in shared memory: pixels of a product lie in different banks.
constexpr int kWindowPitch = kPieceTaps * kPieceTaps + 1;

// A run, whose taps several warps may share. `windows`: the run's first.
template <class T>
struct ProductRun {
  const Side<T>&a, &other;
  const Rows<T>&rows_a, &rows_b;
  const RunGrid& grid;
  int64_t b;
  int run, part, parts;
  accumulate_t<T>* windows;

  __device__ __forceinline__ const T* row_a(int number) const {
    const RunPixel at = pixel_of_run(grid, run, number);
    return rows_a.of_image(b) + static_cast<int64_t>(at.y * grid.width + at.x) * rows_a.step;
  }
  __device__ __forceinline__ const T* row_b(int y, int x) const {
    return rows_b.of_image(b) + static_cast<int64_t>(y * other.width + x) * rows_b.step;
  }
};

}  // namespace cosegflow::local_correlation_cuda

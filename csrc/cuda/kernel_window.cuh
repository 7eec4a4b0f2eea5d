// The window of the kernel soft argmax (SFNet): k max(s, 0) stands for the score s, with a Gaussian k around a pixel.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

#include "primitives/real_math.cuh"

namespace cosegflow {

// 1 / (2 sigma^2), finite, so that 0 * rate is 0.
template <class Acc>
CSF_HD Acc window_rate(double sigma) {
  const double largest = sizeof(Acc) == sizeof(float) ? static_cast<double>(FLT_MAX) : DBL_MAX;
  const double rate = 0.5 / sigma / sigma;
  return static_cast<Acc>(rate < largest ? rate : largest);
}

template <class Acc>
struct KernelWindow {
  Acc rate, x, y;

  // Around the pixel `index` of a grid of that width; -1 is the place of a row of NaN, which stays one.
  static __device__ __forceinline__ KernelWindow around(int64_t index, int64_t width, double sigma) {
    if (index < 0) index = 0;
    return {window_rate<Acc>(sigma), static_cast<Acc>(index % width), static_cast<Acc>(index / width)};
  }
  __device__ __forceinline__ Acc gaussian(Acc at_x, Acc at_y) const {
    const Acc dx = at_x - x, dy = at_y - y;
    return exp_of(-rate * (dx * dx + dy * dy));
  }
  // k max(s, 0), where a NaN stays, and its derivative by s.
  static __device__ __forceinline__ Acc value(Acc s, Acc k) { return s <= Acc(0) ? Acc(0) : k * s; }
  static __device__ __forceinline__ Acc slope(Acc s, Acc k) { return s > Acc(0) ? k : Acc(0); }
};

}  // namespace cosegflow

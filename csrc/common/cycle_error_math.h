// cycle_error at one pixel, shared by the CUDA kernels, hostsim and the CPU kernels.
#pragma once

#include "common/warp_math.h"
#include "cosegflow/cycle_error.h"

namespace cosegflow {

template <class A>
struct CycleSum {
  WarpPoint<A> point;  // p + flow_ab(p), in b
  A x, y;              // flow_ab(p) + flow_ba(p + flow_ab(p)); 0 where not valid
  A length;
  bool valid;
};

template <class A>
struct CyclePixel : CycleSum<A> {
  WarpTaps<A> taps;  // of flow_ba
};

// The length of (x, y) without overflow or underflow of the squares.
template <class A>
CSF_HD A vector_length(A x, A y) {
#if !defined(__CUDA_ARCH__)
  if constexpr (sizeof(A) == sizeof(float)) {
    return static_cast<A>(std::sqrt(static_cast<double>(x) * x + static_cast<double>(y) * y));
  }
#endif
  return std::hypot(x, y);
}

// Takes in the sample of flow_ba, where the point is inside.
template <class A>
CSF_HD void add_way_back(CycleSum<A>& pixel, A ab_x, A ab_y, A back_x, A back_y) {
  pixel.valid = (back_x - back_x == A(0)) && (back_y - back_y == A(0));  // inf - inf and NaN - NaN are NaN
  if (!pixel.valid) return;
  pixel.x = ab_x + back_x;
  pixel.y = ab_y + back_y;
  pixel.length = vector_length(pixel.x, pixel.y);
}

// Reads flow_ab at (row, column) of image b and samples flow_ba there. Border padding: on the last column and row the
// tap beyond has weight 0, and a value of 0 there (zero padding) would enter the derivative by the position.
template <class T>
CSF_HD CyclePixel<accumulate_t<T>> cycle_pixel(const CycleErrorParams& p, int64_t b, int64_t row, int64_t column) {
  using A = accumulate_t<T>;
  const T* ab = static_cast<const T*>(p.flow_ab.data) + b * p.flow_ab.stride[0] + row * p.flow_ab.stride[2] +
                column * p.flow_ab.stride[3];
  const T* ba = static_cast<const T*>(p.flow_ba.data) + b * p.flow_ba.stride[0];
  const A ab_x = to_float(ab[0]), ab_y = to_float(ab[p.flow_ab.stride[1]]);
  CyclePixel<A> pixel;
  pixel.point = warp_point(ab_x, ab_y, column, row, p.width_b, p.height_b, WarpMode::kBilinear, WarpPadding::kBorder);
  pixel.taps =
      warp_taps(pixel.point, p.width_b, p.height_b, p.flow_ba.stride[3], p.flow_ba.stride[2], WarpPadding::kBorder);
  pixel.x = pixel.y = pixel.length = A(0);
  pixel.valid = pixel.point.valid;
  if (!pixel.valid) return pixel;
  const A back_x = warp_sample(pixel.taps, ba), back_y = warp_sample(pixel.taps, ba + p.flow_ba.stride[1]);
  add_way_back<A>(pixel, ab_x, ab_y, back_x, back_y);
  return pixel;
}

// The gradient to (x, y), given that to their length. 0 where nothing may flow: where the pixel is not valid, whatever
// `grad` is there, and at length 0, where the length has no derivative.
template <class A>
CSF_HD void cycle_sum_gradient(const CycleSum<A>& pixel, A grad, A& grad_x, A& grad_y) {
  const bool flows = pixel.valid && pixel.length > A(0);
  grad_x = flows ? grad * (pixel.x / pixel.length) : A(0);
  grad_y = flows ? grad * (pixel.y / pixel.length) : A(0);
}

// How flow_ba's sample changes with the position: channel by direction.
template <class A>
struct BackSlopes {
  A x_by_x, x_by_y, y_by_x, y_by_y;
};

// The gradient to flow_ab(p): as a summand, and through the position where flow_ba is read.
template <class A>
CSF_HD void cycle_ab_gradient(const BackSlopes<A>& slopes, A grad_x, A grad_y, A& grad_ab_x, A& grad_ab_y) {
  const auto [x_by_x, x_by_y, y_by_x, y_by_y] = slopes;
  grad_ab_x = grad_x;
  grad_ab_y = grad_y;
  grad_ab_x += grad_x * x_by_x + grad_y * y_by_x;
  grad_ab_y += grad_x * x_by_y + grad_y * y_by_y;
}

template <class T, class A>
CSF_HD void cycle_ab_gradient(const CycleErrorParams& p, const CyclePixel<A>& pixel, int64_t b, A grad_x, A grad_y,
                              A& grad_ab_x, A& grad_ab_y) {
  BackSlopes<A> slopes{};
  if (pixel.valid && pixel.length > A(0)) {
    const T* ba = static_cast<const T*>(p.flow_ba.data) + b * p.flow_ba.stride[0];
    warp_sample_gradient(pixel.point, pixel.taps, ba, slopes.x_by_x, slopes.x_by_y);
    warp_sample_gradient(pixel.point, pixel.taps, ba + p.flow_ba.stride[1], slopes.y_by_x, slopes.y_by_y);
  }
  cycle_ab_gradient(slopes, grad_x, grad_y, grad_ab_x, grad_ab_y);
}

}  // namespace cosegflow

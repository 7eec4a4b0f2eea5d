// local_correlation with flow: where the window of a pixel lies and how its products are interpolated, shared by the
// CUDA kernels, hostsim and the CPU kernels.
//
// All (2r+1)^2 sampling points p + flow(p) + d of a pixel have the same fractions, so their taps are the (2r+2)^2
// pixels of one window, and interpolating features is interpolating the window's inner products
//   D(i, j) = <fa(p), fb(y0 - r + i, x0 - r + j)>,   0 where that pixel is outside:
//   out(dy, dx) = (1-wy) ((1-wx) D(dy, dx) + wx D(dy, dx+1)) + wy ((1-wx) D(dy+1, dx) + wx D(dy+1, dx+1)),
// dy and dx counted from 0. Transposed, d out/d D and d D/d fa, fb give the gradients to the features.
#pragma once

#include "common/whole_below.h"
#include "cosegflow/local_correlation.h"

namespace cosegflow {

// The window's first column and row, and the fractions to the next ones.
template <class A>
struct WindowPoint {
  int x, y;
  A wx, wy;
  bool finite;
};

// Beyond reach of the image nothing depends on the distance, so the coordinate is clamped there: the conversion to an
// integer stays defined for a flow of 1e30. A non-finite flow counts as outside.
template <class A>
CSF_HD WindowPoint<A> window_point(A flow_x, A flow_y, int64_t column, int64_t row, int64_t width, int64_t height,
                                   int64_t radius) {
  WindowPoint<A> point;
  const A reach = static_cast<A>(radius + 2);
  const A last_x = static_cast<A>(width - 1) + reach, last_y = static_cast<A>(height - 1) + reach;
  A px = static_cast<A>(column) + flow_x;
  A py = static_cast<A>(row) + flow_y;
  point.finite = (flow_x - flow_x == A(0)) && (flow_y - flow_y == A(0));  // inf - inf and NaN - NaN are NaN
  if (!point.finite) px = py = -reach;
  px = px < -reach ? -reach : px > last_x ? last_x : px;
  py = py < -reach ? -reach : py > last_y ? last_y : py;
  const int whole_x = whole_below(px), whole_y = whole_below(py);
  point.x = whole_x - static_cast<int>(radius);
  point.y = whole_y - static_cast<int>(radius);
  point.wx = px - static_cast<A>(whole_x);
  point.wy = py - static_cast<A>(whole_y);
  return point;
}

// The weights of a tap and of the tap before it: those of interpolation, and their derivatives to the coordinate.
template <class A>
struct TapWeights {
  A here, before;
};
template <class A>
CSF_HD TapWeights<A> interpolation(A fraction) {
  return {A(1) - fraction, fraction};
}
template <class A>
CSF_HD TapWeights<A> slope() {
  return {A(-1), A(1)};
}

// The gradient to D(i, j), or with slopes the factor of D(i, j) in a derivative to the flow. grad(dy, dx) is the
// incoming gradient; side = 2r+1.
template <class A, class Grad>
CSF_HD A window_gradient(int i, int j, int side, TapWeights<A> y, TapWeights<A> x, const Grad& grad) {
  A sum = A(0);
  if (i < side) {
    if (j < side) sum += y.here * x.here * grad(i, j);
    if (j > 0) sum += y.here * x.before * grad(i, j - 1);
  }
  if (i > 0) {
    if (j < side) sum += y.before * x.here * grad(i - 1, j);
    if (j > 0) sum += y.before * x.before * grad(i - 1, j - 1);
  }
  return sum;
}

}  // namespace cosegflow

// warp: where an output pixel samples x, shared by the CUDA kernels, hostsim and the CPU kernels.
#pragma once

#include "common/whole_below.h"
#include "cosegflow/warp.h"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace cosegflow {

// One sampling point: its top-left tap, the fractions to the next column and row, and what of the flow's change
// reaches the point (0 where border padding holds it). `finite` false: the pixel is outside whatever the padding.
template <class A>
struct WarpPoint {
  int x0, y0;
  A wx, wy;
  A dx, dy;
  bool finite, valid, nearest;
};

// The point p + flow(p). A non-finite flow counts as outside. Far outside, nothing depends on the distance, so the
// coordinate is clamped to a few pixels around the image: the conversion to int stays defined for a flow of 1e30.
// (column, row) is the pixel, (last_x, last_y) the last one of the image.
template <class A>
CSF_HD WarpPoint<A> warp_point_of(A flow_x, A flow_y, A column, A row, A last_x, A last_y, WarpMode mode,
                                  WarpPadding padding) {
  WarpPoint<A> point;
  A px = column + flow_x;
  A py = row + flow_y;
  point.finite = (flow_x - flow_x == A(0)) && (flow_y - flow_y == A(0));  // inf - inf and NaN - NaN are NaN
  if (!point.finite) px = py = A(-4);
  point.valid = point.finite && px >= A(0) && px <= last_x && py >= A(0) && py <= last_y;
  point.nearest = mode == WarpMode::kNearest;
  point.dx = point.dy = A(1);
  const A margin = padding == WarpPadding::kBorder ? A(0) : A(4);
  if (px < -margin) px = -margin, point.dx = A(0);
  if (px > last_x + margin) px = last_x + margin, point.dx = A(0);
  if (py < -margin) py = -margin, point.dy = A(0);
  if (py > last_y + margin) py = last_y + margin, point.dy = A(0);
  if (point.nearest) {
    px = std::nearbyint(px);  // halves to even, as torch.round
    py = std::nearbyint(py);
    point.dx = point.dy = A(0);
  }
  point.x0 = whole_below(px);
  point.y0 = whole_below(py);
  point.wx = px - static_cast<A>(point.x0);
  point.wy = py - static_cast<A>(point.y0);
  return point;
}

template <class A>
CSF_HD WarpPoint<A> warp_point(A flow_x, A flow_y, int64_t column, int64_t row, int64_t width, int64_t height,
                               WarpMode mode, WarpPadding padding) {
  return warp_point_of(flow_x, flow_y, static_cast<A>(column), static_cast<A>(row), static_cast<A>(width - 1),
                       static_cast<A>(height - 1), mode, padding);
}

// The four taps: offsets into a plane of x (in elements), their bilinear weights, and whether each lies inside.
// Order: top left, top right, bottom left, bottom right.
template <class A>
struct WarpTaps {
  int64_t offset[4];
  A weight[4];
  bool inside[4];
};

template <class A>
CSF_HD WarpTaps<A> warp_taps(const WarpPoint<A>& point, int64_t width, int64_t height, int64_t stride_x,
                             int64_t stride_y, WarpPadding padding) {
  WarpTaps<A> taps;
  for (int k = 0; k < 4; ++k) {
    int64_t x = point.x0 + (k & 1);
    int64_t y = point.y0 + (k >> 1);
    if (padding == WarpPadding::kBorder) {  // only the right and lower taps can be beyond, and only with weight 0
      x = x < width ? x : width - 1;
      y = y < height ? y : height - 1;
    }
    taps.inside[k] = point.finite && (k == 0 || !point.nearest) && x >= 0 && x < width && y >= 0 && y < height;
    taps.offset[k] = taps.inside[k] ? y * stride_y + x * stride_x : 0;
    taps.weight[k] = ((k & 1) ? point.wx : A(1) - point.wx) * ((k >> 1) ? point.wy : A(1) - point.wy);
  }
  return taps;
}

// sum_k weight_k x_k over the taps inside.
template <class A, class T>
CSF_HD A warp_sample(const WarpTaps<A>& taps, const T* plane) {
  A sum = A(0);
  for (int k = 0; k < 4; ++k) {
    if (taps.inside[k]) sum += taps.weight[k] * to_float(plane[taps.offset[k]]);
  }
  return sum;
}

// d(sample)/d(flow_x) and d(sample)/d(flow_y) for one channel.
template <class A, class T>
CSF_HD void warp_sample_gradient(const WarpPoint<A>& point, const WarpTaps<A>& taps, const T* plane, A& d_x, A& d_y) {
  A v[4];
  for (int k = 0; k < 4; ++k) v[k] = taps.inside[k] ? static_cast<A>(to_float(plane[taps.offset[k]])) : A(0);
  d_x = point.dx * ((v[1] - v[0]) * (A(1) - point.wy) + (v[3] - v[2]) * point.wy);
  d_y = point.dy * ((v[2] - v[0]) * (A(1) - point.wx) + (v[3] - v[1]) * point.wx);
}

}  // namespace cosegflow

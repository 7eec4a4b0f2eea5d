// warp on the CPU. The math is common/warp_math.h, as on CUDA; here the loops are arranged for caches and threads.
//
// Forward and the gradient to flow run over rows of the output: the taps of a row are formed once and reused for every
// channel. The gradient to x runs over planes of x, in groups that share the taps: a plane belongs to one thread, so
// nothing is atomic and the result does not depend on the number of threads.
#include <vector>

#include "common/dispatch.h"
#include "common/warp_math.h"
#include "cosegflow/warp.h"
#include "cpu/runtime_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kPlanesPerGroup = 8;
constexpr int64_t kPixelsPerTask = 2048;

template <class T>
T* plane(const View4& view, int64_t b, int64_t c) {
  return static_cast<T*>(view.data) + b * view.stride[0] + c * view.stride[1];
}

// The points and taps of one row of the output.
template <class A>
struct RowOfTaps {
  std::vector<WarpPoint<A>> points;
  std::vector<WarpTaps<A>> taps;

  void fill(const WarpParams& p, const View4& target, int64_t b, int64_t row) {
    points.resize(p.out_width);
    taps.resize(p.out_width);
    const A* flow_x = plane<A>(p.flow, b, 0) + row * p.flow.stride[2];
    const A* flow_y = flow_x + p.flow.stride[1];
    for (int64_t column = 0; column < p.out_width; ++column) {
      const int64_t offset = column * p.flow.stride[3];
      points[column] = warp_point(flow_x[offset], flow_y[offset], column, row, p.width, p.height, p.mode, p.padding);
      taps[column] = warp_taps(points[column], p.width, p.height, target.stride[3], target.stride[2], p.padding);
    }
  }
};

template <class T>
void forward_row(const WarpParams& p, RowOfTaps<accumulate_t<T>>& line, int64_t b, int64_t row) {
  line.fill(p, p.x, b, row);
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* x = plane<const T>(p.x, b, c);
    T* out = plane<T>(p.out, b, c) + row * p.out.stride[2];
    for (int64_t column = 0; column < p.out_width; ++column) {
      out[column * p.out.stride[3]] = from_float<T>(warp_sample(line.taps[column], x));
    }
  }
  if (p.valid.data == nullptr) return;
  bool* valid = static_cast<bool*>(p.valid.data) + b * p.valid.stride[0] + row * p.valid.stride[1];
  for (int64_t column = 0; column < p.out_width; ++column) {
    valid[column * p.valid.stride[2]] = line.points[column].valid;
  }
}

template <class T>
void backward_flow_row(const WarpParams& p, RowOfTaps<accumulate_t<T>>& line, int64_t b, int64_t row) {
  using A = accumulate_t<T>;
  line.fill(p, p.x, b, row);
  A* grad_x = plane<A>(p.grad_flow, b, 0) + row * p.grad_flow.stride[2];
  A* grad_y = grad_x + p.grad_flow.stride[1];
  const int64_t step = p.grad_flow.stride[3];
  for (int64_t column = 0; column < p.out_width; ++column) grad_x[column * step] = grad_y[column * step] = A(0);
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* x = plane<const T>(p.x, b, c);
    const T* grad_out = plane<const T>(p.grad_out, b, c) + row * p.grad_out.stride[2];
    for (int64_t column = 0; column < p.out_width; ++column) {
      if (!line.points[column].finite) continue;  // gradient 0 even where the incoming one is NaN
      const A g = to_float(grad_out[column * p.grad_out.stride[3]]);
      A d_x, d_y;
      warp_sample_gradient(line.points[column], line.taps[column], x, d_x, d_y);
      grad_x[column * step] += g * d_x;
      grad_y[column * step] += g * d_y;
    }
  }
}

template <class T>
void backward_x_group(const WarpParams& p, RowOfTaps<accumulate_t<T>>& line, int64_t b, int64_t first, int64_t end) {
  using A = accumulate_t<T>;
  for (int64_t c = first; c < end; ++c) std::fill_n(plane<A>(p.grad_x, b, c), p.height * p.width, A(0));
  for (int64_t row = 0; row < p.out_height; ++row) {
    line.fill(p, p.grad_x, b, row);
    for (int64_t c = first; c < end; ++c) {
      const T* grad_out = plane<const T>(p.grad_out, b, c) + row * p.grad_out.stride[2];
      A* grad_x = plane<A>(p.grad_x, b, c);
      for (int64_t column = 0; column < p.out_width; ++column) {
        const A g = to_float(grad_out[column * p.grad_out.stride[3]]);
        const WarpTaps<A>& taps = line.taps[column];
        for (int k = 0; k < 4; ++k) {
          if (taps.inside[k]) grad_x[taps.offset[k]] += taps.weight[k] * g;
        }
      }
    }
  }
}

// Calls body(b, row) for every row of the output, in parallel, with scratch for the taps.
template <class A, class Body>
void for_each_row(const WarpParams& p, const CpuRuntime& runtime, Body&& body) {
  const int64_t cost = p.out_width * p.channels;  // of a row
  parallel_for(runtime, p.batch * p.out_height, std::max<int64_t>(1, kPixelsPerTask / std::max<int64_t>(1, cost)),
               [&](int64_t begin, int64_t end) {
                 RowOfTaps<A> line;
                 for (int64_t i = begin; i < end; ++i) body(line, i / p.out_height, i % p.out_height);
               });
}

}  // namespace

Status warp_forward_cpu(const WarpParams& p, const CpuRuntime& runtime) {
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    for_each_row<accumulate_t<T>>(p, runtime,
                                  [&](auto& line, int64_t b, int64_t row) { forward_row<T>(p, line, b, row); });
    return {};
  });
}

Status warp_backward_cpu(const WarpParams& p, const CpuRuntime& runtime) {
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    if (p.grad_flow.data != nullptr) {
      for_each_row<A>(p, runtime, [&](auto& line, int64_t b, int64_t row) { backward_flow_row<T>(p, line, b, row); });
    }
    if (p.grad_x.data == nullptr) return {};
    const int64_t groups = (p.channels + kPlanesPerGroup - 1) / kPlanesPerGroup;
    parallel_for(runtime, p.batch * groups, 1, [&](int64_t begin, int64_t end) {
      RowOfTaps<A> line;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % groups * kPlanesPerGroup;
        backward_x_group<T>(p, line, i / groups, first, std::min(p.channels, first + kPlanesPerGroup));
      }
    });
    return {};
  });
}

}  // namespace cosegflow

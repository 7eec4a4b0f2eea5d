// cycle_error on the CPU. The math is common/cycle_error_math.h, as on CUDA.
//
// Forward, and backward where only flow_ab's gradient is wanted, run over rows of a. The whole backward runs over bands
// of rows of b: a band belongs to one task, which walks over a in raster order and takes the pixels whose upper taps
// fall into its rows (it writes their gradient of flow_ab) or whose lower taps do. So nothing is atomic, each sum has
// one order whatever the number of bands, and a pixel is computed once, or twice at the edge of a band.
#include "common/cycle_error_checks.h"
#include "common/cycle_error_math.h"
#include "common/dispatch.h"
#include "cpu/runtime_cpu.h"

#if defined(__x86_64__) && defined(__GLIBC__)
__asm__(".symver hypot, hypot@GLIBC_2.2.5");  // the default is glibc 2.35's, and would be all that needs it
#endif

namespace cosegflow {
namespace {

constexpr int64_t kPixelsPerTask = 2048;

template <class T>
T& at(const View3& view, int64_t b, int64_t row, int64_t column) {
  return static_cast<T*>(view.data)[b * view.stride[0] + row * view.stride[1] + column * view.stride[2]];
}

template <class T>
T* at(const View4& view, int64_t b, int64_t row, int64_t column) {
  return static_cast<T*>(view.data) + b * view.stride[0] + row * view.stride[2] + column * view.stride[3];
}

// Calls body(b, row) for every row of a, in parallel.
template <class Body>
void for_each_row(const CycleErrorParams& p, const CpuRuntime& runtime, Body&& body) {
  parallel_for(runtime, p.batch * p.height_a, std::max<int64_t>(1, kPixelsPerTask / p.width_a),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) body(i / p.height_a, i % p.height_a);
               });
}

template <class T, class A>
void write_ab_gradient(const CycleErrorParams& p, const CyclePixel<A>& pixel, int64_t b, int64_t row, int64_t column,
                       A grad_x, A grad_y) {
  A* grad_ab = at<A>(p.grad_ab, b, row, column);
  cycle_ab_gradient<T>(p, pixel, b, grad_x, grad_y, grad_ab[0], grad_ab[p.grad_ab.stride[1]]);
}

// Rows [begin, end) of b.
template <class T>
void backward_band(const CycleErrorParams& p, int64_t b, int64_t begin, int64_t end) {
  using A = accumulate_t<T>;
  const int64_t plane = p.height_b * p.width_b;
  A* grad_ba = static_cast<A*>(p.grad_ba.data) + b * 2 * plane;
  for (int c = 0; c < 2; ++c)
    std::fill(grad_ba + c * plane + begin * p.width_b, grad_ba + c * plane + end * p.width_b, A(0));
  // Points above b count as its first row, points below as its last, and non-finite ones as the first: a quick look at
  // the position passes over the pixels of other bands.
  const bool first = begin == 0, last = end == p.height_b;
  for (int64_t row = 0; row < p.height_a; ++row) {
    for (int64_t column = 0; column < p.width_a; ++column) {
      const T* ab = at<T>(p.flow_ab, b, row, column);
      const A x = to_float(ab[0]), y = static_cast<A>(row) + to_float(ab[p.flow_ab.stride[1]]);
      const bool near = (first || y >= static_cast<A>(begin - 1)) && (last || !(y > static_cast<A>(end)));
      const bool finite = (x - x == A(0)) && (y - y == A(0));
      if (!(finite ? near : first)) continue;
      const CyclePixel<A> pixel = cycle_pixel<T>(p, b, row, column);
      const bool upper = pixel.point.y0 >= begin && pixel.point.y0 < end;
      const bool lower = pixel.point.y0 + 1 >= begin && pixel.point.y0 + 1 < end;
      if (!upper && !lower) continue;
      A grad_x, grad_y;
      cycle_sum_gradient(pixel, at<A>(p.grad_error, b, row, column), grad_x, grad_y);
      if (upper && p.grad_ab.data != nullptr) write_ab_gradient<T>(p, pixel, b, row, column, grad_x, grad_y);
      if (!pixel.valid) continue;
      const WarpTaps<A> taps =
          warp_taps(pixel.point, p.width_b, p.height_b, int64_t{1}, p.width_b, WarpPadding::kBorder);
      for (int k = 0; k < 4; ++k) {
        if (!(k < 2 ? upper : lower)) continue;
        grad_ba[taps.offset[k]] += taps.weight[k] * grad_x;
        grad_ba[plane + taps.offset[k]] += taps.weight[k] * grad_y;
      }
    }
  }
}

template <class T>
Status backward(const CycleErrorParams& p, const CpuRuntime& runtime) {
  using A = accumulate_t<T>;
  if (p.grad_ba.data == nullptr) {
    for_each_row(p, runtime, [&](int64_t b, int64_t row) {
      for (int64_t column = 0; column < p.width_a; ++column) {
        const CyclePixel<A> pixel = cycle_pixel<T>(p, b, row, column);
        A grad_x, grad_y;
        cycle_sum_gradient(pixel, at<A>(p.grad_error, b, row, column), grad_x, grad_y);
        write_ab_gradient<T>(p, pixel, b, row, column, grad_x, grad_y);
      }
    });
    return {};
  }
  // Two bands for each thread, so that an uneven flow leaves none idle; small images and large batches need none.
  const int64_t wanted = p.batch >= 2 * thread_count(runtime) ? 1 : 2 * thread_count(runtime);
  const int64_t worth = 1 + p.height_a * p.width_a / kPixelsPerTask;
  const int64_t bands = std::min(std::min(wanted, worth), p.height_b);
  parallel_slots(runtime, p.batch * bands, [&](int64_t slot) {
    const int64_t band = slot % bands;
    backward_band<T>(p, slot / bands, p.height_b * band / bands, p.height_b * (band + 1) / bands);
  });
  return {};
}

}  // namespace

Status cycle_error_forward_cpu(const CycleErrorParams& p, const CpuRuntime& runtime) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  return dispatch_floating(p.flow_ab.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    for_each_row(p, runtime, [&](int64_t b, int64_t row) {
      for (int64_t column = 0; column < p.width_a; ++column) {
        const CyclePixel<A> pixel = cycle_pixel<T>(p, b, row, column);
        at<A>(p.error, b, row, column) = pixel.length;
        if (p.valid.data != nullptr) at<bool>(p.valid, b, row, column) = pixel.valid;
      }
    });
    return {};
  });
}

Status cycle_error_backward_cpu(const CycleErrorParams& p, const CpuRuntime& runtime) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (p.grad_ab.data == nullptr && p.grad_ba.data == nullptr) return {};
  return dispatch_floating(p.flow_ab.dtype,
                           [&](auto tag) -> Status { return backward<typename decltype(tag)::type>(p, runtime); });
}

}  // namespace cosegflow

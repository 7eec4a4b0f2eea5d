#include "cpu/window/packed_image_cpu.h"

#include <algorithm>
#include <cmath>

#include "common/dispatch.h"

namespace cosegflow {
namespace {

constexpr double kNormEpsilon = 1e-12;
constexpr int64_t kColumns = 64;  // a stretch of pixels whose sums over channels are on the stack

// sums[x] = sum_c a[c][x] b[c][x] over a stretch: in T over short runs of channels, and the runs in float64.
template <class T>
void sum_products(const T* a, int64_t a_pitch, const T* b, int64_t b_pitch, int64_t channels, int64_t columns,
                  double* sums) {
  constexpr int64_t kRun = 16;
  std::fill_n(sums, columns, 0.0);
  for (int64_t begin = 0; begin < channels; begin += kRun) {
    T part[kColumns] = {};
    for (int64_t c = begin; c < std::min(channels, begin + kRun); ++c) {
      for (int64_t x = 0; x < columns; ++x) part[x] += a[c * a_pitch + x] * b[c * b_pitch + x];
    }
    for (int64_t x = 0; x < columns; ++x) sums[x] += static_cast<double>(part[x]);
  }
}

// Calls body(first, columns) for the stretches of a row.
template <class Body>
void for_each_stretch(int64_t width, Body body) {
  for (int64_t first = 0; first < width; first += kColumns) body(first, std::min(kColumns, width - first));
}

}  // namespace

template <class T>
void PackedImage<T>::pack_row(const View4& features, int64_t b, int64_t y) const {
  const Status status = dispatch_floating(features.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    const S* from = static_cast<const S*>(features.data) + b * features.stride[0] + y * features.stride[2];
    const int64_t step = features.stride[3];
    T* to = row(y);
    for (int64_t c = 0; c < channels; ++c, from += features.stride[1], to += pitch) {
      std::fill_n(to, left, T(0));
      if (step == 1) {
        for (int64_t x = 0; x < width; ++x) to[left + x] = static_cast<T>(to_float(from[x]));
      } else {
        for (int64_t x = 0; x < width; ++x) to[left + x] = static_cast<T>(to_float(from[x * step]));
      }
      std::fill(to + left + width, to + pitch, T(0));
    }
    return {};
  });
  static_cast<void>(status);
  if (inverse_norm == nullptr) return;
  for_each_stretch(width, [&](int64_t first, int64_t columns) {
    T* const pixels = row(y) + left + first;
    double squares[kColumns];
    sum_products<T>(pixels, pitch, pixels, pitch, channels, columns, squares);
    T factor[kColumns];
    for (int64_t x = 0; x < columns; ++x) {
      const double norm = std::sqrt(squares[x]);
      const double inverse = 1.0 / (norm < kNormEpsilon ? kNormEpsilon : norm);  // a NaN stays
      inverse_norm[y * width + first + x] = inverse;
      factor[x] = static_cast<T>(inverse);
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t x = 0; x < columns; ++x) pixels[c * pitch + x] *= factor[x];
    }
  });
}

template <class T>
void PackedImage<T>::write_gradient_row(const View4& gradient, int64_t b, int64_t y, T* grad,
                                        int64_t grad_pitch) const {
  if (inverse_norm != nullptr) {
    // The component of the gradient along the feature has no effect, unless the norm was clamped.
    for_each_stretch(width, [&](int64_t first, int64_t columns) {
      const T* const unit = row(y) + left + first;
      double sums[kColumns];
      sum_products<T>(grad + first, grad_pitch, unit, pitch, channels, columns, sums);
      T along[kColumns], factor[kColumns];
      for (int64_t x = 0; x < columns; ++x) {
        const double inverse = inverse_norm[y * width + first + x];
        along[x] = inverse >= 1.0 / kNormEpsilon ? T(0) : static_cast<T>(sums[x]);
        factor[x] = static_cast<T>(inverse);
      }
      for (int64_t c = 0; c < channels; ++c) {
        T* const g = grad + c * grad_pitch + first;
        for (int64_t x = 0; x < columns; ++x) g[x] = (g[x] - along[x] * unit[c * pitch + x]) * factor[x];
      }
    });
  }
  const Status status = dispatch_floating(gradient.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    S* to = static_cast<S*>(gradient.data) + (b * channels * height + y) * width;
    for (int64_t c = 0; c < channels; ++c, to += height * width) {
      for (int64_t x = 0; x < width; ++x) to[x] = from_float<S>(grad[c * grad_pitch + x]);
    }
    return {};
  });
  static_cast<void>(status);
}

template struct PackedImage<float>;
template struct PackedImage<double>;

}  // namespace cosegflow

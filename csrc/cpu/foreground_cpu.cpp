#include "cpu/foreground_cpu.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "common/half.h"

namespace cosegflow {
namespace {

double clean(double value, double largest) { return value > 0 ? std::min(value, largest) : 0.0; }

}  // namespace

double mask_weight(const View3& mask, int64_t b, int64_t y, int64_t x) {
  const int64_t at = b * mask.stride[0] + y * mask.stride[1] + x * mask.stride[2];
  switch (mask.dtype) {
    case DType::kBool: return static_cast<const uint8_t*>(mask.data)[at] != 0 ? 1.0 : 0.0;
    case DType::kFloat16: return clean(to_float(static_cast<const Half*>(mask.data)[at]), 65504.0);
    case DType::kBFloat16: return clean(to_float(static_cast<const BFloat16*>(mask.data)[at]), 3.3895313892515355e38);
    case DType::kFloat32: return clean(static_cast<const float*>(mask.data)[at], FLT_MAX);
    case DType::kFloat64: return clean(static_cast<const double*>(mask.data)[at], DBL_MAX);
  }
  return 0.0;
}

void Foreground::layout(Arena& arena, int64_t height, int64_t width) { index = arena.take<int64_t>(height * width); }

void Foreground::select(const View3& mask, int64_t b, int64_t height, int64_t width) {
  total = height * width;
  count = 0;
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      if (mask.data == nullptr || mask_weight(mask, b, y, x) > 0) index[count++] = y * width + x;
    }
  }
}

template <class T>
void Targets<T>::layout(Arena& arena, int64_t height, int64_t width, int64_t capacity) {
  foreground.layout(arena, height, width);
  log_weight = arena.take<T>(capacity);
  x = arena.take<T>(capacity);
  y = arena.take<T>(capacity);
}

template <class T>
void Targets<T>::select(const View3& mask, int64_t b, int64_t height, int64_t width, int64_t capacity) {
  foreground.select(mask, b, height, width);
  weighted = false;
  center_x = 0.5 * static_cast<double>(width - 1);
  center_y = 0.5 * static_cast<double>(height - 1);
  for (int64_t i = 0; i < foreground.count; ++i) {
    const int64_t row = foreground.index[i] / width, column = foreground.index[i] % width;
    x[i] = static_cast<T>(static_cast<double>(column) - center_x);
    y[i] = static_cast<T>(static_cast<double>(row) - center_y);
    const double weight = mask.data != nullptr ? mask_weight(mask, b, row, column) : 1.0;
    log_weight[i] = weight == 1.0 ? T(0) : static_cast<T>(std::log2(weight));
    weighted |= weight != 1.0;
  }
  std::fill(log_weight + foreground.count, log_weight + capacity, -std::numeric_limits<T>::infinity());
  std::fill(x + foreground.count, x + capacity, T(0));
  std::fill(y + foreground.count, y + capacity, T(0));
}

template <class T>
void Targets<T>::write_gradient(const View3& mask, int64_t b, int64_t width, int64_t count,
                                const double* logit_gradient, T* grad) const {
  // A float64 weight that float32 would round to 0 must not turn a finite gradient into infinity.
  const bool narrows = mask.dtype == DType::kFloat64 && sizeof(T) < sizeof(double);
  grad += b * foreground.total;
  std::fill_n(grad, foreground.total, T(0));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = foreground.index[i];
    const double weight = mask.data != nullptr ? mask_weight(mask, b, at / width, at % width) : 1.0;
    grad[at] = static_cast<T>(logit_gradient[i] / (narrows ? std::max<double>(weight, FLT_MIN) : weight));
  }
}

template struct Targets<float>;
template struct Targets<double>;

}  // namespace cosegflow

#include "cpu/pack_cpu.h"

#include <algorithm>
#include <cmath>

#include "common/dispatch.h"

namespace cosegflow {
namespace {

constexpr double kNormEpsilon = 1e-12;

// dst[c * width + t] = the c-th channel of the t-th of `count` positions; 0 for t in [count, width).
// Reads along whichever of channels and positions lies densest in memory.
template <class S, class T>
void gather_panel(const S* image, const View4& view, const int64_t* offset, bool adjacent, int64_t count,
                  int64_t channels, int64_t width, T* dst) {
  const int64_t channel_stride = view.stride[1];
  if (count < width) std::fill(dst, dst + channels * width, T(0));
  if (adjacent) {
    for (int64_t c = 0; c < channels; ++c) {
      const S* from = image + c * channel_stride + offset[0];
      for (int64_t t = 0; t < count; ++t) dst[c * width + t] = static_cast<T>(to_float(from[t]));
    }
  } else if (channel_stride != 1) {
    for (int64_t c = 0; c < channels; ++c) {
      const S* from = image + c * channel_stride;
      for (int64_t t = 0; t < count; ++t) dst[c * width + t] = static_cast<T>(to_float(from[offset[t]]));
    }
  } else {
    for (int64_t t = 0; t < count; ++t) {
      const S* from = image + offset[t];
      for (int64_t c = 0; c < channels; ++c) dst[c * width + t] = static_cast<T>(to_float(from[c]));
    }
  }
}

// Divides each column of a panel by max(its norm, epsilon).
template <class T>
void normalize_panel(T* panel, int64_t channels, int64_t width, double* inverse_norm) {
  double square[kMaxPanelWidth] = {};
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < width; ++t) {
      const double value = static_cast<double>(panel[c * width + t]);
      square[t] += value * value;
    }
  }
  T factor[kMaxPanelWidth];
  for (int64_t t = 0; t < width; ++t) {
    const double norm = std::sqrt(square[t]);
    inverse_norm[t] = 1.0 / (norm < kNormEpsilon ? kNormEpsilon : norm);  // a NaN stays
    factor[t] = static_cast<T>(inverse_norm[t]);
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < width; ++t) panel[c * width + t] *= factor[t];
  }
}

// Rows [first, first + width) of the channel panels from one panel of positions: a transposition in squares.
template <class T>
void write_channel_panels(const T* panel, const PackedFeatures<T>& packed, int64_t first) {
  const int64_t width = packed.width;
  for (int64_t c0 = 0; c0 < packed.channels; c0 += width) {
    T* to = packed.by_channel + c0 * packed.capacity + first * width;
    const int64_t live = std::min(width, packed.channels - c0);
    for (int64_t t = 0; t < width; ++t) {
      for (int64_t c = 0; c < live; ++c) to[t * width + c] = panel[(c0 + c) * width + t];
      for (int64_t c = live; c < width; ++c) to[t * width + c] = T(0);
    }
  }
}

}  // namespace

template <class T>
void PackedFeatures<T>::layout(Arena& arena, int64_t positions, int64_t channel_count, bool normalize,
                               bool want_by_channel, bool want_by_position, int64_t slots) {
  width = tile_kernels<T>().width;
  channels = channel_count;
  capacity = round_up(positions, width);
  by_channel = want_by_channel ? arena.take<T>(channel_panels_size<T>(positions, channels)) : nullptr;
  by_position = want_by_position ? arena.take<T>(capacity * channels) : nullptr;
  inverse_norm = normalize ? arena.take<double>(capacity) : nullptr;
  scratch = want_by_position ? nullptr : arena.take<T>(slots * round_up(channels * width, 64));
}

template <class T>
void pack_features(const View4& features, int64_t b, int64_t image_width, const Foreground& foreground,
                   const PackedFeatures<T>& packed, const CpuRuntime& runtime) {
  const Status status = dispatch_floating(features.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    const S* image = static_cast<const S*>(features.data) + b * features.stride[0];
    const int64_t width = packed.width, channels = packed.channels;
    const int64_t panels = divide_up(foreground.count, width), slots = thread_count(runtime);
    parallel_slots(runtime, slots, [&](int64_t slot) {
      for (int64_t panel = panels * slot / slots; panel < panels * (slot + 1) / slots; ++panel) {
        const int64_t first = panel * width, count = std::min(width, foreground.count - first);
        int64_t offset[kMaxPanelWidth];
        bool adjacent = true;  // in memory
        for (int64_t t = 0; t < count; ++t) {
          const int64_t at = foreground.index[first + t];
          offset[t] = at / image_width * features.stride[2] + at % image_width * features.stride[3];
          adjacent &= offset[t] == offset[0] + t;
        }
        T* columns = packed.by_position != nullptr ? packed.by_position + first * channels
                                                   : packed.scratch + slot * round_up(channels * width, 64);
        gather_panel(image, features, offset, adjacent, count, channels, width, columns);
        if (packed.inverse_norm != nullptr) normalize_panel(columns, channels, width, packed.inverse_norm + first);
        if (packed.by_channel != nullptr) write_channel_panels(columns, packed, first);
      }
    });
    return {};
  });
  static_cast<void>(status);  // the dtype was checked by the launch function
}

namespace {

// The gradient to one row of channel panels through x / max(|x|, epsilon), in place.
template <class T>
void normalize_gradient_row(const PackedFeatures<T>& packed, T* grad_panels, int64_t row) {
  const int64_t width = packed.width, stride = packed.capacity * width;
  const double inverse = packed.inverse_norm[row];
  double along = 0;  // the component along the feature has no effect, unless the norm was clamped
  if (!(inverse >= 1.0 / kNormEpsilon)) {
    for (int64_t c0 = 0; c0 < packed.channels; c0 += width) {
      const T* unit = packed.by_channel + c0 / width * stride + row * width;
      const T* grad = grad_panels + c0 / width * stride + row * width;
      const int64_t live = std::min(width, packed.channels - c0);
      for (int64_t c = 0; c < live; ++c) along += static_cast<double>(unit[c]) * static_cast<double>(grad[c]);
    }
  }
  const T projection = static_cast<T>(along), factor = static_cast<T>(inverse);
  for (int64_t c0 = 0; c0 < packed.channels; c0 += width) {
    const T* unit = packed.by_channel + c0 / width * stride + row * width;
    T* grad = grad_panels + c0 / width * stride + row * width;
    const int64_t live = std::min(width, packed.channels - c0);
    for (int64_t c = 0; c < live; ++c) grad[c] = (grad[c] - projection * unit[c]) * factor;
  }
}

}  // namespace

template <class T>
void unpack_gradient(const View4& grad, int64_t b, const Foreground& foreground, const PackedFeatures<T>& packed,
                     T* grad_panels, int64_t parts, int64_t part_stride, const CpuRuntime& runtime) {
  const Status status = dispatch_floating(grad.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    const int64_t width = packed.width, channels = packed.channels, stride = packed.capacity * width;
    S* image = static_cast<S*>(grad.data) + b * channels * foreground.total;
    if (!foreground.complete()) {
      parallel_for(runtime, channels * foreground.total, 1 << 16,
                   [&](int64_t begin, int64_t end) { std::fill(image + begin, image + end, from_float<S>(T(0))); });
    }
    parallel_for(runtime, divide_up(foreground.count, width), 1, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * width; first < std::min(end * width, foreground.count); first += width) {
        const int64_t count = std::min(width, foreground.count - first);
        for (int64_t part = 1; part < parts; ++part) {
          for (int64_t c0 = 0; c0 < channels; c0 += width) {
            T* to = grad_panels + c0 / width * stride + first * width;
            const T* from = to + part * part_stride;
            for (int64_t i = 0; i < count * width; ++i) to[i] += from[i];
          }
        }
        if (packed.inverse_norm != nullptr) {
          for (int64_t row = first; row < first + count; ++row) normalize_gradient_row(packed, grad_panels, row);
        }
        for (int64_t c = 0; c < channels; ++c) {
          const T* from = grad_panels + c / width * stride + first * width + c % width;
          S* to = image + c * foreground.total;
          for (int64_t t = 0; t < count; ++t) to[foreground.index[first + t]] = from_float<S>(from[t * width]);
        }
      }
    });
    return {};
  });
  static_cast<void>(status);
}

template struct PackedFeatures<float>;
template struct PackedFeatures<double>;
template void pack_features(const View4&, int64_t, int64_t, const Foreground&, const PackedFeatures<float>&,
                            const CpuRuntime&);
template void pack_features(const View4&, int64_t, int64_t, const Foreground&, const PackedFeatures<double>&,
                            const CpuRuntime&);
template void unpack_gradient(const View4&, int64_t, const Foreground&, const PackedFeatures<float>&, float*, int64_t,
                              int64_t, const CpuRuntime&);
template void unpack_gradient(const View4&, int64_t, const Foreground&, const PackedFeatures<double>&, double*, int64_t,
                              int64_t, const CpuRuntime&);

}  // namespace cosegflow

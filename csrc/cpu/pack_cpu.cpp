#include "cpu/pack_cpu.h"
#include "common/round_up.h"

#include <algorithm>
#include <cmath>

#include "common/dispatch.h"
#include "cpu/transpose_cpu.h"

namespace cosegflow {
namespace {

constexpr double kNormEpsilon = 1e-12;

// Panels are filled in groups: with channels outermost in memory, each visit to a channel touches another page, so it
// had better take a few hundred bytes.
constexpr int64_t kGroup = 4;

// A group of positions: where they lie in an image.
struct PositionGroup {
  int64_t count = 0;
  int64_t offset[kGroup * kMaxPanelWidth];
  bool adjacent = true;

  PositionGroup(const Foreground& foreground, int64_t first, int64_t most, int64_t image_width, const View4& view)
      : count(std::min(most, foreground.count - first)) {
    for (int64_t t = 0; t < count; ++t) {
      const int64_t at = foreground.index[first + t];
      offset[t] = at / image_width * view.stride[2] + at % image_width * view.stride[3];
      adjacent &= offset[t] == offset[0] + t;
    }
  }
};

// Fills panels of positions, `channels` x `width` each and one after the other, with a group; 0 in what is left of the
// last. Reads along whichever of channels and positions lies densest in memory.
template <class S, class T>
void gather_panels(const S* image, int64_t channel_stride, const PositionGroup& group, int64_t channels, int64_t width,
                   T* panels) {
  for (int64_t t = group.count; t % width != 0; ++t) {
    for (int64_t c = 0; c < channels; ++c) panels[(t / width * channels + c) * width + t % width] = T(0);
  }
  if (!group.adjacent && channel_stride == 1) {
    for (int64_t t = 0; t < group.count; ++t) {
      const S* from = image + group.offset[t];
      T* to = panels + t / width * channels * width + t % width;
      for (int64_t c = 0; c < channels; ++c) to[c * width] = static_cast<T>(to_float(from[c]));
    }
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    const S* from = image + c * channel_stride;
    for (int64_t first = 0; first < group.count; first += width) {
      T* to = panels + (first / width * channels + c) * width;
      const int64_t live = std::min(width, group.count - first);
      if (group.adjacent) {
        const S* run = from + group.offset[first];
        for (int64_t t = 0; t < live; ++t) to[t] = static_cast<T>(to_float(run[t]));
      } else {
        for (int64_t t = 0; t < live; ++t) to[t] = static_cast<T>(to_float(from[group.offset[first + t]]));
      }
    }
  }
}

// 1 / max(norm, epsilon) of each column of a panel that was divided by 2^power (null: 1), times 2^power. Squares are
// added up in T over short runs of channels, and the runs in float64.
template <class T>
void inverse_norms(const T* panel, int64_t channels, int64_t width, double* inverse_norm, const int* power = nullptr) {
  constexpr int64_t kRun = 16;
  double square[kMaxPanelWidth] = {};
  for (int64_t begin = 0; begin < channels; begin += kRun) {
    T part[kMaxPanelWidth] = {};
    for (int64_t c = begin; c < std::min(channels, begin + kRun); ++c) {
      for (int64_t t = 0; t < width; ++t) part[t] += panel[c * width + t] * panel[c * width + t];
    }
    for (int64_t t = 0; t < width; ++t) square[t] += static_cast<double>(part[t]);
  }
  for (int64_t t = 0; t < width; ++t) {
    const double norm = std::sqrt(square[t]);
    const double least = power == nullptr ? kNormEpsilon : std::ldexp(kNormEpsilon, -power[t]);
    inverse_norm[t] = 1.0 / (norm < least ? least : norm);  // a NaN stays
  }
}

// Divides each column of a panel by max(its norm, epsilon).
template <class T>
void normalize_panel(T* panel, int64_t channels, int64_t width, double* inverse_norm) {
  inverse_norms(panel, channels, width, inverse_norm);
  T factor[kMaxPanelWidth];
  for (int64_t t = 0; t < width; ++t) factor[t] = static_cast<T>(inverse_norm[t]);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < width; ++t) panel[c * width + t] *= factor[t];
  }
}

// 2^power as a float, for powers of normal floats.
float power_of_two(int power) { return detail::bits_to_float(static_cast<uint32_t>(power + 127) << 23); }

// One panel of positions, of features that are bfloat16, in pairs: each position is divided by the power of two of its
// largest channel, so that nothing overflows and what is lost to subnormals is less than 2^-126 of that channel.
void pair_panel(float* panel, int64_t channels, int64_t width, bool normalize, float* pairs, float* factor) {
  float largest[kMaxPanelWidth] = {}, down[kMaxPanelWidth];
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < width; ++t) {
      const float size = std::fabs(panel[c * width + t]);
      largest[t] = size > largest[t] ? size : largest[t];  // not a NaN
    }
  }
  int power[kMaxPanelWidth] = {};
  for (int64_t t = 0; t < width; ++t) {
    const int exponent = static_cast<int>(detail::float_to_bits(largest[t]) >> 23) - 127;
    power[t] = exponent == 128 ? 0 : std::clamp(exponent, -126, 126);  // infinite: as it is
    down[t] = power_of_two(-power[t]);
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < width; ++t) panel[c * width + t] *= down[t];
  }
  for (int64_t c = 0; c < channels; c += 2) {
    const float* const low = panel + c * width;
    const float* const high = low + width;
    float* const to = pairs + c / 2 * width;
    if (c + 1 == channels) {
      for (int64_t t = 0; t < width; ++t) to[t] = detail::bits_to_float(detail::float_to_bits(low[t]) >> 16);
      continue;
    }
    for (int64_t t = 0; t < width; ++t) {
      const uint32_t upper = detail::float_to_bits(high[t]) & 0xffff0000u;
      to[t] = detail::bits_to_float(detail::float_to_bits(low[t]) >> 16 | upper);
    }
  }
  double inverse_norm[kMaxPanelWidth];
  if (normalize) inverse_norms(panel, channels, width, inverse_norm, power);
  for (int64_t t = 0; t < width; ++t) {
    factor[t] = static_cast<float>(normalize ? inverse_norm[t] : static_cast<double>(power_of_two(power[t])));
  }
}
void pair_panel(double*, int64_t, int64_t, bool, double*, double*) {}  // there are no pairs of doubles

// Rows [first, first + width) of the channel panels from one panel of positions.
template <class T>
void write_channel_panels(const T* panel, const PackedFeatures<T>& packed, int64_t first) {
  const int64_t width = packed.width;
  for (int64_t c0 = 0; c0 < packed.elements; c0 += width) {
    T* to = packed.by_channel + c0 * packed.capacity + first * width;
    const int64_t live = std::min(width, packed.elements - c0);
    if (live < width) std::fill(to, to + width * width, T(0));
    transpose(panel + c0 * width, width, live, width, to, width);
  }
}

}  // namespace

template <class T>
void PackedFeatures<T>::layout(Arena& arena, int64_t positions, int64_t channel_count, bool normalized,
                               bool want_by_channel, bool want_by_position, int64_t slots, bool pairs) {
  width = tile_kernels<T>().width;
  channels = channel_count;
  elements = pairs ? ceil_div(channels, 2) : channels;
  capacity = round_up(positions, width);
  normalize = normalized;
  by_channel = want_by_channel ? arena.take<T>(channel_panels_size<T>(positions, elements)) : nullptr;
  by_position = want_by_position ? arena.take<T>(capacity * elements) : nullptr;
  inverse_norm = normalize && !pairs ? arena.take<double>(capacity) : nullptr;
  factor = pairs ? arena.take<T>(capacity) : nullptr;
  // A group of panels of positions, and in pairs one panel of pairs.
  scratch_size = pairs || !want_by_position ? kGroup * channels * width : 0;
  if (pairs) scratch_size += elements * width;
  scratch_size = round_up(scratch_size, 64);
  scratch = scratch_size > 0 ? arena.take<T>(slots * scratch_size) : nullptr;
}

template <class T>
void pack_features(const View4& features, int64_t b, int64_t image_width, const Foreground& foreground,
                   const PackedFeatures<T>& packed, const CpuRuntime& runtime) {
  const Status status = dispatch_floating(features.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    const S* image = static_cast<const S*>(features.data) + b * features.stride[0];
    const int64_t width = packed.width, channels = packed.channels, panel_size = channels * width;
    const int64_t step = kGroup * width, groups = ceil_div(foreground.count, step), slots = thread_count(runtime);
    parallel_slots(runtime, slots, [&](int64_t slot) {
      for (int64_t i = groups * slot / slots; i < groups * (slot + 1) / slots; ++i) {
        const PositionGroup group(foreground, i * step, step, image_width, features);
        T* const scratch = packed.scratch + slot * packed.scratch_size;
        T* panels = packed.by_position != nullptr && packed.factor == nullptr
                        ? packed.by_position + i * kGroup * panel_size
                        : scratch;
        gather_panels(image, features.stride[1], group, channels, width, panels);
        for (int64_t t = 0; t < group.count; t += width, panels += panel_size) {
          const int64_t first = i * step + t;
          T* panel = panels;
          if (packed.factor != nullptr) {
            panel = packed.by_position != nullptr ? packed.by_position + first * packed.elements
                                                  : scratch + kGroup * panel_size;
            pair_panel(panels, channels, width, packed.normalize, panel, packed.factor + first);
          } else if (packed.normalize) {
            normalize_panel(panel, channels, width, packed.inverse_norm + first);
          }
          if (packed.by_channel != nullptr) write_channel_panels(panel, packed, first);
        }
      }
    });
    return {};
  });
  static_cast<void>(status);  // the dtype was checked by the launch function
}

namespace {

// The gradient to `count` positions of channel panels, from `first`, on its way to the features: parts are added, and
// it goes through x / max(|x|, epsilon). Panel after panel, because rows of different panels lie far apart.
template <class T>
class GradientRows {
 public:
  GradientRows(const PackedFeatures<T>& packed, T* grad_panels, int64_t parts, int64_t part_stride, int64_t first,
               int64_t count)
      : packed_(packed), grad_(grad_panels), first_(first), count_(count) {
    for (int64_t c0 = 0; c0 < packed.channels; c0 += packed.width) {
      T* to = panel(grad_, c0);
      for (int64_t part = 1; part < parts; ++part) {
        const T* from = to + part * part_stride;
        for (int64_t i = 0; i < count * packed.width; ++i) to[i] += from[i];
      }
    }
    if (packed.inverse_norm != nullptr) project();
  }

  // columns[c * kMaxPanelWidth + t] = channel c0 + c of the gradient to the features at position first + t.
  void columns(int64_t c0, T* columns) const {
    const int64_t width = packed_.width;
    T* grad = panel(grad_, c0);
    if (packed_.inverse_norm != nullptr) {
      const T* unit = panel(packed_.by_channel, c0);
      for (int64_t t = 0; t < count_; ++t) {
        const T factor = static_cast<T>(packed_.inverse_norm[first_ + t]), along = along_[t];
        for (int64_t c = 0; c < width; ++c) {
          grad[t * width + c] = (grad[t * width + c] - along * unit[t * width + c]) * factor;
        }
      }
    }
    transpose(grad, width, count_, width, columns, kMaxPanelWidth);
  }

 private:
  T* panel(T* panels, int64_t c0) const { return panels + c0 * packed_.capacity + first_ * packed_.width; }

  // The component of the gradient along the feature, which has no effect unless the norm was clamped.
  void project() {
    const int64_t width = packed_.width;
    T products[kMaxPanelWidth * kMaxPanelWidth] = {};
    for (int64_t c0 = 0; c0 < packed_.channels; c0 += width) {
      const T *grad = panel(grad_, c0), *unit = panel(packed_.by_channel, c0);
      const int64_t live = std::min(width, packed_.channels - c0);
      for (int64_t t = 0; t < count_; ++t) {
        for (int64_t c = 0; c < live; ++c) products[t * width + c] += grad[t * width + c] * unit[t * width + c];
      }
    }
    for (int64_t t = 0; t < count_; ++t) {
      double sum = 0;
      for (int64_t c = 0; c < width; ++c) sum += static_cast<double>(products[t * width + c]);
      along_[t] = packed_.inverse_norm[first_ + t] >= 1.0 / kNormEpsilon ? T(0) : static_cast<T>(sum);
    }
  }

  const PackedFeatures<T>& packed_;
  T* grad_;
  int64_t first_, count_;
  T along_[kMaxPanelWidth];
};

}  // namespace

template <class T>
void unpack_gradient(const View4& grad, int64_t b, const Foreground& foreground, const PackedFeatures<T>& packed,
                     T* grad_panels, int64_t parts, int64_t part_stride, const CpuRuntime& runtime) {
  const Status status = dispatch_floating(grad.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    const int64_t width = packed.width, channels = packed.channels;
    S* image = static_cast<S*>(grad.data) + b * channels * foreground.total;
    if (!foreground.complete()) {
      parallel_for(runtime, channels * foreground.total, 1 << 16,
                   [&](int64_t begin, int64_t end) { std::fill(image + begin, image + end, from_float<S>(T(0))); });
    }
    parallel_for(runtime, ceil_div(foreground.count, width), kGroup, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * width; first < std::min(end * width, foreground.count); first += width) {
        const int64_t count = std::min(width, foreground.count - first);
        const GradientRows<T> rows(packed, grad_panels, parts, part_stride, first, count);
        T columns[kMaxPanelWidth * kMaxPanelWidth];
        for (int64_t c0 = 0; c0 < channels; c0 += width) {
          rows.columns(c0, columns);
          for (int64_t c = c0; c < std::min(channels, c0 + width); ++c) {
            const T* from = columns + (c - c0) * kMaxPanelWidth;
            S* to = image + c * foreground.total;
            if (foreground.complete()) {
              for (int64_t t = 0; t < count; ++t) to[first + t] = from_float<S>(from[t]);
            } else {
              for (int64_t t = 0; t < count; ++t) to[foreground.index[first + t]] = from_float<S>(from[t]);
            }
          }
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

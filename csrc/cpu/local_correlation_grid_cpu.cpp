// local_correlation without flow on the CPU, one image at a time.
//
// Both images are packed once (window/packed_image_cpu.h). Forward: a pair of rows of a meets each row of b that
// either can reach; the products of all shifts come from one pass over the channels (window/window_kernel.h). Backward:
// the gradient to an image gathers the rows of the other image, weighted by the incoming gradient, for fb with mirrored
// offsets. Every result is summed by one thread in one order: nothing is atomic, nothing depends on the threads.
// What falls outside an image is selected away in both directions: a weight of 0 times NaN never occurs.
#include <algorithm>

#include "common/arena.h"
#include "common/dispatch.h"
#include "cpu/local_correlation_cpu.h"
#include "cpu/window/packed_image_cpu.h"
#include "cpu/window/window_kernels.h"

namespace cosegflow {
namespace {

template <class S>
class GridWork {
  using T = accumulate_t<S>;

 public:
  GridWork(const LocalCorrelationCall& call, Arena& arena)
      : p_(call.params), runtime_(call.runtime), slots_(local_correlation_slots(call.params, call.runtime)) {
    const int64_t lanes = kernels_.lanes;
    const int64_t width_a = round_up(p_.width_a, lanes), width_b = round_up(p_.width_b, lanes);
    const bool normalize = p_.normalize;
    // As sources, whole vectors are read; as targets, the other image's vectors with all their shifts.
    a_ = {p_.channels, p_.height_a, p_.width_a, p_.radius, p_.radius + std::max(width_a, width_b + p_.radius)};
    b_ = {p_.channels, p_.height_b, p_.width_b, p_.radius, p_.radius + std::max(width_b, width_a + p_.radius)};
    a_.layout(arena, normalize);
    b_.layout(arena, normalize);
    const int64_t width = call.backward ? std::max(width_a, width_b) : width_a;
    weights_size_ = p_.side() * width;
    gradient_size_ = call.backward ? p_.channels * width : 0;
    weights_ = arena.take<T>(slots_ * 2 * weights_size_);
    gradients_ = arena.take<T>(slots_ * 2 * gradient_size_);
  }

  void forward(int64_t image) {
    pack(a_, p_.fa, image);
    pack(b_, p_.fb, image);
    for_each_pair_of_rows(p_.height_a, [&](int64_t slot, int64_t y, int64_t rows) {
      for_each_target_row(y, rows, p_.height_b, [&](int64_t target, int64_t first, int64_t count, bool inside) {
        BandTask<T> task = task_of(b_, target, p_.width_a, slot, count);
        for (int64_t k = 0; k < count; ++k) task.sources[k] = a_.row(y + first + k) + a_.left;
        task.source_pitch = a_.pitch;
        if (inside) kernels_.correlate_band(task);
        for (int64_t k = 0; k < count; ++k) {
          const int64_t row = y + first + k;
          write_products(image, row, target - row + p_.radius, inside ? task.weights[k] : nullptr, task.width);
        }
      });
    });
  }

  void backward(int64_t image) {
    const bool need_a = p_.grad_fa.data != nullptr, need_b = p_.grad_fb.data != nullptr;
    if (need_b || (need_a && p_.normalize)) pack(a_, p_.fa, image);
    if (need_a || (need_b && p_.normalize)) pack(b_, p_.fb, image);
    if (need_a) backward_side<true>(image, a_, b_, p_.grad_fa);
    if (need_b) backward_side<false>(image, b_, a_, p_.grad_fb);
  }

 private:
  void pack(const PackedImage<T>& packed, const View4& features, int64_t image) {
    for_each_in_slots(runtime_, slots_, packed.height,
                      [&](int64_t, int64_t y) { packed.pack_row(features, image, y); });
  }

  // Calls body(slot, y, rows) for rows y .. y + rows - 1 of `height`, two at a time.
  template <class Body>
  void for_each_pair_of_rows(int64_t height, Body body) {
    for_each_in_slots(runtime_, slots_, ceil_div(height, 2), [&](int64_t slot, int64_t pair) {
      body(slot, 2 * pair, std::min<int64_t>(2, height - 2 * pair));
    });
  }

  // Calls body(target, first, count, inside) for each target row that sources y + first .. y + first + count - 1 reach.
  template <class Body>
  void for_each_target_row(int64_t y, int64_t rows, int64_t height, Body body) {
    for (int64_t target = y - p_.radius; target < y + rows + p_.radius; ++target) {
      const int64_t first = std::max<int64_t>(0, target - p_.radius - y);
      const int64_t end = std::min(rows, target + p_.radius - y + 1);
      if (first < end) body(target, first, end - first, target >= 0 && target < height);
    }
  }

  BandTask<T> task_of(const PackedImage<T>& targets, int64_t target, int64_t width, int64_t slot, int64_t rows) const {
    BandTask<T> task;
    task.channels = p_.channels;
    task.width = round_up(width, kernels_.lanes);
    task.shifts = p_.side();
    task.row = targets.data + target * targets.row_stride();
    task.row_pitch = targets.pitch;
    task.rows = rows;
    for (int64_t k = 0; k < 2; ++k) task.weights[k] = weights_ + (slot * 2 + k) * weights_size_;
    return task;
  }

  // One row of the output for one row of shifts; products null: all outside.
  void write_products(int64_t image, int64_t y, int64_t shift_row, const T* products, int64_t pitch) const {
    const int64_t side = p_.side();
    for (int64_t s = 0; s < side; ++s) {
      const int64_t plane = (image * side + shift_row) * side + s;
      S* to = static_cast<S*>(p_.out) + (plane * p_.height_a + y) * p_.width_a;
      const int64_t begin = std::clamp<int64_t>(p_.radius - s, 0, p_.width_a);
      const int64_t end = products == nullptr ? begin : std::clamp(p_.width_b + p_.radius - s, begin, p_.width_a);
      std::fill_n(to, begin, from_float<S>(T(0)));
      for (int64_t x = begin; x < end; ++x) to[x] = from_float<S>(products[s * pitch + x]);
      std::fill(to + end, to + p_.width_a, from_float<S>(T(0)));
    }
  }

  template <bool kSelfIsA>
  void backward_side(int64_t image, const PackedImage<T>& self, const PackedImage<T>& other, const View4& gradient) {
    for_each_pair_of_rows(self.height, [&](int64_t slot, int64_t y, int64_t rows) {
      const int64_t width = round_up(self.width, kernels_.lanes);
      T* const gradients = gradients_ + slot * 2 * gradient_size_;
      std::fill_n(gradients, 2 * gradient_size_, T(0));
      for_each_target_row(y, rows, other.height, [&](int64_t target, int64_t first, int64_t count, bool inside) {
        if (!inside) return;
        BandTask<T> task = task_of(other, target, self.width, slot, count);
        for (int64_t k = 0; k < count; ++k) {
          task.sources[k] = gradients + (first + k) * gradient_size_;
          read_weights<kSelfIsA>(image, y + first + k, target, self.width, other.width, task.weights[k], width);
        }
        task.source_pitch = width;
        kernels_.gather_band(task);
      });
      for (int64_t k = 0; k < rows; ++k) {
        self.write_gradient_row(gradient, image, y + k, gradients + k * gradient_size_, width);
      }
    });
  }

  // weights[s][x]: the incoming gradient of the pair of pixel (y, x) of self and pixel (target, x + s - r) of other.
  template <bool kSelfIsA>
  void read_weights(int64_t image, int64_t y, int64_t target, int64_t self_width, int64_t other_width, T* weights,
                    int64_t pitch) const {
    const int64_t r = p_.radius, side = p_.side(), dy = kSelfIsA ? target - y : y - target;
    const View4& g = p_.grad_out;
    for (int64_t s = 0; s < side; ++s) {
      const int64_t plane = (dy + r) * side + (kSelfIsA ? s : side - 1 - s);
      const S* from = static_cast<const S*>(g.data) + image * g.stride[0] + plane * g.stride[1] +
                      (kSelfIsA ? y : target) * g.stride[2] + (kSelfIsA ? 0 : s - r) * g.stride[3];
      T* to = weights + s * pitch;
      const int64_t begin = std::clamp<int64_t>(r - s, 0, self_width);
      const int64_t end = std::clamp(other_width + r - s, begin, self_width), step = g.stride[3];
      std::fill_n(to, begin, T(0));
      for (int64_t x = begin; x < end; ++x) to[x] = static_cast<T>(to_float(from[x * step]));
      std::fill(to + end, to + pitch, T(0));
    }
  }

  const LocalCorrelationParams& p_;
  const CpuRuntime& runtime_;
  const WindowKernels<T>& kernels_ = window_kernels<T>();
  const int64_t slots_;
  PackedImage<T> a_, b_;
  T *weights_ = nullptr, *gradients_ = nullptr;  // of each slot, for two rows
  int64_t weights_size_ = 0, gradient_size_ = 0;
};

}  // namespace

size_t local_correlation_grid_bytes(const LocalCorrelationCall& call) {
  Arena arena;
  if (call.params.fa.dtype == DType::kFloat64) {
    GridWork<double>(call, arena);
  } else {
    GridWork<float>(call, arena);
  }
  return arena.bytes();
}

Status local_correlation_grid(const LocalCorrelationCall& call, void* workspace) {
  return dispatch_floating(call.params.fa.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    Arena arena(workspace);
    GridWork<S> work(call, arena);
    for (int64_t image = 0; image < call.params.batch; ++image) {
      call.backward ? work.backward(image) : work.forward(image);
    }
    return {};
  });
}

}  // namespace cosegflow

// local_correlation with flow on the CPU, one image at a time. The math is common/window_math.h.
//
// Both images are packed once (window/packed_image_cpu.h). For each pixel the inner products with its window of
// (2r+2)^2 pixels are computed (window/window_kernel.h) and interpolated. A few channels at a time for a tile of
// pixels, so that the windows, which overlap where the flow is smooth, stay in the nearest cache.
// Backward: rows of a are independent for the gradients to fa and flow. The gradient to fb is a scatter: each thread
// owns a slice of the channels and walks over all pixels in raster order, so nothing is atomic and no sum depends on
// the number of threads. Rejected: threads that own bands of rows of fb, because a flow may send all pixels into one.
// What falls outside the image is selected away: a weight of 0 times NaN never occurs.
#include <algorithm>

#include "common/arena.h"
#include "common/dispatch.h"
#include "common/window_math.h"
#include "cpu/local_correlation_cpu.h"
#include "cpu/window/packed_image_cpu.h"
#include "cpu/window/window_kernels.h"

namespace cosegflow {
namespace {

constexpr int64_t kTilePixels = 32;
constexpr int64_t kChannelsAtATime = 32;

// A pixel's window, and the part of it that lies inside the image.
template <class T>
struct Window {
  WindowPoint<T> point;
  int64_t first_row, end_row, first_column, end_column;
  bool empty() const { return first_row >= end_row || first_column >= end_column; }
};

template <class S>
class FlowWork {
  using T = accumulate_t<S>;

 public:
  FlowWork(const LocalCorrelationCall& call, Arena& arena)
      : p_(call.params),
        runtime_(call.runtime),
        slots_(local_correlation_slots(call.params, call.runtime)),
        size_(p_.side() + 1),
        pitch_(round_up(size_, kernels_.lanes)) {
    a_ = {p_.channels, p_.height_a, p_.width_a, 0, p_.width_a};
    // A window begins at most radius + 1 pixels to the left of pixel 0 of b, and at the last pixel at most.
    const int64_t left = 2 * p_.radius + 2;
    b_ = {p_.channels, p_.height_b, p_.width_b, left, left + p_.width_b + pitch_};
    a_.layout(arena, p_.normalize);
    b_.layout(arena, p_.normalize);
    tile_.layout(arena, *this, call.backward, slots_);
    if (!call.backward) return;
    if (p_.grad_fa.data != nullptr) grad_a_ = arena.take<T>(slots_ * p_.channels * p_.width_a);
    if (p_.grad_fb.data == nullptr) return;
    grad_b_ = b_;
    grad_b_.data = arena.take<T>(p_.height_b * b_.row_stride());
  }

  void forward(int64_t image) {
    pack(image);
    for_each_in_slots(runtime_, slots_, p_.height_a, [&](int64_t slot, int64_t y) {
      for_each_tile([&](int64_t x, int64_t count) {
        Tile tile = tile_.of_slot(slot, *this);
        find_windows(image, y, x, count, tile);
        compute_products(y, x, count, tile);
        for (int64_t i = 0; i < count; ++i) interpolate(tile, i);
        const int64_t planes = p_.side() * p_.side();
        for (int64_t k = 0; k < planes; ++k) {
          S* to = static_cast<S*>(p_.out) + ((image * planes + k) * p_.height_a + y) * p_.width_a + x;
          for (int64_t i = 0; i < count; ++i) to[i] = from_float<S>(tile.values[k * kTilePixels + i]);
        }
      });
    });
  }

  void backward(int64_t image) {
    pack(image);
    if (p_.grad_fa.data != nullptr || p_.grad_flow.data != nullptr) {
      for_each_in_slots(runtime_, slots_, p_.height_a, [&](int64_t slot, int64_t y) { backward_row(image, slot, y); });
    }
    if (p_.grad_fb.data == nullptr) return;
    parallel_slots(runtime_, slots_, [&](int64_t slot) {
      scatter(image, slot, p_.channels * slot / slots_, p_.channels * (slot + 1) / slots_);
    });
    for_each_in_slots(runtime_, slots_, p_.height_b, [&](int64_t, int64_t y) {
      b_.write_gradient_row(p_.grad_fb, image, y, grad_b_.row(y) + b_.left, b_.pitch);
    });
  }

 private:
  // Scratch of one slot, for kTilePixels pixels.
  struct Tile {
    Window<T>* windows;
    T* products;   // [pixel][i][j], `pitch_` apart: D of window_math.h
    T* gradients;  // likewise, to D; backward only
    T* values;     // [(dy, dx)][pixel]: of the output, or the incoming gradient
    T* row;        // (2r+2) x pitch_, between the two passes of the interpolation

    void layout(Arena& arena, const FlowWork& work, bool backward, int64_t slots) {
      const int64_t window = work.size_ * work.pitch_, side = work.p_.side();
      windows = arena.take<Window<T>>(slots * kTilePixels);
      products = arena.take<T>(slots * kTilePixels * window);
      gradients = arena.take<T>(backward ? slots * kTilePixels * window : 0);
      values = arena.take<T>(slots * kTilePixels * side * side);
      row = arena.take<T>(slots * window);
    }
    Tile of_slot(int64_t slot, const FlowWork& work) const {
      const int64_t window = work.size_ * work.pitch_, side = work.p_.side();
      return {windows + slot * kTilePixels, products + slot * kTilePixels * window,
              gradients + slot * kTilePixels * window, values + slot * kTilePixels * side * side, row + slot * window};
    }
  };

  void pack(int64_t image) {
    for_each_in_slots(runtime_, slots_, p_.height_a, [&](int64_t, int64_t y) { a_.pack_row(p_.fa, image, y); });
    for_each_in_slots(runtime_, slots_, p_.height_b, [&](int64_t, int64_t y) { b_.pack_row(p_.fb, image, y); });
  }

  template <class Body>
  void for_each_tile(Body body) const {
    for (int64_t x = 0; x < p_.width_a; x += kTilePixels) body(x, std::min(kTilePixels, p_.width_a - x));
  }

  void find_windows(int64_t image, int64_t y, int64_t x, int64_t count, const Tile& tile) const {
    const View4& f = p_.flow;
    const T* flow = static_cast<const T*>(f.data) + image * f.stride[0] + y * f.stride[2];
    for (int64_t i = 0; i < count; ++i) {
      const T* at = flow + (x + i) * f.stride[3];
      Window<T>& w = tile.windows[i];
      w.point = window_point(at[0], at[f.stride[1]], x + i, y, p_.width_b, p_.height_b, p_.radius);
      w.first_row = std::max<int64_t>(0, -w.point.y), w.end_row = std::min(size_, p_.height_b - w.point.y);
      w.first_column = std::max<int64_t>(0, -w.point.x), w.end_column = std::min(size_, p_.width_b - w.point.x);
      if (!w.point.finite) w.end_row = w.first_row;
    }
  }

  // The task of pixel (y, x + i) of a tile with the rows of its window that are inside, for channels from c on.
  WindowTask<T> task_of(const PackedImage<T>& b, int64_t i, const Tile& tile, T* weights, int64_t c,
                        int64_t end) const {
    const Window<T>& w = tile.windows[i];
    WindowTask<T> task;
    task.channels = std::min(kChannelsAtATime, end - c);
    task.rows = w.end_row - w.first_row, task.columns = size_;
    task.window = b.row(w.point.y + w.first_row) + c * b.pitch + b.left + w.point.x;
    task.window_pitch = b.pitch, task.window_stride = b.row_stride();
    task.weights = weights + (i * size_ + w.first_row) * pitch_;
    task.accumulate = c > 0;
    return task;
  }

  void compute_products(int64_t y, int64_t x, int64_t count, const Tile& tile) const {
    for (int64_t c = 0; c < p_.channels; c += kChannelsAtATime) {
      for (int64_t i = 0; i < count; ++i) {
        if (tile.windows[i].empty()) continue;
        WindowTask<T> task = task_of(b_, i, tile, tile.products, c, p_.channels);
        task.feature = a_.row(y) + c * a_.pitch + x + i, task.feature_pitch = a_.pitch;
        kernels_.window_products(task);
      }
    }
    for (int64_t i = 0; i < count; ++i) select_inside(tile.windows[i], tile.products + i * size_ * pitch_);
  }

  // 0 where a window leaves the image.
  void select_inside(const Window<T>& w, T* values) const {
    if (w.empty()) {
      std::fill_n(values, size_ * pitch_, T(0));
      return;
    }
    std::fill_n(values, w.first_row * pitch_, T(0));
    std::fill(values + w.end_row * pitch_, values + size_ * pitch_, T(0));
    if (w.first_column == 0 && w.end_column == size_) return;
    for (int64_t row = w.first_row; row < w.end_row; ++row) {
      std::fill_n(values + row * pitch_, w.first_column, T(0));
      std::fill(values + row * pitch_ + w.end_column, values + (row + 1) * pitch_, T(0));
    }
  }

  // Products to values, along x and then along y.
  void interpolate(const Tile& tile, int64_t i) const {
    const int64_t side = p_.side();
    const WindowPoint<T>& point = tile.windows[i].point;
    const T* from = tile.products + i * size_ * pitch_;
    for (int64_t row = 0; row < size_; ++row) {
      T* to = tile.row + row * pitch_;
      const T* d = from + row * pitch_;
      for (int64_t dx = 0; dx < side; ++dx) to[dx] = (1 - point.wx) * d[dx] + point.wx * d[dx + 1];
    }
    for (int64_t dy = 0; dy < side; ++dy) {
      const T *top = tile.row + dy * pitch_, *bottom = top + pitch_;
      T* to = tile.values + dy * side * kTilePixels + i;
      for (int64_t dx = 0; dx < side; ++dx) {
        to[dx * kTilePixels] = (1 - point.wy) * top[dx] + point.wy * bottom[dx];
      }
    }
  }

  void read_gradient(int64_t image, int64_t y, int64_t x, int64_t count, const Tile& tile) const {
    const View4& g = p_.grad_out;
    for (int64_t k = 0; k < p_.side() * p_.side(); ++k) {
      const S* from = static_cast<const S*>(g.data) + image * g.stride[0] + k * g.stride[1] + y * g.stride[2];
      T* to = tile.values + k * kTilePixels;
      for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(to_float(from[(x + i) * g.stride[3]]));
    }
  }

  // The gradient to the products: the interpolation transposed.
  void spread_gradient(const Tile& tile, int64_t i) const {
    const int64_t side = p_.side();
    const Window<T>& w = tile.windows[i];
    if (w.empty()) return;
    const T* from = tile.values + i;
    for (int64_t dy = 0; dy < side; ++dy, from += side * kTilePixels) {
      T* to = tile.row + dy * pitch_;
      T before = 0;
      for (int64_t dx = 0; dx < side; ++dx) {
        const T here = from[dx * kTilePixels];
        to[dx] = dx == 0 ? (1 - w.point.wx) * here : (1 - w.point.wx) * here + w.point.wx * before;
        before = here;
      }
      to[side] = w.point.wx * before;
    }
    T* const to = tile.gradients + i * size_ * pitch_;
    for (int64_t j = 0; j < size_; ++j) {
      to[j] = (1 - w.point.wy) * tile.row[j];
      to[side * pitch_ + j] = w.point.wy * tile.row[(side - 1) * pitch_ + j];
    }
    for (int64_t dy = 1; dy < side; ++dy) {
      const T *below = tile.row + dy * pitch_, *above = below - pitch_;
      for (int64_t j = 0; j < size_; ++j) to[dy * pitch_ + j] = (1 - w.point.wy) * below[j] + w.point.wy * above[j];
    }
    select_inside(w, to);
  }

  // The derivative of the interpolation to the fractions, times the incoming gradient.
  void write_flow_gradient(int64_t image, int64_t y, int64_t x, const Tile& tile, int64_t i) const {
    const int64_t side = p_.side();
    const Window<T>& w = tile.windows[i];
    T sum_x = 0, sum_y = 0;
    if (w.point.finite) {
      const T wx = w.point.wx, wy = w.point.wy;
      for (int64_t dy = 0; dy < side; ++dy) {
        const T *top = tile.products + (i * size_ + dy) * pitch_, *bottom = top + pitch_;
        for (int64_t dx = 0; dx < side; ++dx) {
          const T g = tile.values[(dy * side + dx) * kTilePixels + i];
          sum_x += g * ((1 - wy) * (top[dx + 1] - top[dx]) + wy * (bottom[dx + 1] - bottom[dx]));
          sum_y += g * ((1 - wx) * (bottom[dx] - top[dx]) + wx * (bottom[dx + 1] - top[dx + 1]));
        }
      }
    }
    T* to = static_cast<T*>(p_.grad_flow.data) + (image * 2 * p_.height_a + y) * p_.width_a + x + i;
    to[0] = sum_x;
    to[p_.height_a * p_.width_a] = sum_y;
  }

  void backward_row(int64_t image, int64_t slot, int64_t y) {
    const bool need_fa = p_.grad_fa.data != nullptr;
    T* const grad = grad_a_ + slot * p_.channels * p_.width_a;
    if (need_fa) std::fill_n(grad, p_.channels * p_.width_a, T(0));
    for_each_tile([&](int64_t x, int64_t count) {
      Tile tile = tile_.of_slot(slot, *this);
      find_windows(image, y, x, count, tile);
      read_gradient(image, y, x, count, tile);
      if (p_.grad_flow.data != nullptr) {
        compute_products(y, x, count, tile);
        for (int64_t i = 0; i < count; ++i) write_flow_gradient(image, y, x, tile, i);
      }
      if (!need_fa) return;
      for (int64_t i = 0; i < count; ++i) spread_gradient(tile, i);
      for (int64_t c = 0; c < p_.channels; c += kChannelsAtATime) {
        for (int64_t i = 0; i < count; ++i) {
          if (tile.windows[i].empty()) continue;
          WindowTask<T> task = task_of(b_, i, tile, tile.gradients, c, p_.channels);
          task.feature = grad + c * p_.width_a + x + i, task.feature_pitch = p_.width_a;
          kernels_.window_gather(task);
        }
      }
    });
    if (need_fa) a_.write_gradient_row(p_.grad_fa, image, y, grad, p_.width_a);
  }

  // The gradient to channels [begin, end) of the packed fb.
  void scatter(int64_t image, int64_t slot, int64_t begin, int64_t end) {
    for (int64_t y = 0; y < p_.height_b; ++y) {
      std::fill(grad_b_.row(y) + begin * b_.pitch, grad_b_.row(y) + end * b_.pitch, T(0));
    }
    const Tile tile = tile_.of_slot(slot, *this);
    for (int64_t y = 0; y < p_.height_a; ++y) {
      for_each_tile([&](int64_t x, int64_t count) {
        find_windows(image, y, x, count, tile);
        read_gradient(image, y, x, count, tile);
        for (int64_t i = 0; i < count; ++i) spread_gradient(tile, i);
        for (int64_t c = begin; c < end; c += kChannelsAtATime) {
          for (int64_t i = 0; i < count; ++i) {
            if (tile.windows[i].empty()) continue;
            WindowTask<T> task = task_of(grad_b_, i, tile, tile.gradients, c, end);
            task.feature = a_.row(y) + c * a_.pitch + x + i, task.feature_pitch = a_.pitch;
            kernels_.window_scatter(task);
          }
        }
      });
    }
  }

  const LocalCorrelationParams& p_;
  const CpuRuntime& runtime_;
  const WindowKernels<T>& kernels_ = window_kernels<T>();
  const int64_t slots_;
  const int64_t size_, pitch_;  // of the window: 2r+2, and that up to a whole vector
  PackedImage<T> a_, b_, grad_b_;
  Tile tile_;
  T* grad_a_ = nullptr;  // of each slot: one row
};

}  // namespace

size_t local_correlation_flow_bytes(const LocalCorrelationCall& call) {
  Arena arena;
  if (call.params.fa.dtype == DType::kFloat64) {
    FlowWork<double>(call, arena);
  } else {
    FlowWork<float>(call, arena);
  }
  return arena.bytes();
}

Status local_correlation_flow(const LocalCorrelationCall& call, void* workspace) {
  return dispatch_floating(call.params.fa.dtype, [&](auto tag) -> Status {
    using S = typename decltype(tag)::type;
    Arena arena(workspace);
    FlowWork<S> work(call, arena);
    for (int64_t image = 0; image < call.params.batch; ++image) {
      call.backward ? work.backward(image) : work.forward(image);
    }
    return {};
  });
}

}  // namespace cosegflow

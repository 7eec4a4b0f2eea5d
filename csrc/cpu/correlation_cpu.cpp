// correlation on the CPU: tiles of products (see tile/product_kernel.h), written out in the features' type.
#include "common/correlation_checks.h"
#include "common/dispatch.h"
#include "cpu/feature_gradients_cpu.h"
#include "cpu/image_loop_cpu.h"
#include "cpu/score_product_cpu.h"
#include "cpu/softmax_rows_cpu.h"
#include "cpu/tile_rows_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kTileColumnBytes = 1024;  // of one row of the tile

// Both directions: the whole images as foreground, and the tiles of the slots.
template <class T>
struct CorrelationWork {
  const CorrelationParams& p;
  const TileKernels<T>& kernels = tile_kernels<T>();
  const int64_t positions_a, positions_b;
  const int64_t tile_columns = std::max<int64_t>(1, kTileColumnBytes / (kernels.width * sizeof(T))) * kernels.width;
  const int64_t tile_size = kTileRows * tile_columns;
  Foreground all_a, all_b;
  T* tiles = nullptr;

  CorrelationWork(const CorrelationParams& params, Arena& arena, int64_t slots)
      : p(params), positions_a(p.height_a * p.width_a), positions_b(p.height_b * p.width_b) {
    all_a.layout(arena, p.height_a, p.width_a);
    all_b.layout(arena, p.height_b, p.width_b);
    tiles = arena.take<T>(slots * tile_size);
  }

  void select() {
    all_a.select({}, 0, p.height_a, p.width_a);
    all_b.select({}, 0, p.height_b, p.width_b);
  }

  // Calls body(slot, tile, row, rows, column, columns) for all tiles; those of a row in order, by one slot.
  template <class Body>
  void for_each_tile(const CpuRuntime& runtime, int64_t slots, Body&& body) const {
    parallel_slots(runtime, slots, [&](int64_t slot) {
      const Panels<T> tile = {tiles + slot * tile_size, kTileRows * kernels.width};
      for_each_tile_of_slot(positions_a, slot, slots, [&](int64_t row, int64_t rows) {
        for (int64_t column = 0; column < positions_b; column += tile_columns) {
          body(slot, tile, row, rows, column, std::min(tile_columns, positions_b - column));
        }
      });
    });
  }
};

template <class S>
class CorrelationForward : CorrelationWork<accumulate_t<S>> {
  using T = accumulate_t<S>;

 public:
  CorrelationForward(const CorrelationParams& p, Arena& arena, int64_t slots) : CorrelationWork<T>(p, arena, slots) {
    product_.layout(arena, p.fa.dtype, this->positions_a, this->positions_b, p.channels, p.normalize, slots);
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    const CorrelationParams& p = this->p;
    const int64_t width = this->kernels.width;
    this->select();
    product_.pack(p, image, this->all_a, this->all_b, runtime);
    S* corr = static_cast<S*>(p.corr) + image * this->positions_a * this->positions_b;
    const bool relu = p.relu;
    this->for_each_tile(runtime, thread_count(runtime),
                        [&](int64_t, Panels<T> tile, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                          product_.multiply(this->kernels, row, rows, column, columns, tile);
                          for (int64_t r = 0; r < rows; ++r) {
                            S* to = corr + (row + r) * this->positions_b + column;
                            write_tile_row<S, T>(tile, r, nullptr, columns, width, to, [relu](T v) {
                              return from_float<S>(relu && v < 0 ? T(0) : v);
                            });  // NaN stays NaN
                          }
                        });
  }

 private:
  ScoreProduct<T> product_;
};

template <class S>
class CorrelationBackward : CorrelationWork<accumulate_t<S>> {
  using T = accumulate_t<S>;

 public:
  CorrelationBackward(const CorrelationParams& p, Arena& arena, int64_t slots) : CorrelationWork<T>(p, arena, slots) {
    const bool want_a = p.grad_fa.data != nullptr, want_b = p.grad_fb.data != nullptr;
    slots_ = want_b ? FeatureGradients<T>::limit_slots(slots, this->positions_b, p.channels) : slots;
    features_.layout(arena, this->positions_a, this->positions_b, p.channels,
                     {p.fa.dtype, false, want_a, want_b, p.normalize}, slots);
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    const CorrelationParams& p = this->p;
    const int64_t width = this->kernels.width, slots = std::min<int64_t>(slots_, thread_count(runtime));
    this->select();
    features_.pack(p, image, this->all_a, this->all_b, runtime);
    const int64_t volume = image * this->positions_a * this->positions_b;
    const S* grad = static_cast<const S*>(p.grad_corr) + volume;
    const S* corr = p.relu ? static_cast<const S*>(p.corr) + volume : nullptr;
    for (int64_t slot = 0; slot < slots; ++slot) features_.begin_slot(slot);
    this->for_each_tile(runtime, slots,
                        [&](int64_t slot, Panels<T> tile, int64_t row, int64_t rows, int64_t column, int64_t columns) {
                          for (int64_t r = 0; r < rows; ++r) {
                            const int64_t at = (row + r) * this->positions_b + column;
                            read_tile_row(grad + at, nullptr, columns, width, tile, r);
                            if (corr != nullptr) clip_row(corr + at, columns, width, tile, r);
                          }
                          features_.add(this->kernels, slot, row, rows, column, columns, tile);
                        });
    features_.write(p.grad_fa, p.grad_fb, image, this->all_a, this->all_b, slots, runtime);
  }

 private:
  // The gradient of relu: 0 where the volume was clipped.
  static void clip_row(const S* corr, int64_t columns, int64_t width, Panels<T> tile, int64_t row) {
    for (int64_t c = 0; c < columns; c += width) {
      T* to = tile.data + c / width * tile.panel_stride + row * width;
      for (int64_t j = 0; j < std::min(width, columns - c); ++j) to[j] = to_float(corr[c + j]) <= 0 ? T(0) : to[j];
    }
  }

  FeatureGradients<T> features_;
  int64_t slots_ = 1;
};

template <template <class> class Work>
size_t workspace_bytes(const CorrelationParams& p, const CpuRuntime& runtime) {
  if (!check_sizes(p).ok()) return 0;
  size_t bytes = 0;
  const Status status = dispatch_floating(p.fa.dtype, [&](auto tag) -> Status {
    bytes = ImageLoop<Work<typename decltype(tag)::type>, CorrelationParams>(p, runtime).workspace_bytes();
    return {};
  });
  return status.ok() ? bytes : 0;
}

template <template <class> class Work>
Status run(const CorrelationParams& p, void* workspace, const CpuRuntime& runtime) {
  return dispatch_floating(p.fa.dtype, [&](auto tag) -> Status {
    ImageLoop<Work<typename decltype(tag)::type>, CorrelationParams>(p, runtime).run(workspace);
    return {};
  });
}

}  // namespace

size_t correlation_forward_workspace_bytes_cpu(const CorrelationParams& p, const CpuRuntime& runtime) {
  return workspace_bytes<CorrelationForward>(p, runtime);
}

size_t correlation_backward_workspace_bytes_cpu(const CorrelationParams& p, const CpuRuntime& runtime) {
  return workspace_bytes<CorrelationBackward>(p, runtime);
}

Status correlation_forward_cpu(const CorrelationParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, correlation_forward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  return run<CorrelationForward>(p, workspace, runtime);
}

Status correlation_backward_cpu(const CorrelationParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, correlation_backward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  return run<CorrelationBackward>(p, workspace, runtime);
}

}  // namespace cosegflow

// soft_argmax on the CPU: rows of the volume go through the same tile kernels as in match,
// where they lie if they can, else by way of a tile. The volume is read once,
// which bounds the speed; excluded entries are not read at all. With a window (kernel_sigma) the forward reads a tile
// of rows twice, for the most probable targets and for the softmax; the second time it is in the cache.

#include <type_traits>

#include "common/dispatch.h"
#include "common/round_up.h"
#include "common/soft_argmax_checks.h"
#include "cpu/image_loop_cpu.h"
#include "cpu/softmax_gradients_cpu.h"
#include "cpu/softmax_window_cpu.h"
#include "cpu/tile_rows_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kRows = 32;               // of a tile
constexpr int64_t kTileColumnBytes = 2048;  // of one row of the tile
constexpr int64_t kRowBytes = 16384;        // of a row that is read in place: its second reading finds it in the cache
static_assert(kRows <= kTileRows, "");

// Both directions: the targets, the tiles of the slots, and the order of the work.
template <class S>
struct SoftArgmaxWork {
  using T = accumulate_t<S>;
  const SoftArgmaxParams& p;
  const TileKernels<T>& kernels = tile_kernels<T>();
  const int64_t positions_a, positions_b;
  const int64_t capacity = round_up(positions_b, kernels.width);
  const int64_t tile_columns = std::max<int64_t>(1, kTileColumnBytes / (kernels.width * sizeof(T))) * kernels.width;
  const int64_t row_columns = std::max<int64_t>(1, kRowBytes / (kernels.width * sizeof(T))) * kernels.width;
  Targets<T> targets;
  T* tiles = nullptr;

  SoftArgmaxWork(const SoftArgmaxParams& params, Arena& arena, int64_t slots)
      : p(params), positions_a(p.height_a * p.width_a), positions_b(p.height_b * p.width_b) {
    targets.layout(arena, p.height_b, p.width_b, capacity);
    tiles = arena.take<T>(slots * kRows * tile_columns);
  }

  void select(int64_t image) { targets.select(p.mask_b, image, p.height_b, p.width_b, capacity); }

  Panels<T> tile(int64_t slot) const { return {tiles + slot * kRows * tile_columns, kRows * kernels.width}; }

  // Where the compacted columns from `column` lie in a row: an index, or null and an offset where all are allowed.
  const int64_t* index(int64_t column) const {
    return targets.foreground.complete() ? nullptr : targets.foreground.index + column;
  }
  int64_t offset(int64_t column) const { return targets.foreground.complete() ? column : 0; }

  void read(int64_t image, int64_t row, int64_t rows, int64_t column, int64_t columns, Panels<T> to) const {
    const S* corr = static_cast<const S*>(p.corr) + (image * positions_a + row) * positions_b + offset(column);
    for (int64_t r = 0; r < rows; ++r) {
      read_tile_row(corr + r * positions_b, index(column), columns, kernels.width, to, r);
    }
  }

  // A stored row is a row of whole panels, one after the other: where no target is excluded and nothing has to be
  // converted, the kernels read it where it lies.
  bool in_place() const { return std::is_same_v<S, T> && targets.foreground.complete(); }

  // Calls body(scores, column, columns) over the targets of one row, in place; what is left of a panel goes by way of
  // the tile.
  template <class Body>
  void for_each_part_of_row(int64_t image, int64_t row, Panels<T> tile, Body&& body) const {
    if constexpr (std::is_same_v<S, T>) {
      const T* corr = static_cast<const T*>(p.corr) + (image * positions_a + row) * positions_b;
      const int64_t whole = positions_b / kernels.width * kernels.width;
      for (int64_t column = 0; column < whole; column += row_columns) {
        body(Panels<const T>{corr + column, kernels.width}, column, std::min(row_columns, whole - column));
      }
      if (whole == positions_b) return;
      read(image, row, 1, whole, positions_b - whole, tile);
      body(Panels<const T>(tile), whole, positions_b - whole);
    }
  }

  // Calls body(column, columns) over the allowed targets.
  template <class Body>
  void for_each_column_tile(Body&& body) const {
    const int64_t count = targets.foreground.count;
    for (int64_t column = 0; column < count; column += tile_columns)
      body(column, std::min(tile_columns, count - column));
  }
};

template <class S>
class SoftArgmaxForward : SoftArgmaxWork<S> {
  using T = accumulate_t<S>;
  using Base = SoftArgmaxWork<S>;

 public:
  SoftArgmaxForward(const SoftArgmaxParams& p, Arena& arena, int64_t slots) : Base(p, arena, slots) {
    states_bytes_ = Slot(nullptr, p.kernel_sigma).bytes;
    states_ = arena.take<char>(slots * states_bytes_);
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    const SoftArgmaxParams& p = this->p;
    const int64_t total = this->positions_a;
    const MatchOutputs<T> out(p.flow, p.lse, p.confidence, image, total, p.width_a);
    const PeakOutputs<T> peaks(p, image);
    const bool windowed = p.kernel_sigma > 0;
    const T beta = value_at<T>(p.beta, image);
    this->select(image);
    if (this->targets.foreground.count == 0) {
      out.clear(0, total);
      return peaks.clear(0, total);
    }
    const int64_t tiles = ceil_div(total, kRows), slots = thread_count(runtime);
    parallel_slots(runtime, slots, [&](int64_t index) {
      const Slot slot(states_ + index * states_bytes_, p.kernel_sigma);
      const Panels<T> tile = this->tile(index);
      for (int64_t t = tiles * index / slots; t < tiles * (index + 1) / slots; ++t) {
        const int64_t row = t * kRows, rows = std::min(kRows, total - row);
        if (!windowed && this->in_place()) {
          for (int64_t r = row; r < row + rows; ++r) run_row(slot, image, r, tile, beta, out, peaks);
          continue;
        }
        slot.states.clear(rows);
        slot.peaks.clear(rows);
        this->for_each_column_tile([&](int64_t column, int64_t columns) {
          this->read(image, row, rows, column, columns, tile);
          if (peaks.wanted()) slot.peaks.update(this->kernels, tile, rows, columns, column, this->targets, beta);
          if (windowed) return;
          slot.states.update(this->kernels, tile, rows, columns, column, this->targets, to_base_2(beta));
        });
        for (int64_t r = 0; peaks.wanted() && r < rows; ++r) {
          slot.peaks.write(peaks, r, row + r, this->targets);
          slot.windows.set(r, peaks.index[row + r], p.width_b, this->targets);
        }
        if (windowed) {
          this->for_each_column_tile([&](int64_t column, int64_t columns) {
            this->read(image, row, rows, column, columns, tile);
            slot.windows.apply(this->kernels, tile, rows, columns, column, this->targets);
            slot.states.update(this->kernels, tile, rows, columns, column, this->targets, to_base_2(beta));
          });
        }
        for (int64_t r = 0; r < rows; ++r) slot.states.write(out, r, row + r, this->targets, beta);
      }
    });
  }

 private:
  struct Slot {
    Arena arena;
    RowStates<T> states;
    RowPeaks<T> peaks;
    RowWindows<T> windows;
    int64_t bytes;
    Slot(char* memory, double sigma)
        : arena(memory),
          states(arena),
          peaks(arena),
          windows(arena, sigma),
          bytes(round_up(arena.bytes(), Arena::kAlignment)) {}
  };

  void run_row(const Slot& slot, int64_t image, int64_t row, Panels<T> tile, T beta, const MatchOutputs<T>& out,
               const PeakOutputs<T>& peaks) const {
    slot.states.clear(1);
    slot.peaks.clear(1);
    this->for_each_part_of_row(image, row, tile, [&](Panels<const T> scores, int64_t column, int64_t columns) {
      if (peaks.wanted()) slot.peaks.update(this->kernels, scores, 1, columns, column, this->targets, beta);
      slot.states.update(this->kernels, scores, 1, columns, column, this->targets, to_base_2(beta));
    });
    if (peaks.wanted()) slot.peaks.write(peaks, 0, row, this->targets);
    slot.states.write(out, 0, row, this->targets, beta);
  }

  char* states_ = nullptr;
  int64_t states_bytes_ = 0;
};

template <class S>
class SoftArgmaxBackward : SoftArgmaxWork<S> {
  using T = accumulate_t<S>;
  using Base = SoftArgmaxWork<S>;

 public:
  SoftArgmaxBackward(const SoftArgmaxParams& p, Arena& arena, int64_t slots) : Base(p, arena, slots) {
    sums_.layout(arena, slots, this->capacity, p.grad_mask_b.data != nullptr);
    if (p.kernel_sigma > 0) {
      windows_bytes_ = Windows(nullptr, *this).bytes;
      windows_ = arena.take<char>(slots * windows_bytes_);
    }
  }

  void run(int64_t image, const CpuRuntime& runtime) {
    const SoftArgmaxParams& p = this->p;
    this->select(image);
    const bool nothing = this->targets.foreground.count == 0;
    const int64_t total = this->positions_a, tiles = ceil_div(total, kRows), slots = thread_count(runtime);
    S* grad = static_cast<S*>(p.grad_corr);
    if (grad != nullptr) grad += image * total * this->positions_b;
    parallel_slots(runtime, slots, [&](int64_t index) {
      const Slot slot = sums_.slot(index);
      slot.clear(this->capacity);
      for (int64_t t = tiles * index / slots; t < tiles * (index + 1) / slots; ++t) {
        const int64_t row = t * kRows, rows = std::min(kRows, total - row);
        if (grad != nullptr && !this->targets.foreground.complete()) {
          std::fill_n(grad + row * this->positions_b, rows * this->positions_b, from_float<S>(T(0)));
        }
        // The sums of the columns want many rows at a time, so that a panel's stay in registers.
        if (grad != nullptr && p.kernel_sigma <= 0 && slot.column_sum == nullptr && this->in_place()) {
          for (int64_t r = row; r < row + rows; ++r) run_row(slot, index, image, r, grad);
        } else if (!nothing) {
          run_rows(slot, index, image, row, rows, grad);
        }
      }
    });
    sums_.write(p, image, this->targets, nothing ? 0 : slots);
  }

 private:
  using Slot = typename GradientSums<T>::Slot;

  // What a slot needs for windows.
  struct Windows {
    Arena arena;
    RowWindows<T> rows;
    Panels<T> slope;  // of a tile
    int64_t bytes;

    Windows(char* memory, const SoftArgmaxBackward& work)
        : arena(memory),
          rows(arena, work.p.kernel_sigma),
          slope{arena.take<T>(kRows * work.tile_columns), kRows * work.kernels.width},
          bytes(round_up(arena.bytes(), Arena::kAlignment)) {}
  };

  void run_rows(const Slot& slot, int64_t index, int64_t image, int64_t row, int64_t rows, S* grad) const {
    const T beta = value_at<T>(this->p.beta, image);
    const Panels<T> tile = this->tile(index);
    const bool windowed = this->p.kernel_sigma > 0;
    const Windows windows(windowed ? windows_ + index * windows_bytes_ : nullptr, *this);
    for (int64_t r = 0; windowed && r < rows; ++r) {
      windows.rows.set(r, this->p.index[image * this->positions_a + row + r], this->p.width_b, this->targets);
    }
    for (int64_t r = 0; r < rows; ++r) slot.gradients.read(this->p, image, r, row + r, this->targets);
    this->for_each_column_tile([&](int64_t column, int64_t columns) {
      this->read(image, row, rows, column, columns, tile);
      if (windowed) windows.rows.apply(this->kernels, tile, rows, columns, column, this->targets, windows.slope);
      slot.gradients.apply(this->kernels, tile, tile, rows, columns, column, this->targets, beta, slot.column_sum,
                           slot.beta_sum);
      if (windowed) RowWindows<T>::apply_gradient(this->kernels, tile, rows, columns, windows.slope);
      if (grad == nullptr) return;
      for (int64_t r = 0; r < rows; ++r) {
        S* to = grad + (row + r) * this->positions_b + this->offset(column);
        write_tile_row<S, T>(tile, r, this->index(column), columns, this->kernels.width, to, from_float<S, T>);
      }
    });
  }

  void run_row(const Slot& slot, int64_t index, int64_t image, int64_t row, S* grad) const {
    if constexpr (std::is_same_v<S, T>) {
      const T beta = value_at<T>(this->p.beta, image);
      const Panels<T> tile = this->tile(index);
      const int64_t width = this->kernels.width;
      slot.gradients.read(this->p, image, 0, row, this->targets);
      this->for_each_part_of_row(image, row, tile, [&](Panels<const T> scores, int64_t column, int64_t columns) {
        T* to = grad + row * this->positions_b + column;
        const bool rest = scores.data == tile.data;
        const Panels<T> gradient = rest ? tile : Panels<T>{to, width};
        slot.gradients.apply(this->kernels, scores, gradient, 1, columns, column, this->targets, beta, nullptr,
                             slot.beta_sum);
        if (rest) std::copy_n(tile.data, columns, to);
      });
    }
  }

  GradientSums<T> sums_;
  char* windows_ = nullptr;
  int64_t windows_bytes_ = 0;
};

template <template <class> class Work>
size_t workspace_bytes(const SoftArgmaxParams& p, const CpuRuntime& runtime) {
  if (!check_sizes(p).ok()) return 0;
  size_t bytes = 0;
  const Status status = dispatch_floating(p.dtype, [&](auto tag) -> Status {
    bytes = ImageLoop<Work<typename decltype(tag)::type>, SoftArgmaxParams>(p, runtime).workspace_bytes();
    return {};
  });
  return status.ok() ? bytes : 0;
}

template <template <class> class Work>
Status run(const SoftArgmaxParams& p, void* workspace, const CpuRuntime& runtime) {
  return dispatch_floating(p.dtype, [&](auto tag) -> Status {
    ImageLoop<Work<typename decltype(tag)::type>, SoftArgmaxParams>(p, runtime).run(workspace);
    return {};
  });
}

}  // namespace

size_t soft_argmax_forward_workspace_bytes_cpu(const SoftArgmaxParams& p, const CpuRuntime& runtime) {
  return workspace_bytes<SoftArgmaxForward>(p, runtime);
}

size_t soft_argmax_backward_workspace_bytes_cpu(const SoftArgmaxParams& p, const CpuRuntime& runtime) {
  return workspace_bytes<SoftArgmaxBackward>(p, runtime);
}

Status soft_argmax_forward_cpu(const SoftArgmaxParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, soft_argmax_forward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  return run<SoftArgmaxForward>(p, workspace, runtime);
}

Status soft_argmax_backward_cpu(const SoftArgmaxParams& p, void* workspace, const CpuRuntime& runtime) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, soft_argmax_backward_workspace_bytes_cpu(p, runtime)); !s.ok()) return s;
  return run<SoftArgmaxBackward>(p, workspace, runtime);
}

}  // namespace cosegflow

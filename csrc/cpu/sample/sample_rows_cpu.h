// What the sampling kernels work on, from tensors of any layout and type: rows of points, rows of channels, and packed
// images.
#pragma once

#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "common/arena.h"
#include "common/half.h"
#include "common/round_up.h"
#include "cosegflow/types.h"
#include "cpu/sample/sample_kernels.h"

namespace cosegflow {

template <class T>
T* plane_row(const View4& view, int64_t b, int64_t c, int64_t row) {
  return static_cast<T*>(view.data) + b * view.stride[0] + c * view.stride[1] + row * view.stride[2];
}

// The points of one row of the output at a time.
template <class A>
class PointRows {
 public:
  PointRows(const View4& flow, int64_t count, const SampleGrid& grid)
      : flow_(flow), count_(count), padded_(round_up(count, kRowStep)), grid_(grid) {
    Arena size;
    lay_out(size);
    memory_.resize(size.bytes());
    Arena arena(memory_.data());
    lay_out(arena);
    for (int64_t i = count_; i < padded_; ++i)
      points_.flow_x[i] = points_.flow_y[i] = std::numeric_limits<A>::quiet_NaN();
  }

  const PointRow<A>& fill(int64_t b, int64_t row) {
    const A* x = plane_row<const A>(flow_, b, 0, row);
    const A* y = plane_row<const A>(flow_, b, 1, row);
    for (int64_t i = 0; i < count_; ++i) {
      points_.flow_x[i] = x[i * flow_.stride[3]];
      points_.flow_y[i] = y[i * flow_.stride[3]];
    }
    sample_kernels<A>().points(points_, row, padded_, grid_);
    return points_;
  }

  int64_t padded() const { return padded_; }

 private:
  void lay_out(Arena& arena) {
    for (A** array :
         {&points_.flow_x, &points_.flow_y, &points_.weight[0], &points_.weight[1], &points_.weight[2],
          &points_.weight[3], &points_.wx, &points_.wy, &points_.slope_x, &points_.slope_y, &points_.finite}) {
      *array = arena.take<A>(padded_);
    }
    points_.cell_x = arena.take<int32_t>(padded_);
    points_.cell_y = arena.take<int32_t>(padded_);
    points_.valid = arena.take<bool>(padded_);
  }

  View4 flow_;
  int64_t count_, padded_;
  SampleGrid grid_;
  std::vector<char> memory_;
  PointRow<A> points_;
};

// One row of some channels as rows of A: in place where they lie that way, else in copies. Beyond the last channel
// there are rows of 0 when reading.
template <class T, class A>
class ChannelRows {
 public:
  ChannelRows(int64_t rows, int64_t count) : rows_(rows), count_(count), pointers_(rows), zeros_(count) {}

  const A* const* read(const View4& view, int64_t b, int64_t first, int64_t channels, int64_t row) {
    if (!in_place(view)) {
      copies_.resize(rows_ * count_);
      for (int64_t k = 0; k < channels; ++k) {
        const T* from = plane_row<const T>(view, b, first + k, row);
        A* to = copies_.data() + k * count_;
        for (int64_t i = 0; i < count_; ++i) to[i] = to_float(from[i * view.stride[3]]);
        pointers_[k] = to;
      }
    } else if constexpr (std::is_same_v<T, A>) {
      for (int64_t k = 0; k < channels; ++k) pointers_[k] = plane_row<A>(view, b, first + k, row);
    }
    for (int64_t k = channels; k < rows_; ++k) pointers_[k] = zeros_.data();
    return pointers_.data();
  }

  // Where to write the row; `finish` puts it in its place.
  A* const* write(const View4& view, int64_t b, int64_t first, int64_t channels, int64_t row) {
    if (!in_place(view)) copies_.resize(rows_ * count_);
    for (int64_t k = 0; k < channels; ++k) {
      pointers_[k] = copies_.data() + k * count_;
      if constexpr (std::is_same_v<T, A>) {
        if (in_place(view)) pointers_[k] = plane_row<A>(view, b, first + k, row);
      }
    }
    return pointers_.data();
  }

  void finish(const View4& view, int64_t b, int64_t first, int64_t channels, int64_t row) {
    if (in_place(view)) return;
    for (int64_t k = 0; k < channels; ++k) {
      T* to = plane_row<T>(view, b, first + k, row);
      for (int64_t i = 0; i < count_; ++i) to[i * view.stride[3]] = from_float<T>(pointers_[k][i]);
    }
  }

 private:
  static bool in_place(const View4& view) { return std::is_same_v<T, A> && view.stride[3] == 1; }

  int64_t rows_, count_;
  std::vector<A*> pointers_;
  std::vector<A> zeros_, copies_;
};

// Zeroes what the points that read nothing read, and the cell to the left of row y, the first that is packed.
template <class A>
void clear_outside(const PackedShape& shape, int64_t y, A* image) {
  const int64_t line = shape.pitch() * shape.lanes;
  std::fill(image, image + 2 * line, A(0));
  std::fill(image + (y + 2) * line, image + (y + 2) * line + shape.lanes, A(0));
}

// Packs row y of an image, and the cells to the right of it, and below the last row.
template <class T, class A>
void pack_row(const CellKernels<A>& kernels, const PackedShape& shape, bool border, ChannelRows<T, A>& rows,
              const View4& x, int64_t b, int64_t first, int64_t channels, int64_t y, A* image) {
  const int64_t line = shape.pitch() * shape.lanes, cell = shape.lanes;
  A* to = image + (y + 2) * line + cell;
  if (std::is_same_v<T, A> && x.stride[1] == 1 && channels == cell) {  // channels_last
    const T* from = plane_row<const T>(x, b, first, y);
    for (int64_t i = 0; i < shape.width; ++i) {
      for (int64_t k = 0; k < cell; ++k) to[i * cell + k] = to_float(from[i * x.stride[3] + k]);
    }
  } else {
    kernels.pack(rows.read(x, b, first, channels, y), shape.width, to);
  }
  A* right = to + shape.width * cell;
  for (int64_t k = 0; k < cell; ++k) right[k] = border ? right[k - cell] : A(0);
  if (y != shape.height - 1) return;
  if (border) {
    std::copy(to, to + line, to + line);
  } else {
    std::fill(to + line, to + 2 * line, A(0));
  }
}

// Zeroes row y of a packed gradient, and the cells around that belong to it.
template <class A>
void clear_row(const PackedShape& shape, int64_t y, A* image) {
  const int64_t line = shape.pitch() * shape.lanes;
  A* begin = y == 0 ? image : image + (y + 2) * line + shape.lanes;
  A* end = image + (y + 3) * line + shape.lanes;
  std::fill(begin, y == shape.height - 1 ? end + line : end, A(0));
}

// Row y of a packed gradient to the planes of grad (contiguous rows of A). With border padding the cells to the right
// and below stand for their neighbours; their weights were 0, but 0 times a gradient that is not finite counts.
template <class A>
void unpack_row(const CellKernels<A>& kernels, const PackedShape& shape, bool border, const View4& grad, int64_t b,
                int64_t first, int64_t channels, int64_t y, A* image) {
  const int64_t line = shape.pitch() * shape.lanes, cell = shape.lanes;
  A* from = image + (y + 2) * line + cell;
  if (border) {
    if (y == shape.height - 1) {
      for (int64_t i = 0; i < line; ++i) from[i] += from[i + line];
    }
    A* last = from + (shape.width - 1) * cell;
    for (int64_t k = 0; k < cell; ++k) last[k] += last[k + cell];
  }
  A* rows[kMaxLanes];
  for (int64_t k = 0; k < channels; ++k) rows[k] = plane_row<A>(grad, b, first + k, y);
  kernels.unpack(from, shape.width, channels, rows);
}

}  // namespace cosegflow

// Sampling a packed image along rows of points, behind a table of functions for each instruction set.
//
// A packed image holds a few channels of one image with their values side by side: a pixel is a *cell* of L numbers,
// one vector, so a tap is one load whatever the flow, and its weight one broadcast. Around the image lie cells that
// make every tap of every point readable, so nothing asks whether a tap is inside:
//
//     row 0, 1       0: points that are wholly outside, or not finite, read here
//     row y + 2      the pixels of row y at columns 1 to W; column W + 1 is column 0 of the next row, one more cell
//     row H + 2      below the image
//
// With padding "zeros" the cells around are 0; with "border" those to the right and below repeat the image (points
// never lie to the left or above then). A gradient is summed into an image of the same shape, whose surroundings are
// dropped.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cosegflow {

struct PackedShape {
  int64_t height = 0, width = 0;  // of the image
  int64_t lanes = 0;              // of a cell

  int64_t pitch() const { return width + 1; }  // cells from a row to the next
  int64_t rows() const { return height + 3; }
  int64_t cells() const { return rows() * pitch() + 1; }
  int64_t elements() const { return cells() * lanes; }
};

// What a row of points needs to know of the image.
struct SampleGrid {
  int64_t height = 0, width = 0;
  bool nearest = false, border = false;
};

// The points of one row of the output; arrays of a multiple of kRowStep elements, aligned to 64 bytes.
template <class A>
struct PointRow {
  A *flow_x = nullptr, *flow_y = nullptr;               // in; NaN in the padding
  int32_t *cell_x = nullptr, *cell_y = nullptr;         // the top left tap's cell: column, row
  A* weight[4] = {nullptr, nullptr, nullptr, nullptr};  // top left, top right, bottom left, bottom right
  A *wx = nullptr, *wy = nullptr;                       // the fractions to the next column and row
  A *slope_x = nullptr, *slope_y = nullptr;             // 0 where padding or rounding holds the point, else 1
  A* finite = nullptr;                                  // 1 or 0
  bool* valid = nullptr;
};

constexpr int64_t kRowStep = 16;   // the lanes of the widest vector
constexpr int64_t kMaxLanes = 16;  // of a cell

// For cells of `lanes` numbers.
template <class A>
struct CellKernels {
  int64_t lanes;
  // cells <- rows: cell i, lane k = rows[k][i], for `count` cells.
  void (*pack)(const A* const* rows, int64_t count, A* cells);
  // rows <- cells, `channels` of them.
  void (*unpack)(const A* cells, int64_t count, int64_t channels, A* const* rows);
  // rows[k][i] = the sample of channel k at point i.
  void (*sample)(const A* image, int64_t pitch, const PointRow<A>&, int64_t count, int64_t channels, bool nearest,
                 A* const* rows);
  // image += the shares of grads[k][i], in rows [begin, end) of the packed image. `grads` has `lanes` pointers.
  void (*scatter)(A* image, int64_t pitch, const PointRow<A>&, int64_t count, bool nearest, int64_t begin, int64_t end,
                  const A* const* grads);
  // sum_x[i], sum_y[i] = the gradient to point i from these channels. `grads` has `lanes` pointers; sum_x and sum_y
  // have a multiple of kRowStep elements.
  void (*point_gradient)(const A* image, int64_t pitch, const PointRow<A>&, int64_t count, const A* const* grads,
                         A* sum_x, A* sum_y);
};

template <class A>
struct SampleKernels {
  // Fills a row of points, that of row `row` of the output, from its flow.
  void (*points)(const PointRow<A>&, int64_t row, int64_t count, const SampleGrid&);
  CellKernels<A> few;   // 4 lanes: for up to 4 channels
  CellKernels<A> many;  // as many as a vector has, but at least 4
};

// The table for this machine, or for the lower instruction set that COSEGFLOW_CPU_ISA=scalar|avx2|avx512 asks for.
template <class A>
const SampleKernels<A>& sample_kernels();

// One table per file sample/sample_<isa>.cpp.
extern const SampleKernels<float> kSampleScalarFloat, kSampleAvx2Float, kSampleAvx512Float;
extern const SampleKernels<double> kSampleScalarDouble, kSampleAvx2Double, kSampleAvx512Double;

}  // namespace cosegflow

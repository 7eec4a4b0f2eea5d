// warp on the CPU, backward, on packed images (sample/sample_kernels.h).
//
// The gradient to flow at a point is a sum over channels: in vectors within a block, then over the blocks in their
// order. The gradient to x is summed into packed images: a band of rows of one belongs to one task, which goes over the
// points in raster order. So nothing is atomic, and each sum has one order whatever the number of threads.
#include <vector>

#include "common/dispatch.h"
#include "common/warp_checks.h"
#include "cpu/warp_blocks_cpu.h"

namespace cosegflow {
namespace {

struct Wants {
  bool x, flow;
};

// Adds to a row of the gradient to flow; the first block writes it.
template <class A>
void add_flow_gradient(const WarpParams& p, int64_t b, int64_t row, bool first, const A* sum_x, const A* sum_y) {
  const A* sums[2] = {sum_x, sum_y};
  const int64_t step = p.grad_flow.stride[3];
  for (int64_t c = 0; c < 2; ++c) {
    A* to = plane_row<A>(p.grad_flow, b, c, row);
    for (int64_t i = 0; i < p.out_width; ++i) to[i * step] = first ? sums[c][i] : to[i * step] + sums[c][i];
  }
}

template <class A>
void zero_flow_gradient(const WarpParams& p) {
  const std::vector<A> zeros(p.out_width);
  for (int64_t i = 0; i < p.batch * p.out_height; ++i) {
    add_flow_gradient(p, i / p.out_height, i % p.out_height, true, zeros.data(), zeros.data());
  }
}

// Rows of the image that a band owns, as rows of the packed image: the rows around go with the first and the last.
struct Band {
  int64_t first, end;  // of the image
  int64_t packed_first, packed_end;
  Band(const PackedShape& shape, int64_t part, int64_t parts)
      : first(shape.height * part / parts),
        end(shape.height * (part + 1) / parts),
        packed_first(part == 0 ? 0 : first + 2),
        packed_end(part == parts - 1 ? shape.rows() : end + 2) {}
};

// A part of a unit: some rows of the gradient to flow, and a band of the gradient to x.
template <class T, class A>
struct BackwardTask {
  const WarpBlocks<A>& work;
  Wants wants;
  A* partial;  // gradients to flow of (unit, row): x, then y
  Scratch scratch;
  PointRows<A> points;
  ChannelRows<T, A> in, grads;

  BackwardTask(const WarpBlocks<A>& blocks, Wants wanted, A* sums)
      : work(blocks),
        wants(wanted),
        partial(sums),
        scratch((wants.x + wants.flow) * blocks.stride * sizeof(A)),
        points(blocks.p.flow, blocks.p.out_width, sample_grid(blocks.p)),
        in(blocks.lanes(), blocks.p.width),
        grads(blocks.lanes(), blocks.p.out_width) {}

  void operator()(int64_t b, int64_t block, int64_t part, int64_t parts) {
    const WarpParams& p = work.p;
    const int64_t begin = p.out_height * part / parts, end = p.out_height * (part + 1) / parts;
    const Band band(work.shape, part, parts);
    A* image = static_cast<A*>(scratch.data());
    A* grad = image + (wants.flow ? work.stride : 0);
    if (wants.flow) work.pack_for(in, points, b, block, begin, end, image);
    for (int64_t y = band.first; wants.x && y < band.end; ++y) clear_row(work.shape, y, grad);
    if (wants.x) std::fill_n(grad + (band.first + 2) * work.shape.pitch() * work.lanes(), work.lanes(), A(0));
    for (int64_t row = wants.x ? 0 : begin; row < (wants.x ? p.out_height : end); ++row) {
      const PointRow<A>& line = points.fill(b, row);
      const A* const* g = grads.read(p.grad_out, b, work.first_channel(block), work.channels(block), row);
      if (wants.flow && row >= begin && row < end) {
        A* sums = partial + ((b * work.blocks + block) * p.out_height + row) * 2 * points.padded();
        work.kernels.point_gradient(image, work.shape.pitch(), line, p.out_width, g, sums, sums + points.padded());
      }
      if (wants.x) {
        work.kernels.scatter(grad, work.shape.pitch(), line, p.out_width, p.mode == WarpMode::kNearest,
                             band.packed_first, band.packed_end, g);
      }
    }
    for (int64_t y = band.first; wants.x && y < band.end; ++y) work.unpack(b, block, y, grad);
  }
};

template <class T, class A>
void backward_separately(const WarpBlocks<A>& work, const CpuRuntime& runtime, Wants wants) {
  const WarpParams& p = work.p;
  const int64_t line = 2 * round_up(p.out_width, kRowStep);
  const Scratch sums(wants.flow ? p.batch * work.blocks * p.out_height * line * sizeof(A) : 0);
  A* partial = static_cast<A*>(sums.data());
  work.for_each_part(runtime, [&] { return BackwardTask<T, A>(work, wants, partial); });
  if (!wants.flow) return;
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (line * work.blocks));
  parallel_for(runtime, p.batch * p.out_height, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / p.out_height, row = i % p.out_height;
      for (int64_t block = 0; block < work.blocks; ++block) {
        const A* sum = partial + ((b * work.blocks + block) * p.out_height + row) * line;
        add_flow_gradient(p, b, row, block == 0, sum, sum + line / 2);
      }
    }
  });
}

// The gradient to flow from the blocks of the chunk.
template <class T, class A>
void flow_gradient(const WarpBlocks<A>& work, const CpuRuntime& runtime, A* packed) {
  const WarpParams& p = work.p;
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (p.out_width * work.chunk_blocks * work.lanes()));
  parallel_for(runtime, work.images * p.out_height, grain, [&](int64_t begin, int64_t end) {
    PointRows<A> points(p.flow, p.out_width, sample_grid(p));
    ChannelRows<T, A> grads(work.lanes(), p.out_width);
    std::vector<A> sum_x(points.padded()), sum_y(points.padded());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = work.first_image + i / p.out_height, row = i % p.out_height;
      const PointRow<A>& line = points.fill(b, row);
      for (int64_t block = work.first_block; block < work.first_block + work.chunk_blocks; ++block) {
        work.kernels.point_gradient(work.packed(packed, b, block), work.shape.pitch(), line, p.out_width,
                                    grads.read(p.grad_out, b, work.first_channel(block), work.channels(block), row),
                                    sum_x.data(), sum_y.data());
        add_flow_gradient(p, b, row, block == 0, sum_x.data(), sum_y.data());
      }
    }
  });
}

// The gradient to x of the chunk's units, into packed images.
template <class T, class A>
void scatter(const WarpBlocks<A>& work, const CpuRuntime& runtime, A* packed) {
  const WarpParams& p = work.p;
  const int64_t units = work.images * work.chunk_blocks;
  const int64_t bands = std::min<int64_t>(units >= 4 * thread_count(runtime) ? 1 : thread_count(runtime), p.height);
  parallel_for(runtime, units * bands, 1, [&](int64_t begin, int64_t end) {
    PointRows<A> points(p.flow, p.out_width, sample_grid(p));
    ChannelRows<T, A> grads(work.lanes(), p.out_width);
    for (int64_t i = begin; i < end; ++i) {
      const Band band(work.shape, i % bands, bands);
      const int64_t b = work.first_image + i / bands / work.chunk_blocks;
      const int64_t block = work.first_block + i / bands % work.chunk_blocks;
      for (int64_t row = 0; row < p.out_height; ++row) {
        work.kernels.scatter(work.packed(packed, b, block), work.shape.pitch(), points.fill(b, row), p.out_width,
                             p.mode == WarpMode::kNearest, band.packed_first, band.packed_end,
                             grads.read(p.grad_out, b, work.first_channel(block), work.channels(block), row));
      }
    }
  });
}

template <class T, class A>
void backward_together(WarpBlocks<A>& work, const CpuRuntime& runtime, Wants wants) {
  const WarpParams& p = work.p;
  const size_t bytes = work.packed_bytes();
  const Scratch scratch((wants.x + wants.flow) * bytes);
  A* x_memory = static_cast<A*>(scratch.data());
  A* grad_memory = x_memory + (wants.flow ? bytes / sizeof(A) : 0);
  work.for_each_chunk([&] {
    work.for_each_packed_row(runtime, [&] {
      return [&, rows = ChannelRows<T, A>(work.lanes(), p.width)](int64_t b, int64_t block, int64_t y) mutable {
        A* image = work.packed(x_memory, b, block);
        if (wants.flow && y == 0) clear_outside(work.shape, 0, image);
        if (wants.flow) work.pack(rows, b, block, y, image);
        if (wants.x) clear_row(work.shape, y, work.packed(grad_memory, b, block));
      };
    });
    if (wants.flow) flow_gradient<T>(work, runtime, x_memory);
    if (!wants.x) return;
    scatter<T>(work, runtime, grad_memory);
    work.for_each_packed_row(runtime, [&] {
      return [&](int64_t b, int64_t block, int64_t y) { work.unpack(b, block, y, work.packed(grad_memory, b, block)); };
    });
  });
}

}  // namespace

Status warp_backward_cpu(const WarpParams& p, const CpuRuntime& runtime) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    if (p.grad_flow.data != nullptr && p.mode == WarpMode::kNearest) zero_flow_gradient<A>(p);
    const Wants wants{p.grad_x.data != nullptr, p.grad_flow.data != nullptr && p.mode != WarpMode::kNearest};
    if (!wants.x && !wants.flow) return {};
    WarpBlocks<A> work(p);
    work.separately(runtime) ? backward_separately<T>(work, runtime, wants)
                             : backward_together<T>(work, runtime, wants);
    return {};
  });
}

}  // namespace cosegflow

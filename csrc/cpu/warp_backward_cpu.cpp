// warp on the CPU, backward, on packed images (sample/sample_kernels.h).
//
// The gradient to flow runs over rows of the output; each point sums over the channels in vectors. The gradient to x is
// summed into packed images: a band of rows of one belongs to one task, which goes over the points in raster order. So
// nothing is atomic, and each sum has one order whatever the number of threads.
#include <vector>

#include "common/dispatch.h"
#include "cosegflow/warp.h"
#include "cpu/scratch_cpu.h"
#include "cpu/warp_blocks_cpu.h"

namespace cosegflow {
namespace {

// The gradient to flow from the channels of the chunk, added to that of the chunks before.
template <class T, class A>
void flow_gradient(const WarpBlocks<A>& work, const CpuRuntime& runtime, const A* packed) {
  const WarpParams& p = work.p;
  const int64_t first = work.first_channel(0);
  const int64_t channels = std::min(p.channels - first, work.chunk_blocks * work.lanes());
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (p.out_width * channels));
  parallel_for(runtime, work.images * p.out_height, grain, [&](int64_t begin, int64_t end) {
    PointRows<A> points(p.flow, p.out_width, sample_grid(p));
    ChannelRows<T, A> grads(work.chunk_blocks * work.lanes(), p.out_width);
    std::vector<A> sum_x(points.padded()), sum_y(points.padded());
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / p.out_height, b = work.first_image + image, row = i % p.out_height;
      work.kernels.point_gradient(packed + image * work.chunk_blocks * work.stride, work.stride, work.chunk_blocks,
                                  work.shape.pitch(), points.fill(b, row), p.out_width,
                                  grads.read(p.grad_out, b, first, channels, row), sum_x.data(), sum_y.data());
      A* to_x = plane_row<A>(p.grad_flow, b, 0, row);
      A* to_y = plane_row<A>(p.grad_flow, b, 1, row);
      const int64_t step = p.grad_flow.stride[3];
      for (int64_t j = 0; j < p.out_width; ++j) {
        to_x[j * step] = (work.first_block == 0 ? A(0) : to_x[j * step]) + sum_x[j];
        to_y[j * step] = (work.first_block == 0 ? A(0) : to_y[j * step]) + sum_y[j];
      }
    }
  });
}

template <class A>
void zero_flow_gradient(const WarpParams& p) {
  for (int64_t i = 0; i < p.batch * 2 * p.out_height; ++i) {
    A* to = plane_row<A>(p.grad_flow, i / p.out_height / 2, i / p.out_height % 2, i % p.out_height);
    for (int64_t j = 0; j < p.out_width; ++j) to[j * p.grad_flow.stride[3]] = A(0);
  }
}

// The gradient to x of the chunk's channels, into packed images.
template <class T, class A>
void scatter(const WarpBlocks<A>& work, const CpuRuntime& runtime, A* packed) {
  const WarpParams& p = work.p;
  const int64_t threads = thread_count(runtime), images = work.packed_images();
  // Blocks that share the points of a row, as long as every thread has work; else bands.
  const int64_t together = std::max<int64_t>(1, std::min<int64_t>(8, images / threads));
  const int64_t groups = (work.chunk_blocks + together - 1) / together, tasks = work.images * groups;
  const int64_t bands = std::min(tasks >= threads ? 1 : (threads + tasks - 1) / tasks, work.shape.rows());
  parallel_for(runtime, tasks * bands, 1, [&](int64_t begin, int64_t end) {
    PointRows<A> points(p.flow, p.out_width, sample_grid(p));
    ChannelRows<T, A> grads(work.lanes(), p.out_width);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t band = i % bands, group = i / bands % groups, image = i / bands / groups;
      const int64_t b = work.first_image + image, last = std::min(work.chunk_blocks, (group + 1) * together);
      for (int64_t row = 0; row < p.out_height; ++row) {
        const PointRow<A>& line = points.fill(b, row);
        for (int64_t block = group * together; block < last; ++block) {
          work.kernels.scatter(work.packed(packed, image, block), work.shape.pitch(), line, p.out_width,
                               p.mode == WarpMode::kNearest, work.shape.rows() * band / bands,
                               work.shape.rows() * (band + 1) / bands,
                               grads.read(p.grad_out, b, work.first_channel(block), work.channels(block), row));
        }
      }
    }
  });
}

template <class T>
void backward(const WarpParams& p, const CpuRuntime& runtime) {
  using A = accumulate_t<T>;
  const bool border = p.padding == WarpPadding::kBorder;
  const bool wants_x = p.grad_x.data != nullptr;
  if (p.grad_flow.data != nullptr && p.mode == WarpMode::kNearest) zero_flow_gradient<A>(p);
  const bool wants_flow = p.grad_flow.data != nullptr && p.mode != WarpMode::kNearest;
  if (!wants_x && !wants_flow) return;
  WarpBlocks<A> work(p);
  const size_t bytes = work.packed_bytes();
  const Scratch scratch((wants_flow ? bytes : 0) + (wants_x ? bytes : 0));
  A* x_memory = static_cast<A*>(scratch.data());
  A* grad_memory = x_memory + (wants_flow ? bytes / sizeof(A) : 0);
  work.for_each_chunk([&] {
    work.for_each_packed_row(runtime, [&] {
      return [&, rows = ChannelRows<T, A>(work.lanes(), p.width)](int64_t image, int64_t block, int64_t y) mutable {
        if (wants_flow) {
          pack_row(work.kernels, work.shape, border, rows, p.x, work.first_image + image, work.first_channel(block),
                   work.channels(block), y, work.packed(x_memory, image, block));
        }
        if (wants_x) clear_row(work.shape, y, work.packed(grad_memory, image, block));
      };
    });
    if (wants_flow) flow_gradient<T>(work, runtime, static_cast<const A*>(x_memory));
    if (!wants_x) return;
    scatter<T>(work, runtime, grad_memory);
    work.for_each_packed_row(runtime, [&] {
      return [&](int64_t image, int64_t block, int64_t y) {
        unpack_row(work.kernels, work.shape, border, p.grad_x, work.first_image + image, work.first_channel(block),
                   work.channels(block), y, work.packed(grad_memory, image, block));
      };
    });
  });
}

}  // namespace

Status warp_backward_cpu(const WarpParams& p, const CpuRuntime& runtime) {
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    backward<typename decltype(tag)::type>(p, runtime);
    return {};
  });
}

}  // namespace cosegflow

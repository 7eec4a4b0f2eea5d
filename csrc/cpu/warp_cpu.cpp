// warp on the CPU, forward. A few channels at a time are packed so that a pixel's values lie side by side, and sampled
// from there (sample/sample_kernels.h): a tap of 16 channels is then one load of one cache line instead of 16 gathered
// numbers, which pays for packing unless there are few points. For few points the taps are read where they lie, with
// the math of common/warp_math.h, as on CUDA.
#include "common/dispatch.h"
#include "common/warp_math.h"
#include "cosegflow/warp.h"
#include "cpu/scratch_cpu.h"
#include "cpu/warp_blocks_cpu.h"

namespace cosegflow {
namespace {

constexpr int64_t kBlocksPerTask = 4;  // share the points of a row

void write_valid(const WarpParams& p, int64_t b, int64_t row, const bool* valid) {
  if (p.valid.data == nullptr) return;
  bool* to = static_cast<bool*>(p.valid.data) + b * p.valid.stride[0] + row * p.valid.stride[1];
  for (int64_t i = 0; i < p.out_width; ++i) to[i * p.valid.stride[2]] = valid[i];
}

template <class T>
void forward_packed(const WarpParams& p, const CpuRuntime& runtime) {
  using A = accumulate_t<T>;
  WarpBlocks<A> work(p);
  const Scratch scratch(work.packed_bytes());
  A* memory = static_cast<A*>(scratch.data());
  work.for_each_chunk([&] {
    work.for_each_packed_row(runtime, [&] {
      return [&, rows = ChannelRows<T, A>(work.lanes(), p.width)](int64_t image, int64_t block, int64_t y) mutable {
        pack_row(work.kernels, work.shape, p.padding == WarpPadding::kBorder, rows, p.x, work.first_image + image,
                 work.first_channel(block), work.channels(block), y, work.packed(memory, image, block));
      };
    });
    const int64_t groups = (work.chunk_blocks + kBlocksPerTask - 1) / kBlocksPerTask;
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (p.out_width * work.lanes()));
    parallel_for(runtime, work.images * groups * p.out_height, grain, [&](int64_t begin, int64_t end) {
      PointRows<A> points(p.flow, p.out_width, sample_grid(p));
      ChannelRows<T, A> rows(work.lanes(), p.out_width);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i % p.out_height, group = i / p.out_height % groups, image = i / p.out_height / groups;
        const int64_t b = work.first_image + image;
        const PointRow<A>& line = points.fill(b, row);
        const int64_t last = std::min(work.chunk_blocks, (group + 1) * kBlocksPerTask);
        for (int64_t block = group * kBlocksPerTask; block < last; ++block) {
          const int64_t first = work.first_channel(block), channels = work.channels(block);
          work.kernels.sample(work.packed(memory, image, block), work.shape.pitch(), line, p.out_width, channels,
                              p.mode == WarpMode::kNearest, rows.write(p.out, b, first, channels, row));
          rows.finish(p.out, b, first, channels, row);
        }
        if (work.first_block == 0 && group == 0) write_valid(p, b, row, line.valid);
      }
    });
  });
}

template <class T>
void forward_row(const WarpParams& p, int64_t b, int64_t row) {
  using A = accumulate_t<T>;
  const A* flow_x = plane_row<const A>(p.flow, b, 0, row);
  const A* flow_y = plane_row<const A>(p.flow, b, 1, row);
  for (int64_t column = 0; column < p.out_width; ++column) {
    const int64_t offset = column * p.flow.stride[3];
    const WarpPoint<A> point =
        warp_point(flow_x[offset], flow_y[offset], column, row, p.width, p.height, p.mode, p.padding);
    const WarpTaps<A> taps = warp_taps(point, p.width, p.height, p.x.stride[3], p.x.stride[2], p.padding);
    for (int64_t c = 0; c < p.channels; ++c) {
      plane_row<T>(p.out, b, c, row)[column * p.out.stride[3]] =
          from_float<T>(warp_sample(taps, plane_row<const T>(p.x, b, c, 0)));
    }
    if (p.valid.data != nullptr) {
      static_cast<bool*>(p.valid.data)[b * p.valid.stride[0] + row * p.valid.stride[1] + column * p.valid.stride[2]] =
          point.valid;
    }
  }
}

}  // namespace

Status warp_forward_cpu(const WarpParams& p, const CpuRuntime& runtime) {
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    if (2 * p.out_height * p.out_width >= p.height * p.width) {
      forward_packed<T>(p, runtime);
      return {};
    }
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (p.out_width * p.channels));
    parallel_for(runtime, p.batch * p.out_height, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) forward_row<T>(p, i / p.out_height, i % p.out_height);
    });
    return {};
  });
}

}  // namespace cosegflow

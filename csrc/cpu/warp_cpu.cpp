// warp on the CPU, forward. A few channels at a time are packed so that a pixel's values lie side by side, and sampled
// from there (sample/sample_kernels.h): a tap of 16 channels is then one load of one cache line instead of 16 gathered
// numbers, which pays for packing unless there are few points. For few points the taps are read where they lie, with
// the math of common/warp_math.h, as on CUDA.
#include "common/dispatch.h"
#include "common/warp_checks.h"
#include "common/warp_math.h"
#include "cpu/warp_blocks_cpu.h"

namespace cosegflow {
namespace {

void write_valid(const WarpParams& p, int64_t b, int64_t row, const bool* valid) {
  if (p.valid.data == nullptr) return;
  bool* to = static_cast<bool*>(p.valid.data) + b * p.valid.stride[0] + row * p.valid.stride[1];
  for (int64_t i = 0; i < p.out_width; ++i) to[i * p.valid.stride[2]] = valid[i];
}

// One row of the output, of one block of channels.
template <class T, class A>
void sample_row(const WarpBlocks<A>& work, ChannelRows<T, A>& rows, const PointRow<A>& points, const A* image,
                int64_t b, int64_t block, int64_t row) {
  const WarpParams& p = work.p;
  const int64_t first = work.first_channel(block), channels = work.channels(block);
  work.kernels.sample(image, work.shape.pitch(), points, p.out_width, channels, p.mode == WarpMode::kNearest,
                      rows.write(p.out, b, first, channels, row));
  rows.finish(p.out, b, first, channels, row);
  if (block == 0) write_valid(p, b, row, points.valid);
}

template <class T, class A>
void forward_separately(const WarpBlocks<A>& work, const CpuRuntime& runtime) {
  const WarpParams& p = work.p;
  work.for_each_part(runtime, [&] {
    struct Task {
      const WarpBlocks<A>& work;
      Scratch scratch;
      PointRows<A> points;
      ChannelRows<T, A> in, out;
      void operator()(int64_t b, int64_t block, int64_t part, int64_t parts) {
        const WarpParams& p = work.p;
        A* image = static_cast<A*>(scratch.data());
        const int64_t begin = p.out_height * part / parts, end = p.out_height * (part + 1) / parts;
        work.pack_for(in, points, b, block, begin, end, image);
        for (int64_t row = begin; row < end; ++row) {
          sample_row(work, out, points.fill(b, row), image, b, block, row);
        }
      }
    };
    return Task{work, Scratch(work.stride * sizeof(A)), PointRows<A>(p.flow, p.out_width, sample_grid(p)),
                ChannelRows<T, A>(work.lanes(), p.width), ChannelRows<T, A>(work.lanes(), p.out_width)};
  });
}

template <class T, class A>
void forward_together(WarpBlocks<A>& work, const CpuRuntime& runtime) {
  const WarpParams& p = work.p;
  const Scratch scratch(work.packed_bytes());
  A* memory = static_cast<A*>(scratch.data());
  work.for_each_chunk([&] {
    work.for_each_packed_row(runtime, [&] {
      return [&, rows = ChannelRows<T, A>(work.lanes(), p.width)](int64_t b, int64_t block, int64_t y) mutable {
        A* image = work.packed(memory, b, block);
        if (y == 0) clear_outside(work.shape, 0, image);
        work.pack(rows, b, block, y, image);
      };
    });
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (p.out_width * work.chunk_blocks * work.lanes()));
    parallel_for(runtime, work.images * p.out_height, grain, [&](int64_t begin, int64_t end) {
      PointRows<A> points(p.flow, p.out_width, sample_grid(p));
      ChannelRows<T, A> rows(work.lanes(), p.out_width);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = work.first_image + i / p.out_height, row = i % p.out_height;
        const PointRow<A>& line = points.fill(b, row);
        for (int64_t block = work.first_block; block < work.first_block + work.chunk_blocks; ++block) {
          sample_row(work, rows, line, work.packed(memory, b, block), b, block, row);
        }
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
  if (Status s = check_forward(p); !s.ok() || p.batch == 0) return s;
  return dispatch_floating(p.x.dtype, [&](auto tag) -> Status {
    using T = typename decltype(tag)::type;
    if (2 * p.out_height * p.out_width >= p.height * p.width) {
      WarpBlocks<accumulate_t<T>> work(p);
      work.separately(runtime) ? forward_separately<T>(work, runtime) : forward_together<T>(work, runtime);
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

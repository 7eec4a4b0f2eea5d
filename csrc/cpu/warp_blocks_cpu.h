// How warp's work is cut on the CPU. Channels go into blocks of a cell's lanes; a *unit* is one block of one image.
//
// Where a unit's packed images are small, a task takes a unit (or a part of its rows, if there are fewer units than
// threads) through all steps in memory of its own thread, which stays in its cache, and threads meet once at the end.
// Where they are large, all threads share the packed images of one chunk of units and meet after every step, so that
// memory stays bounded: by kPackedBytes, or by one unit where that alone is larger. Both form every sum in the same
// order.
#pragma once

#include <algorithm>

#include "cosegflow/warp.h"
#include "cpu/runtime_cpu.h"
#include "cpu/sample/sample_rows_cpu.h"
#include "cpu/scratch_cpu.h"

namespace cosegflow {

constexpr int64_t kPackedBytes = 8 << 20;
constexpr int64_t kOwnBytes = 16 << 20;  // of all threads' own packed images together, for each of x and its gradient
constexpr int64_t kElementsPerTask = 131072;  // about what is worth another thread

inline SampleGrid sample_grid(const WarpParams& p) {
  return {p.height, p.width, p.mode == WarpMode::kNearest, p.padding == WarpPadding::kBorder};
}

template <class A>
struct WarpBlocks {
  const WarpParams& p;
  const CellKernels<A>& kernels;
  PackedShape shape;
  int64_t blocks, stride;  // of all channels; elements from one packed image to the next
  bool border;
  // the chunk
  int64_t first_image = 0, images = 0, first_block = 0, chunk_blocks = 0;

  explicit WarpBlocks(const WarpParams& params)
      : p(params),
        kernels(params.channels <= sample_kernels<A>().few.lanes ? sample_kernels<A>().few : sample_kernels<A>().many),
        shape{params.height, params.width, kernels.lanes},
        blocks(ceil_div(params.channels, kernels.lanes)),
        stride(round_up(shape.elements(), kRowStep)),
        border(params.padding == WarpPadding::kBorder) {}

  int64_t lanes() const { return kernels.lanes; }
  // Channels of a block: where they begin and how many there are.
  int64_t first_channel(int64_t block) const { return block * lanes(); }
  int64_t channels(int64_t block) const { return std::min(lanes(), p.channels - first_channel(block)); }

  template <class T>
  void pack(ChannelRows<T, A>& rows, int64_t b, int64_t block, int64_t y, A* image) const {
    pack_row(kernels, shape, border, rows, p.x, b, first_channel(block), channels(block), y, image);
  }
  void unpack(int64_t b, int64_t block, int64_t y, A* image) const {
    unpack_row(kernels, shape, border, p.grad_x, b, first_channel(block), channels(block), y, image);
  }

  // Whether each task takes a unit, or a part of one, by itself.
  bool separately(const CpuRuntime& runtime) const {
    return thread_count(runtime) * stride * static_cast<int64_t>(sizeof(A)) <= kOwnBytes;
  }

  // Calls make() once per thread's share for a function f, then f(b, block, part, parts) for the parts of every unit.
  template <class Make>
  void for_each_part(const CpuRuntime& runtime, Make&& make) const {
    const int64_t units = p.batch * blocks;
    const int64_t elements = std::max(p.height * p.width, p.out_height * p.out_width) * lanes();
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / elements);
    const int64_t wanted = units >= thread_count(runtime) ? 1 : ceil_div(thread_count(runtime), units);
    const int64_t parts = std::min(std::min(wanted, std::max<int64_t>(1, elements / kElementsPerTask)), p.height);
    parallel_for(runtime, units * parts, grain, [&](int64_t begin, int64_t end) {
      auto body = make();
      for (int64_t i = begin; i < end; ++i) body(i / parts / blocks, i / parts % blocks, i % parts, parts);
    });
  }

  // Packs the rows of the unit that rows [begin, end) of the output read.
  template <class T>
  void pack_for(ChannelRows<T, A>& rows, PointRows<A>& points, int64_t b, int64_t block, int64_t begin, int64_t end,
                A* image) const {
    int64_t first = 0, last = p.height - 1;
    if (end - begin < p.out_height) {
      int32_t lowest = INT32_MAX, highest = 0;
      for (int64_t row = begin; row < end; ++row) {
        const PointRow<A>& line = points.fill(b, row);
        for (int64_t i = 0; i < p.out_width; ++i) {  // points that read nothing are in row 0
          lowest = std::min(lowest, line.cell_y[i] == 0 ? INT32_MAX : line.cell_y[i]);
          highest = std::max(highest, line.cell_y[i]);
        }
      }
      first = std::max<int64_t>(0, int64_t{lowest} - 2);
      last = std::min<int64_t>(p.height - 1, int64_t{highest} - 1);
    }
    clear_outside(shape, std::min(first, p.height - 1), image);
    for (int64_t y = first; y <= last; ++y) pack(rows, b, block, y, image);
  }

  // The shared way: the packed images of the chunk.
  A* packed(A* memory, int64_t image, int64_t block) const {
    return memory + ((image - first_image) * chunk_blocks + block - first_block) * stride;
  }
  int64_t fit() const { return std::max<int64_t>(1, kPackedBytes / static_cast<int64_t>(stride * sizeof(A))); }
  int64_t images_at_once() const { return std::min(p.batch, std::max<int64_t>(1, fit() / blocks)); }
  int64_t blocks_at_once() const { return std::min(blocks, fit()); }
  // Of one set of packed images, which serves every chunk.
  size_t packed_bytes() const { return images_at_once() * blocks_at_once() * stride * sizeof(A); }

  // Calls body() for one chunk after another: some whole images, or some blocks of one.
  template <class Body>
  void for_each_chunk(Body&& body) {
    for (first_image = 0; first_image < p.batch; first_image += images_at_once()) {
      images = std::min(images_at_once(), p.batch - first_image);
      for (first_block = 0; first_block < blocks; first_block += blocks_at_once()) {
        chunk_blocks = std::min(blocks_at_once(), blocks - first_block);
        body();
      }
    }
  }

  // Calls make() once per thread's share for a function f, then f(b, block, y) for every row of the chunk's units.
  template <class Make>
  void for_each_packed_row(const CpuRuntime& runtime, Make&& make) const {
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (p.width * lanes()));
    parallel_for(runtime, images * chunk_blocks * p.height, grain, [&](int64_t begin, int64_t end) {
      auto body = make();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t unit = i / p.height;
        body(first_image + unit / chunk_blocks, first_block + unit % chunk_blocks, i % p.height);
      }
    });
  }
};

}  // namespace cosegflow

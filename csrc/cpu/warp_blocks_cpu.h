// How warp's work is cut on the CPU: channels into blocks of a cell's lanes, blocks and images into chunks whose packed
// images fit a bounded memory (or one block, where that alone is larger).
#pragma once

#include <algorithm>

#include "cosegflow/warp.h"
#include "cpu/runtime_cpu.h"
#include "cpu/sample/sample_rows_cpu.h"

namespace cosegflow {

constexpr int64_t kPackedBytes = 5 << 20;    // of the packed images of a chunk, at most
constexpr int64_t kElementsPerTask = 16384;  // about what is worth another thread

inline SampleGrid sample_grid(const WarpParams& p) {
  return {p.height, p.width, p.mode == WarpMode::kNearest, p.padding == WarpPadding::kBorder};
}

template <class A>
struct WarpBlocks {
  const WarpParams& p;
  const CellKernels<A>& kernels;
  PackedShape shape;
  int64_t blocks, stride;  // of all channels; elements from one packed image to the next
  // the chunk
  int64_t first_image = 0, images = 0, first_block = 0, chunk_blocks = 0;

  explicit WarpBlocks(const WarpParams& params)
      : p(params),
        kernels(params.channels <= sample_kernels<A>().few.lanes ? sample_kernels<A>().few : sample_kernels<A>().many),
        shape{params.height, params.width, kernels.lanes},
        blocks((params.channels + kernels.lanes - 1) / kernels.lanes),
        stride(round_up(shape.elements(), kRowStep)) {}

  int64_t lanes() const { return kernels.lanes; }
  int64_t packed_images() const { return images * chunk_blocks; }
  A* packed(A* memory, int64_t image, int64_t block) const { return memory + (image * chunk_blocks + block) * stride; }
  // Channels of a block of the chunk: where they begin and how many there are.
  int64_t first_channel(int64_t block) const { return (first_block + block) * lanes(); }
  int64_t channels(int64_t block) const { return std::min(lanes(), p.channels - first_channel(block)); }

  int64_t fit() const { return std::max<int64_t>(1, kPackedBytes / static_cast<int64_t>(stride * sizeof(A))); }
  int64_t images_at_once() const { return std::min(p.batch, std::max<int64_t>(1, fit() / blocks)); }
  int64_t blocks_at_once() const { return std::min(blocks, fit()); }
  // Of one set of packed images, which serves every chunk.
  size_t packed_bytes() const { return images_at_once() * blocks_at_once() * stride * sizeof(A); }

  // Calls body() for one chunk after another: some whole images, or some blocks of one. Where they end does not depend
  // on the threads, and so no sum does.
  template <class Body>
  void for_each_chunk(Body&& body) {
    const int64_t images_at_once = this->images_at_once(), blocks_at_once = this->blocks_at_once();
    for (first_image = 0; first_image < p.batch; first_image += images_at_once) {
      images = std::min(images_at_once, p.batch - first_image);
      for (first_block = 0; first_block < blocks; first_block += blocks_at_once) {
        chunk_blocks = std::min(blocks_at_once, blocks - first_block);
        body();
      }
    }
  }

  // Calls make() once per thread's share for a function f, then f(image, block, y) for every row of every packed image.
  template <class Make>
  void for_each_packed_row(const CpuRuntime& runtime, Make&& make) const {
    const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (p.width * lanes()));
    parallel_for(runtime, packed_images() * p.height, grain, [&](int64_t begin, int64_t end) {
      auto body = make();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t which = i / p.height;
        body(which / chunk_blocks, which % chunk_blocks, i % p.height);
      }
    });
  }
};

}  // namespace cosegflow

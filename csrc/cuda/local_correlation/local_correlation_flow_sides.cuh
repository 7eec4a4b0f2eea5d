// What the launches along a flow share: both sides as rows, where they are or packed, and how images are cut.
#pragma once

#include "common/arena.h"
#include "local_correlation/local_correlation_flow_pack_kernels.cuh"
#include "local_correlation/local_correlation_flow_products_kernel.cuh"
#include "local_correlation/local_correlation_launch.cuh"

namespace cosegflow::local_correlation_cuda {

// One side: rows of its features, and its norms. The workspace has room for packed rows wherever rows are wanted:
// whether a pointer is aligned is not known when workspaces are sized.
template <class T>
struct FlowSide {
  Side<T> side;
  Rows<T> rows{};
  PackedFlowSide<T> packed{};
  int64_t batch;
  accumulate_t<T>* norms = nullptr;
  bool wanted;

  FlowSide(const LocalCorrelationParams& p, const View4& features, int64_t height, int64_t width, bool rows_wanted,
           Arena& arena)
      : batch(p.batch), wanted(rows_wanted) {
    constexpr int64_t kVector = Octets<T>::kVector;
    const int64_t vectors = (p.channels + kVector - 1) / kVector, pitch = vectors * kVector, pixels = height * width;
    if (wanted) packed.rows = arena.take<T>(p.batch * pixels * pitch);
    if (p.normalize) norms = arena.take<accumulate_t<T>>(p.batch * pixels);
    side = {features, p.channels, static_cast<int>(height), static_cast<int>(width), norms};
    // In place, rows of pixels must follow each other as pixels do.
    const View4& f = features;
    const bool dense = height == 1 || f.stride[2] == width * f.stride[3];
    const bool in_place =
        dense && f.stride[3] >= 0 && f.stride[3] <= INT32_MAX && warp_cuda::whole_vectors(f, p.channels);
    rows.vectors = static_cast<int>(vectors);
    rows.data = in_place ? static_cast<const T*>(f.data) : packed.rows;
    rows.image = in_place ? f.stride[0] : pixels * pitch;
    rows.step = static_cast<int>(in_place ? f.stride[3] : pitch);
    packed.features = f, packed.channels = p.channels;
    packed.width = side.width, packed.pixels = static_cast<int>(pixels), packed.pitch = static_cast<int>(pitch);
    packed.blocks = !wanted || in_place ? 0
                                        : static_cast<int>(p.batch * ((pixels + kPackPixels - 1) / kPackPixels) *
                                                           ((pitch + kPackDepth - 1) / kPackDepth));
  }

  Status form_norms(Stream stream) const {
    if (norms == nullptr) return {};
    return launch_flat<kThreads>(&local_correlation_flow_norm_kernel<T>, batch * packed.pixels * Octets<T>::kLanes,
                                 stream, rows, batch, packed.pixels, norms);
  }
};

// Packs both sides, where they are not read in place, and forms their norms, where they are wanted.
template <class T>
Status prepare(const FlowSide<T>& a, const FlowSide<T>& b, Stream stream) {
  Status s;
  const unsigned blocks = static_cast<unsigned>(a.packed.blocks) + static_cast<unsigned>(b.packed.blocks);
  if (blocks > 0) {
    s = launch(&local_correlation_flow_pack_kernel<T>, dim3(blocks), dim3(kThreads), 0, stream, a.packed, b.packed);
  }
  if (s.ok()) s = a.form_norms(stream);
  return s.ok() ? b.form_norms(stream) : s;
}

// Runs of a block for kernels of products: its warps' own, or fewer, shared by its warps, where there are few.
template <class T>
RunGrid products_grid(const LocalCorrelationParams& p, int64_t pieces) {
  constexpr int kBlocksPerMultiprocessor = 6, kPixels = ProductEngine<T>::kPixels;
  int of_block = kWarps;
  RunGrid grid = run_grid(p.height_a, p.width_a, kPixels, of_block);
  while (of_block > 1 && grid.blocks * pieces * p.batch < int64_t{kBlocksPerMultiprocessor} * multiprocessors()) {
    grid = run_grid(p.height_a, p.width_a, kPixels, of_block /= 2);
  }
  return grid;
}

}  // namespace cosegflow::local_correlation_cuda

// What the launches along a flow share: both sides as rows, where they are or packed, and how images are cut.
#pragma once

#include "common/arena.h"
#include "local_correlation/local_correlation_flow_windows.cuh"
#include "local_correlation/local_correlation_launch.cuh"
#include "pack.cuh"

namespace cosegflow::local_correlation_cuda {

// One side: rows of its features, and its norms. The workspace has room for packed rows wherever rows are wanted:
// whether a pointer is aligned is not known when workspaces are sized.
template <class T>
struct FlowSide {
  Side<T> side;
  Rows<T> rows{};
  PackedSide<T> packed;
  bool packs;

  FlowSide(const LocalCorrelationParams& p, const View4& features, int64_t height, int64_t width, bool wanted,
           Arena& arena) {
    packed.batch = p.batch, packed.positions = height * width;
    packed.channels = p.channels, packed.padded_channels = (p.channels + 7) / 8 * 8;
    if (wanted) packed.features = arena.take<T>(p.batch * packed.positions * packed.padded_channels);
    if (p.normalize) packed.inv_norm = arena.take<accumulate_t<T>>(p.batch * packed.positions);
    side = {features, p.channels, static_cast<int>(height), static_cast<int>(width), packed.inv_norm};
    // Norms come with packing. In place, rows of pixels must follow each other as pixels do.
    const View4& f = features;
    const bool dense = height == 1 || f.stride[2] == width * f.stride[3];
    packs = wanted && !(dense && !p.normalize && f.stride[3] >= 0 && f.stride[3] <= INT32_MAX &&
                        warp_cuda::whole_vectors(f, p.channels));
    constexpr int64_t kVector = Octets<T>::kVector;
    rows.vectors = static_cast<int>((p.channels + kVector - 1) / kVector);
    rows.data = packs ? packed.features : static_cast<const T*>(f.data);
    rows.image = packs ? packed.positions * packed.padded_channels : f.stride[0];
    rows.step = static_cast<int>(packs ? packed.padded_channels : f.stride[3]);
  }

  Status prepare(Stream stream) const {
    return packs ? pack_rows(packed, side.features, side.width, packed.inv_norm != nullptr, stream) : Status{};
  }
};

// Runs of a block for kernels of products: all four warps' own, or fewer, shared by its warps, where there are few.
inline RunGrid products_grid(const LocalCorrelationParams& p, int64_t pieces) {
  constexpr int kBlocksPerMultiprocessor = 6;
  int of_block = kWarps;
  RunGrid grid = run_grid(p.height_a, p.width_a, of_block);
  while (of_block > 1 && grid.blocks * pieces * p.batch < int64_t{kBlocksPerMultiprocessor} * multiprocessors()) {
    grid = run_grid(p.height_a, p.width_a, of_block /= 2);
  }
  return grid;
}

}  // namespace cosegflow::local_correlation_cuda

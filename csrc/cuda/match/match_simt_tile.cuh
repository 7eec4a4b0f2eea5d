// The tile engine of float32 (full precision: FMA, "highest") and float64, over tile_product.cuh.
#pragma once

#include "match/match_common.cuh"
#include "tile_product.cuh"

namespace cosegflow::match_cuda {

template <class T>
struct SimtEngine {
  using Tile = score_tile_t<T>;
  using Accumulators = typename Tile::Accumulators;
  static constexpr int kRows = Tile::kRows, kCols = Tile::kCols;
  static_assert(kRows == TileExtent<T>::kRows && kCols == TileExtent<T>::kCols, "the host's tile");
  static constexpr size_t kSharedBytes = sizeof(typename Tile::Shared);
  using Acc = T;
  static constexpr bool kParkStates = true;
  static constexpr int kForwardBlocksPerSm = 2, kBackwardBlocksPerSm = 1;

  // As in MmaTileProduct. Copies of the next tile do not overlap with an epilogue here: the product is much longer.
  struct Strip {
    const T* a;
    const T* b;
    int rows, count;
    int first, end;
    int depth;
  };
  template <class Begin, class Epilogue>
  static __device__ __forceinline__ void run(unsigned char* shared, const Strip& strip, const Begin& begin,
                                             const Epilogue& epilogue) {
    auto& slabs = *reinterpret_cast<typename Tile::Shared*>(shared);
    // Within a tile offsets fit 32 bits, which halves the registers of the addresses.
    const auto load_a = [&](int64_t i, int64_t k) -> T {
      const int row = static_cast<int>(i), channel = static_cast<int>(k);
      return row < strip.rows && channel < strip.depth ? strip.a[row * strip.depth + channel] : T(0);
    };
    const T* b = strip.b + static_cast<int64_t>(strip.first) * kCols * strip.depth;
    int rest = strip.count - strip.first * kCols;
    const auto load_b = [&](int64_t j, int64_t k) -> T {
      const int column = static_cast<int>(j), channel = static_cast<int>(k);
      return column < rest && channel < strip.depth ? b[column * strip.depth + channel] : T(0);
    };
    for (int tile = strip.first; tile < strip.end; ++tile) {
      begin(tile);
      Accumulators acc;
      Tile::clear(acc);
      Tile::template multiply<Contiguous::kDepth, Contiguous::kDepth>(slabs, acc, 0, 0, strip.depth, load_a, load_b);
      epilogue(tile, acc);
      b += static_cast<int64_t>(kCols) * strip.depth;
      rest -= kCols;
    }
  }

  static constexpr int kThreadRows = Tile::kM, kThreadCols = Tile::kN;
  static constexpr int kRowLanes = 16, kRowWarps = 1, kColWarps = 8;
  static __device__ __forceinline__ int row(int r) { return Tile::row(r); }
  static __device__ __forceinline__ int col(int c) { return Tile::col(c); }
  static __device__ __forceinline__ T& value(Accumulators& acc, int r, int c) { return acc[r][c]; }
  static __device__ __forceinline__ int row_warp() { return 0; }
  static __device__ __forceinline__ int col_warp() { return static_cast<int>(threadIdx.x) / 32; }
};

}  // namespace cosegflow::match_cuda

// The sums of a run of four pixels over rows of features, as the gradients along a flow form them: 16 (float64: 8)
// channels a lane, 64 registers. An octet takes two rows a step and weighs each for the four pixels, with 0 where a row
// does not count for a pixel. Of a row that is not finite that makes a NaN, so sums that are not finite are formed
// again, with branches that leave such rows out: nobody else pays for them, and finite sums prove that nothing was
// missed. At the end the four octets add up what each has, in one order, and the block turns 16 pixels x 128 channels
// in shared memory (9 KB), so that planes are written in neighbouring pixels.
#pragma once

#include <type_traits>

#include "local_correlation/local_correlation_flow_windows.cuh"

namespace cosegflow::local_correlation_cuda {

// All lanes have channels in all of their vectors; or not; or not, and weights of 0 are left out.
enum class RowLoads { kWhole, kPart, kCareful };

template <class T>
struct RunSums {
  using O = Octets<T>;
  using Acc = accumulate_t<T>;
  typename LaneChannels<T>::Values of[kRunPixels];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int k = 0; k < kRunPixels; ++k) {
#pragma unroll
      for (int i = 0; i < O::kPieces; ++i) {
#pragma unroll
        for (int j = 0; j < O::kVector; ++j) of[k][i][j] = Acc(0);
      }
    }
  }

  // Adds two rows. Lane (u * 4 + k) of the octet has the weight of row u for pixel k, and whether it counts; where not,
  // the weight is 0 and the row need only exist. The whole warp must call it.
  template <RowLoads kLoads>
  __device__ __forceinline__ void add(const LaneChannels<T>& channels, const T* const (&row)[kTapsAtOnce], Acc weight,
                                      bool counts) {
    const int octet = static_cast<int>(threadIdx.x) % 32 / O::kLanes * O::kLanes;
    const unsigned bits = kLoads == RowLoads::kCareful ? __ballot_sync(kWholeWarp, counts) >> octet : 0u;
#pragma unroll
    for (int u = 0; u < kTapsAtOnce; ++u) {
      typename LaneChannels<T>::Values v;
      channels.template load<kLoads == RowLoads::kWhole>(row[u], v);
#pragma unroll
      for (int k = 0; k < kRunPixels; ++k) {
        const int lane = u * kRunPixels + k;
        const Acc factor = __shfl_sync(kWholeWarp, weight, octet + lane);
        if (kLoads == RowLoads::kCareful && (bits >> lane & 1u) == 0) continue;
#pragma unroll
        for (int i = 0; i < O::kPieces; ++i) {
#pragma unroll
          for (int j = 0; j < O::kVector; ++j) of[k][i][j] += factor * v[i][j];
        }
      }
    }
  }

  // Whether all sums of the warp are finite, in every lane.
  __device__ __forceinline__ bool finite() const {
    Acc zeros = Acc(0);
#pragma unroll
    for (int k = 0; k < kRunPixels; ++k) {
#pragma unroll
      for (int i = 0; i < O::kPieces; ++i) {
#pragma unroll
        for (int j = 0; j < O::kVector; ++j) zeros += of[k][i][j] * Acc(0);
      }
    }
    return __all_sync(kWholeWarp, zeros == Acc(0)) != 0;
  }

  // The sums of what add_rows(loads, sums) adds.
  template <class AddRows>
  __device__ __forceinline__ void form(const LaneChannels<T>& channels, const AddRows& add_rows) {
    clear();
    if (channels.whole) {
      add_rows(std::integral_constant<RowLoads, RowLoads::kWhole>(), *this);
    } else {
      add_rows(std::integral_constant<RowLoads, RowLoads::kPart>(), *this);
    }
    if (finite()) return;
    clear();
    add_rows(std::integral_constant<RowLoads, RowLoads::kCareful>(), *this);
  }
};

// 16 pixels of a block (a warp's four, warp by warp) x one chunk of channels.
template <class T>
struct SumTile {
  using O = Octets<T>;
  using Acc = accumulate_t<T>;
  Acc of[O::kChunk][kBlockPixels + 1];

  // Adds up what the octets of a warp have, and puts it to the warp's four pixels. sums is spoilt.
  __device__ __forceinline__ void put(RunSums<T>& sums) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % O::kLanes;
    const int pixel = thread / 32 * kRunPixels + thread % 32 / O::kLanes;
#pragma unroll
    for (int i = 0; i < O::kPieces; ++i) {
#pragma unroll
      for (int j = 0; j < O::kVector; ++j) {
        Acc four[kRunPixels];
#pragma unroll
        for (int k = 0; k < kRunPixels; ++k) four[k] = sums.of[k][i][j];
        of[(i * O::kLanes + lane) * O::kVector + j][pixel] = warp_scatter_sums<O::kLanes>(four);
      }
    }
  }

  // Adds up what all warps have put, in one order, for the pixels of warp `to`: they shared its run. Between barriers.
  __device__ __forceinline__ void add_warps(int to) {
    for (int k = static_cast<int>(threadIdx.x); k < O::kChunk * kRunPixels; k += kFlowThreads) {
      Acc* const sums = &of[k / kRunPixels][k % kRunPixels];
      Acc total = sums[0];
      for (int w = 1; w < kWarps; ++w) total += sums[w * kRunPixels];
      sums[to * kRunPixels] = total;  // no other thread reads or writes these
    }
  }
};

// Where a gradient goes: to its place in the type of the features, or to the accumulate type, which the normalization
// still has to come back through. (B, C, H, W) both.
template <class T>
struct GradientTarget {
  T* direct;
  accumulate_t<T>* unfinished;

  __device__ __forceinline__ void store(int64_t at, accumulate_t<T> value) const {
    if (direct != nullptr) {
      direct[at] = from_float<T>(value);
    } else {
      unfinished[at] = value;
    }
  }
};

// A block's place in a flat grid over (image, block of runs, chunk of channels), and its warp's run.
struct GradientPlace {
  int b, first_run, chunk, run;

  __device__ __forceinline__ GradientPlace(const RunGrid& grid, int chunks) {
    const unsigned block = blockIdx.x / static_cast<unsigned>(chunks);
    b = static_cast<int>(block / static_cast<unsigned>(grid.blocks));
    first_run = grid.first_run(static_cast<int>(block % static_cast<unsigned>(grid.blocks)));
    chunk = static_cast<int>(blockIdx.x % static_cast<unsigned>(chunks));
    run = first_run + static_cast<int>(threadIdx.x) / 32;
  }
};

// Writes a tile, less the runs of warps that `but` has a bit of. After a barrier.
template <class T>
__device__ __forceinline__ void write_tile(const SumTile<T>& tile, const RunGrid& grid, const GradientPlace& at,
                                           int64_t channels, unsigned but, const GradientTarget<T>& target) {
  const int slot = static_cast<int>(threadIdx.x) % kBlockPixels, slice = static_cast<int>(threadIdx.x) / kBlockPixels;
  const RunPixel pixel = pixel_of_run(grid, at.first_run + slot / kRunPixels, slot % kRunPixels);
  if (!pixel.exists || slot / kRunPixels >= grid.of_block || (but >> (slot / kRunPixels) & 1u) != 0) return;
  const int64_t n = static_cast<int64_t>(grid.height) * grid.width;
  const int64_t first = static_cast<int64_t>(at.chunk) * Octets<T>::kChunk, left = channels - first;
  const int count = left < Octets<T>::kChunk ? static_cast<int>(left) : Octets<T>::kChunk;
  const int64_t to = (at.b * channels + first) * n + (pixel.y * grid.width + pixel.x);
  for (int c = slice; c < count; c += kFlowThreads / kBlockPixels) target.store(to + c * n, tile.of[c][slot]);
}

}  // namespace cosegflow::local_correlation_cuda

// warp's forward on CUDA.
//
// Planes (any layout; meant for NCHW): a block of 256 threads has a tile of 32 x 8 output pixels and up to 64 channels,
//   a thread one pixel. It forms the four taps and weights once and walks over its channels, 4 (halves: 8) in flight:
//   where all 32 pixels of a warp lie inside (whole), two pointers a pixel advance by a plane, and the right taps are
//   their neighbours; else each tap has its pointer and its predicate. 64 registers, 4 blocks a multiprocessor.
//   SASS of sm_90a: 235 instructions before the loop, then 18.5 a channel of float32 (whole), 30.5 (else); halves
//   23, 36.
// Few channels (4 at most: images, masks, flows; any layout): all channels of a pixel at once, 4 pixels a thread.
//   About 220 instructions a pixel of 3 channels.
// Channels (channels_last, C a multiple of 16 bytes): a block has a tile of up to 16 x 16 output pixels and all
//   channels. First each thread forms the taps of one pixel and leaves them in shared memory (9 KB); then the block
//   walks over (pixel, 16 bytes of channels), channels fastest: four 16-byte loads, the sum in float32, one 16-byte
//   store. 48 registers; 64 instructions for 16 bytes of float32, 133 of halves.
// Must move: C (H W + Ho Wo) elements, 8 Ho Wo bytes of flow and Ho Wo of validity; 8 FLOPs an output: bound by memory.
// Fraction of the copy bandwidth, predicted: 0.8 to 0.9; not measured yet (docs/kernels/warp.md).
#pragma once

#include "warp/channel_vector.cuh"
#include "warp/warp_tiles.cuh"

namespace cosegflow::warp_cuda {

// Channels whose loads a thread has in flight: 64 or 32 bytes of one tap.
template <class T>
constexpr int kChannelsInFlight = sizeof(T) == 2 ? 8 : 4;

__device__ __forceinline__ void write_valid(const WarpParams& p, int64_t b, int row, int column, bool valid) {
  static_cast<bool*>(p.valid.data)[b * p.valid.stride[0] + row * p.valid.stride[1] + column * p.valid.stride[2]] =
      valid;
}

// Up to kFlight channels of one pixel: all loads, then all sums and stores. kFull: there are kFlight.
template <bool kWhole, bool kFull, int kFlight, class T, class A>
__device__ __forceinline__ void sample_planes(const PixelTaps<A>& taps, const TapPointers<kWhole, T>& from,
                                              int64_t step, T* out, int64_t out_step, int channels, bool exists) {
  T v[kFlight][4];
#pragma unroll
  for (int i = 0; i < kFlight; ++i) {
    if (!kFull && i >= channels) break;
    from.load(taps, i * step, v[i]);
  }
#pragma unroll
  for (int i = 0; i < kFlight; ++i) {
    if (!kFull && i >= channels) break;
    const A value = blend<A>(taps.weight, to_float(v[i][0]), to_float(v[i][1]), to_float(v[i][2]), to_float(v[i][3]));
    if (exists) out[i * out_step] = from_float<T>(value);
  }
}

template <bool kWhole, int kFlight, class T, class A>
__device__ __forceinline__ void sample_run(const PixelTaps<A>& taps, const T* x, int64_t step, T* out, int64_t out_step,
                                           int channels, bool exists) {
  TapPointers<kWhole, T> from(taps, x);
#pragma unroll 1
  for (; channels >= kFlight; channels -= kFlight, from.advance(kFlight * step), out += kFlight * out_step) {
    sample_planes<kWhole, true, kFlight>(taps, from, step, out, out_step, kFlight, exists);
  }
  if (channels > 0) sample_planes<kWhole, false, kFlight>(taps, from, step, out, out_step, channels, exists);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) warp_forward_planes_kernel(WarpParams p, TileGrid grid, int run) {
  using A = accumulate_t<T>;
  constexpr int kFlight = kChannelsInFlight<T>;
  const TilePixel at = pixel_of_thread(grid);
  const WarpPoint<A> point = point_of_pixel<A>(p, at.b, at.row, at.column);
  const PixelTaps<A> taps = pixel_taps(point, p);
  if (p.valid.data != nullptr && blockIdx.y == 0 && at.exists) write_valid(p, at.b, at.row, at.column, point.valid);

  const int64_t first = static_cast<int64_t>(blockIdx.y) * run;
  const int channels = static_cast<int>(p.channels - first < run ? p.channels - first : run);
  T* out = plane_of<T>(p.out, at.b, first) + place_of(p.out, at.row, at.column);
  const T* x = plane_of<const T>(p.x, at.b, first);
  if (p.x.stride[3] == 1 && __all_sync(kWholeWarp, taps.whole)) {
    sample_run<true, kFlight>(taps, x, p.x.stride[1], out, p.out.stride[1], channels, at.exists);
  } else {
    sample_run<false, 4>(taps, x, p.x.stride[1], out, p.out.stride[1], channels, at.exists);
  }
}

// Up to kFewChannels channels: a tile is 32 x 32, a thread has a pixel in every kRows-th row, and what costs the same
// for all of them is done once.
constexpr int kFewChannels = 4, kFewHeight = 4 * kRows;

template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 3 : 4)
    warp_forward_few_kernel(WarpParams p, TileGrid grid) {
  using A = accumulate_t<T>;
  const TilePixel first = pixel_of_thread(grid);
  if (!first.exists) return;
  const int channels = static_cast<int>(p.channels);
  const T* x[kFewChannels];  // planes, and the pixel in those of the output
  T* out[kFewChannels];
#pragma unroll
  for (int c = 0; c < kFewChannels; ++c) {
    x[c] = in_registers(plane_of<const T>(p.x, first.b, c));
    out[c] = in_registers(plane_of<T>(p.out, first.b, c) + place_of(p.out, first.row, first.column));
  }
  const A* flow = in_registers(plane_of<const A>(p.flow, first.b, 0) + place_of(p.flow, first.row, first.column));
  bool* valid = nullptr;
  if (p.valid.data != nullptr) {
    valid = static_cast<bool*>(p.valid.data) + first.b * p.valid.stride[0] + first.row * p.valid.stride[1] +
            first.column * p.valid.stride[2];
  }
  const A last_x = static_cast<A>(static_cast<int>(p.width) - 1),
          last_y = static_cast<A>(static_cast<int>(p.height) - 1);
  A flow_x = flow[0], flow_y = flow[p.flow.stride[1]];
  int place = 0;
#pragma unroll 1
  for (int row = first.row, end = min(first.row + kFewHeight, grid.height); row < end; row += kRows) {
    const WarpPoint<A> point = warp_point_of(flow_x, flow_y, static_cast<A>(first.column), static_cast<A>(row), last_x,
                                             last_y, p.mode, p.padding);
    const PixelTaps<A> taps = pixel_taps(point, p);
    T v[kFewChannels][4];
#pragma unroll
    for (int c = 0; c < kFewChannels; ++c) {
      if (c >= channels) break;
#pragma unroll
      for (int k = 0; k < 4; ++k) v[c][k] = taps.inside[k] ? x[c][taps.offset[k]] : T{};
    }
    if (row + kRows < end) {  // the next pixel's, before this one's stores
      flow += kRows * p.flow.stride[2];
      flow_x = flow[0], flow_y = flow[p.flow.stride[1]];
    }
#pragma unroll
    for (int c = 0; c < kFewChannels; ++c) {
      if (c >= channels) break;
      out[c][place] = from_float<T>(
          blend<A>(taps.weight, to_float(v[c][0]), to_float(v[c][1]), to_float(v[c][2]), to_float(v[c][3])));
    }
    place += kRows * static_cast<int>(p.out.stride[2]);
    if (valid != nullptr) {
      *valid = point.valid;
      valid += kRows * p.valid.stride[1];
    }
  }
}

// A pixel of a tile, as all threads of the block need it. An offset of -1: outside, or beyond the output.
template <class A>
struct SharedTaps {
  int offset[4];
  A weight[4];
};

template <class T>
__global__ void __launch_bounds__(kThreads, 4) warp_forward_channels_kernel(WarpParams p, TileGrid grid) {
  using A = accumulate_t<T>;
  using Taps = SharedTaps<A>[kThreads];
  using Places = int[kThreads];
  CSF_SHARED(Taps, shared);
  CSF_SHARED(Places, places);  // of the pixels in the output
  const Tile tile = tile_of_block(grid);
  const int pixels = grid.tile_height * kPieceWidth;  // kThreads at most
  if (static_cast<int>(threadIdx.x) < pixels) {
    const int row = tile.row + static_cast<int>(threadIdx.x) / kPieceWidth;
    const int column = tile.column + static_cast<int>(threadIdx.x) % kPieceWidth;
    const bool exists = row < grid.height && column < grid.width;
    places[threadIdx.x] = exists ? place_of(p.out, row, column) : -1;
    if (exists) {
      const WarpPoint<A> point = point_of_pixel<A>(p, tile.b, row, column);
      const PixelTaps<A> taps = pixel_taps(point, p);
      for (int k = 0; k < 4; ++k) {
        shared[threadIdx.x].offset[k] = taps.inside[k] ? taps.offset[k] : -1;
        shared[threadIdx.x].weight[k] = taps.weight[k];
      }
      if (p.valid.data != nullptr) write_valid(p, tile.b, row, column, point.valid);
    }
  }
  __syncthreads();
  const T* const x = in_registers(plane_of<const T>(p.x, tile.b, 0));
  T* const out = in_registers(plane_of<T>(p.out, tile.b, 0));
  for_each_vector<T>(pixels, static_cast<int>(p.channels) / kVector<T>, [&](int pixel, int channel) {
    const int place = places[pixel];
    if (place < 0) return;
    const SharedTaps<A> taps = shared[pixel];
    A v[4][kVector<T>] = {};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (taps.offset[k] >= 0) load_vector(x + (taps.offset[k] + channel), v[k]);
    }
    A sum[kVector<T>];
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) sum[i] = blend<A>(taps.weight, v[0][i], v[1][i], v[2][i], v[3][i]);
    store_vector(out + (place + channel), sum);
  });
}

}  // namespace cosegflow::warp_cuda

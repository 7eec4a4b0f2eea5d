// local_correlation along a flow: the inner products of pixels with their windows, and what is made of them: the
// output, or the gradient to the flow. The math of windows is common/window_math.h.
//
// A warp has a run of four neighbouring pixels, whose features stay in registers, 128 channels at a time; several warps
//   may share a run. A step takes two taps an octet: 8 taps of 128 channels against four pixels, 128 multiply-adds a
//   lane; one halving over the lanes of an octet (7 shuffles) leaves each lane one of 32 products. It is added to the
//   window in shared memory, 10 x 10 products of up to 32 pixels (13 KB, float64 26).
// forward: then the block interpolates, threads over (output, pixel): each plane is written in neighbouring pixels.
// gradient to the flow: instead the products are weighed with the slopes and grad_out; a thread sums a slice of the
//   window, a pixel's slices meet in shared memory in one order.
// Registers: see tests/test_ptxas.py. Must move, for smooth flow, 3.3 vectors of 16 bytes for each 16 bytes of a window
// once (13 of 40 columns), the features of both sides once from memory; 2 B (2r+2)^2 C Ha Wa FLOPs, about 1.3 times
// that issued. Time not measured yet.
#pragma once

#include "local_correlation/local_correlation_flow_windows.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kPieceOutputs = kPieceTaps - 1;

template <class A>
struct BlockProducts {
  A of[kBlockPixels][kPieceTaps * kPieceTaps + 1];  // one more: pixels of a product lie in different banks
};

// Where a block works, from a flat grid over (image, block of runs, piece).
struct BlockPlace {
  int64_t b;
  int first_run, piece;
};

__device__ __forceinline__ BlockPlace block_place(const RunGrid& grid, int pieces) {
  const unsigned block = blockIdx.x / static_cast<unsigned>(pieces);
  return {block / static_cast<unsigned>(grid.blocks),
          grid.first_run(static_cast<int>(block % static_cast<unsigned>(grid.blocks))),
          static_cast<int>(blockIdx.x % static_cast<unsigned>(pieces))};
}

// The features of a run's four pixels, the lane's channels of one chunk.
template <class T>
struct RunFeatures {
  typename LaneChannels<T>::Values of[kRunPixels];
};

// Adds the products of the run with the taps of one turn to the window of the lane's pixel. `first`: of the warp's taps
// among those of all warps of the run.
template <bool kWhole, class T>
__device__ __forceinline__ void add_products(const Side<T>& other, const Rows<T>& rows_b, int64_t b,
                                             const LaneChannels<T>& channels, const RunFeatures<T>& features,
                                             const RunWindows& windows, int turn, int first, int step,
                                             accumulate_t<T> scale, accumulate_t<T>* window) {
  using Acc = accumulate_t<T>;
  using O = Octets<T>;
  const BoxTaps taps(windows.box(turn));
  const bool takes_part = windows.takes_part(turn);
  const T* const image = rows_b.of_image(b);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int octet_tap = lane / O::kLanes * kTapsAtOnce, own_tap = octet_tap + lane / kRunPixels % kTapsAtOnce;
#pragma unroll 1
  for (int n = first; n < taps.count; n += step) {
    Acc product[kTapsAtOnce * kRunPixels];
#pragma unroll
    for (int u = 0; u < kTapsAtOnce; ++u) {
      int y, x;
      taps.place(min(n + octet_tap + u, taps.count - 1), y, x);
      typename LaneChannels<T>::Values tap;
      channels.template load<kWhole>(image + static_cast<int64_t>(y * other.width + x) * rows_b.step, tap);
#pragma unroll
      for (int k = 0; k < kRunPixels; ++k) {
        Acc sum = Acc(0);
#pragma unroll
        for (int i = 0; i < O::kPieces; ++i) {
#pragma unroll
          for (int j = 0; j < O::kVector; ++j) sum += features.of[k][i][j] * tap[i][j];
        }
        product[u * kRunPixels + k] = sum;
      }
    }
    Acc sum = warp_scatter_sums<1>(product);  // of pixel lane % 4 with the tap own_tap
    int y, x;
    taps.place(min(n + own_tap, taps.count - 1), y, x);
    if (n + own_tap >= taps.count || !takes_part || !windows.holds(y, x)) continue;
    if (other.inverse_norm != nullptr) sum *= scale * other.scale(b, y, x);
    window[(y - windows.y) * kPieceTaps + (x - windows.x)] += sum;
  }
}

// The products of a block's pixels with one piece of their windows; 0 where a tap is outside. All threads must call it.
template <class T>
__device__ __forceinline__ void block_products(const LocalCorrelationParams& p, const Side<T>& a, const Side<T>& other,
                                               const Rows<T>& rows_a, const Rows<T>& rows_b, const RunGrid& grid,
                                               int64_t b, int first_run, const Piece& piece,
                                               BlockProducts<accumulate_t<T>>& products) {
  using Acc = accumulate_t<T>;
  constexpr int kAll = kBlockPixels * (kPieceTaps * kPieceTaps + 1);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  for (int i = thread; i < kAll; i += kFlowThreads) (&products.of[0][0])[i] = Acc(0);
  __syncthreads();

  const int sharing = kWarps / grid.of_block;  // warps of a run
  const int run = first_run + warp / sharing, number = thread % kRunPixels;
  const RunPixel own = pixel_of_run(grid, run, number);
  const RunWindows windows(window_of<Acc>(p, b, own.y, own.x), own.exists, piece, other.height, other.width);
  Acc* const window = products.of[warp / sharing * kRunPixels + number];
  const Acc scale = a.scale(b, own.y, own.x);
  const T* const image = rows_a.of_image(b);
  const int first = warp % sharing * kStepTaps, step = sharing * kStepTaps;
  const int chunks = windows.any ? chunks_of<T>(rows_b.vectors) : 0;
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const LaneChannels<T> channels(chunk, rows_b.vectors);
    RunFeatures<T> features;
#pragma unroll
    for (int k = 0; k < kRunPixels; ++k) {
      const RunPixel at = pixel_of_run(grid, run, k);
      const T* const pixel = image + static_cast<int64_t>(at.y * grid.width + at.x) * rows_a.step;
      channels.template load<false>(pixel, features.of[k]);
    }
#pragma unroll 1
    for (int turn = 0; turn < windows.turns(); ++turn) {
      if (channels.whole) {
        add_products<true>(other, rows_b, b, channels, features, windows, turn, first, step, scale, window);
      } else {
        add_products<false>(other, rows_b, b, channels, features, windows, turn, first, step, scale, window);
      }
    }
  }
  __syncthreads();
}

// A thread's pixel of the block, and which of a pixel's threads it is.
struct SlicedPixel {
  int slot, slice, slices;
  RunPixel pixel;
};

__device__ __forceinline__ SlicedPixel sliced_pixel(const RunGrid& grid, int first_run) {
  const int pixels = grid.of_block * kRunPixels, thread = static_cast<int>(threadIdx.x), slot = thread % pixels;
  return {slot, thread / pixels, kFlowThreads / pixels,
          pixel_of_run(grid, first_run + slot / kRunPixels, slot % kRunPixels)};
}

template <class T>
__global__ void __launch_bounds__(kFlowThreads, kFlowBlocks<T>)
    local_correlation_flow_forward_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other, Rows<T> rows_a,
                                          Rows<T> rows_b, RunGrid grid, int pieces) {
  using Acc = accumulate_t<T>;
  CSF_SHARED(BlockProducts<Acc>, products);
  const BlockPlace at = block_place(grid, pieces);
  const int side = static_cast<int>(p.side());
  const Piece taps = piece_of(at.piece, side, kPieceOutputs, 1);
  block_products(p, a, other, rows_a, rows_b, grid, at.b, at.first_run, taps, products);

  const SlicedPixel s = sliced_pixel(grid, at.first_run);
  if (!s.pixel.exists) return;
  const Window<Acc> w = window_of<Acc>(p, at.b, s.pixel.y, s.pixel.x);
  const int64_t n = a.positions();
  T* const out =
      static_cast<T*>(p.out) + at.b * side * side * n + (static_cast<int64_t>(s.pixel.y) * a.width + s.pixel.x);
  for (int k = s.slice; k < kPieceOutputs * kPieceOutputs; k += s.slices) {
    const int i = k / kPieceOutputs, j = k % kPieceOutputs;
    if (i >= taps.rows - 1 || j >= taps.columns - 1) continue;
    const Acc* const d = &products.of[s.slot][i * kPieceTaps + j];
    const Acc above = w.wx.here * d[0] + w.wx.before * d[1];
    const Acc below = w.wx.here * d[kPieceTaps] + w.wx.before * d[kPieceTaps + 1];
    out[((taps.i + i) * side + (taps.j + j)) * n] = from_float<T>(w.wy.here * above + w.wy.before * below);
  }
}

// Adds to the thread's two sums its slice of a piece of the window: the products that are inside, weighed.
template <class T>
__device__ __forceinline__ void add_slopes(const LocalCorrelationParams& p, const Side<T>& other, const RunGrid& grid,
                                           const BlockPlace& at, const Piece& piece,
                                           const BlockProducts<accumulate_t<T>>& products,
                                           accumulate_t<T> (&sums)[2][kFlowThreads]) {
  using Acc = accumulate_t<T>;
  const SlicedPixel s = sliced_pixel(grid, at.first_run);
  const Window<Acc> w = window_of<Acc>(p, at.b, s.pixel.y, s.pixel.x);
  const GradientOfPixel<T> grad(p, at.b, s.pixel.y, s.pixel.x);
  if (!s.pixel.exists || !w.finite) return;
  Acc sum_x = sums[0][threadIdx.x], sum_y = sums[1][threadIdx.x];
  for (int k = s.slice; k < kPieceTaps * kPieceTaps; k += s.slices) {
    const int i = k / kPieceTaps, j = k % kPieceTaps, row = piece.i + i, column = piece.j + j;
    if (i >= piece.rows || j >= piece.columns || !other.inside(w.y + row, w.x + column)) continue;
    const Acc product = products.of[s.slot][k];
    sum_x += product * window_gradient(row, column, grad.side, w.wy, slope<Acc>(), grad);
    sum_y += product * window_gradient(row, column, grad.side, slope<Acc>(), w.wx, grad);
  }
  sums[0][threadIdx.x] = sum_x, sums[1][threadIdx.x] = sum_y;
}

template <class T>
__global__ void __launch_bounds__(kFlowThreads, kFlowBlocks<T>)
    local_correlation_flow_slopes_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other, Rows<T> rows_a,
                                         Rows<T> rows_b, RunGrid grid) {
  using Acc = accumulate_t<T>;
  using Sums = Acc[2][kFlowThreads];
  CSF_SHARED(BlockProducts<Acc>, products);
  CSF_SHARED(Sums, sums);
  const int taps = static_cast<int>(p.side()) + 1, across = (taps + kPieceTaps - 1) / kPieceTaps;
  const BlockPlace at = block_place(grid, 1);
  sums[0][threadIdx.x] = sums[1][threadIdx.x] = Acc(0);
#pragma unroll 1
  for (int number = 0; number < across * across; ++number) {
    const Piece piece = piece_of(number, taps, kPieceTaps, 0);
    block_products(p, a, other, rows_a, rows_b, grid, at.b, at.first_run, piece, products);
    add_slopes(p, other, grid, at, piece, products, sums);
    __syncthreads();
  }
  const SlicedPixel s = sliced_pixel(grid, at.first_run);
  if (s.slice > 0 || !s.pixel.exists) return;
  Acc sum_x = sums[0][s.slot], sum_y = sums[1][s.slot];
  const int pixels = kFlowThreads / s.slices;
  for (int slice = 1; slice < s.slices; ++slice) {
    sum_x += sums[0][slice * pixels + s.slot], sum_y += sums[1][slice * pixels + s.slot];
  }
  const int64_t n = a.positions();
  Acc* to =
      static_cast<Acc*>(p.grad_flow.data) + at.b * 2 * n + (static_cast<int64_t>(s.pixel.y) * a.width + s.pixel.x);
  to[0] = sum_x;
  to[n] = sum_y;
}

}  // namespace cosegflow::local_correlation_cuda

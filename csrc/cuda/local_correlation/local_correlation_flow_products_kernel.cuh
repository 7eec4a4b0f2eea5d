// local_correlation along a flow: the inner products of pixels with their windows, and what is made of them: the
// output, or the gradient to the flow. The math of windows is common/window_math.h.
//
// A warp has a run of neighbouring pixels, four or (halves) eight; where there are few, warps of a block share runs.
//   An engine adds the products of the run with one piece of its windows (local_correlation_flow_fma_products.cuh,
//   local_correlation_flow_mma_products.cuh) to shared memory: 10 x 10 of up to 16 (32) pixels, 6.5 or 13 KB.
// forward: then the block interpolates, threads over (output, pixel): planes are written in neighbouring pixels.
// gradient to the flow: instead the products are weighed with the slopes and grad_out; a thread sums a slice of the
//   window, the slices of a pixel meet in shared memory in one order.
// Not pipelined beyond the loads of one step (8 or 16 of 16 bytes a lane); 12 warps a multiprocessor hide their wait.
// Must move, for smooth flow, 3.3 (halves: 2.1) rows of taps a pixel and row of its window through the first-level
// cache, both features once through memory; 2 B (2r+2)^2 C Ha Wa FLOPs, about 1.4 times that are issued. Registers: up
// to 168. Time not measured yet.
#pragma once

#include <type_traits>

#include "local_correlation/local_correlation_flow_fma_products.cuh"
#include "local_correlation/local_correlation_flow_mma_products.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kPieceOutputs = kPieceTaps - 1;

template <class T>
using ProductEngine = std::conditional_t<sizeof(T) == 2, MmaProducts<T>, FmaProducts<T>>;

template <class T>
struct BlockProducts {
  accumulate_t<T> of[kWarps * ProductEngine<T>::kPixels][kWindowPitch];
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

// The products of a block's pixels with one piece of their windows; 0 where a tap is outside. All threads must call it.
template <class T>
__device__ __forceinline__ void block_products(const LocalCorrelationParams& p, const Side<T>& a, const Side<T>& other,
                                               const Rows<T>& rows_a, const Rows<T>& rows_b, const RunGrid& grid,
                                               int64_t b, int first_run, const Piece& piece,
                                               BlockProducts<T>& products) {
  using Acc = accumulate_t<T>;
  using Engine = ProductEngine<T>;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  for (int i = thread; i < grid.of_block * Engine::kPixels * kWindowPitch; i += kFlowThreads)
    (&products.of[0][0])[i] = Acc(0);
  __syncthreads();
  const int parts = kWarps / grid.of_block, run = first_run + warp / parts;
  const RunPixel own = pixel_of_run(grid, run, thread % Engine::kPixels);
  const RunWindows<Engine::kPixels> windows(window_of<Acc>(p, b, own.y, own.x), own.exists, piece, other.height,
                                            other.width);
  Engine::add(
      {a, other, rows_a, rows_b, grid, b, run, warp % parts, parts, products.of[warp / parts * Engine::kPixels]},
      windows);
  __syncthreads();
}

// A thread's pixel of the block, and which of a pixel's threads it is.
struct SlicedPixel {
  int slot, slice, slices;
  RunPixel pixel;
};

__device__ __forceinline__ SlicedPixel sliced_pixel(const RunGrid& grid, int first_run) {
  const int pixels = grid.of_block * grid.run_pixels, thread = static_cast<int>(threadIdx.x), slot = thread % pixels;
  return {slot, thread / pixels, kFlowThreads / pixels,
          pixel_of_run(grid, first_run + slot / grid.run_pixels, slot % grid.run_pixels)};
}

template <class T>
__global__ void __launch_bounds__(kFlowThreads, kFlowBlocks<T>)
    local_correlation_flow_forward_kernel(LocalCorrelationParams p, Side<T> a, Side<T> other, Rows<T> rows_a,
                                          Rows<T> rows_b, RunGrid grid, int pieces) {
  using Acc = accumulate_t<T>;
  CSF_SHARED(BlockProducts<T>, products);
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
                                           const BlockPlace& at, const Piece& piece, const BlockProducts<T>& products,
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
  CSF_SHARED(BlockProducts<T>, products);
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

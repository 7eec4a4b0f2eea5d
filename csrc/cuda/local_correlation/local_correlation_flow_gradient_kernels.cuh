// The gradients of local_correlation to the features, along a flow. Per pixel p of a, E(p) has the gradients to the
// (2r+2)^2 products of its window (window_math.h); d fa(p) is the sum of E fb over the window, d fb(q) that of E fa
// over the pixels whose windows hold q. Both are sums of rows (local_correlation_flow_sums.cuh): a block has 4 runs of
// four pixels and one chunk of 128 channels, a warp a run.
//
// products' gradient: a block has 32 pixels and up to 128 products; a lane a pixel, so that grad_out is read in
//   neighbours; through shared memory (17 KB), as E has the window of a pixel together. 4 loads a product.
// to fa: the taps of four windows, each read once for all four (local_correlation_flow_windows.cuh).
// to fb: a gather by the map of where windows lie (warp/warp_inverse.cuh). A window lies in the cell of its first tap,
//   cells reach 2r+1 beyond fb, so pixel q is reached from (2r+2)^2 cells: 2r+2 runs of the list, for four neighbours
//   of q 3 cells longer. A lane fetches a landing, the octets take two each of 32. No atomics: one order of every sum.
//   Runs with over 1024 landings, and twice the block's mean, are taken by the whole block, one after the other; and
//   where fb is small, a block has one run.
// Loads of a step (8 of 16 bytes a lane) are in flight together; 12 warps a multiprocessor hide their wait. Must move,
// for smooth flow, 3.3 rows of taps a pixel and row of its window through the first-level cache, both features and E
// once through memory; 2 B (2r+2)^2 C Ha Wa FLOPs for each, 1.3 to 1.6 times that are issued. Up to 168 registers; 230
// instructions a step of 8 rows x 4 pixels x 128 channels of float32. Time not measured yet.
#pragma once

#include "local_correlation/local_correlation_flow_sums.cuh"
#include "warp/warp_inverse.cuh"

namespace cosegflow::local_correlation_cuda {

constexpr int kCrowded = 1024;   // landings that the warp of a run still takes alone, whatever the others have
constexpr int kBlockTaps = 128;  // products of a block

// E (B, Ha * Wa, taps), taps = (2r+2)^2. From a flat grid over (image, 32 pixels, 128 taps).
template <class T>
__global__ void __launch_bounds__(kThreads)
    local_correlation_flow_product_gradient_kernel(LocalCorrelationParams p, accumulate_t<T>* gradient) {
  using Acc = accumulate_t<T>;
  using Tile = Acc[32][kBlockTaps + 1];
  CSF_SHARED(Tile, tile);
  const int side = static_cast<int>(p.side()), taps = (side + 1) * (side + 1),
            parts = (taps + kBlockTaps - 1) / kBlockTaps;
  const int width = static_cast<int>(p.width_a), n = static_cast<int>(p.height_a) * width, runs = (n - 1) / 32 + 1;
  const int first_tap = static_cast<int>(blockIdx.x % static_cast<unsigned>(parts)) * kBlockTaps;
  const unsigned block = blockIdx.x / static_cast<unsigned>(parts);
  const int64_t b = block / static_cast<unsigned>(runs);
  const int first = static_cast<int>(block % static_cast<unsigned>(runs)) * 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int pixels = min(32, n - first), count = min(kBlockTaps, taps - first_tap);
  if (lane < pixels) {
    const int y = (first + lane) / width, x = (first + lane) % width;
    const Window<Acc> w = window_of<Acc>(p, b, y, x);
    const GradientOfPixel<T> grad(p, b, y, x);
    for (int k = warp; k < count; k += kThreads / 32) {
      const int i = (first_tap + k) / (side + 1), j = (first_tap + k) % (side + 1);
      tile[lane][k] = window_gradient(i, j, side, w.wy, w.wx, grad);
    }
  }
  __syncthreads();
  for (int pixel = warp; pixel < pixels; pixel += kThreads / 32) {
    Acc* const to = gradient + (b * n + first + pixel) * taps + first_tap;
    for (int k = lane; k < count; k += 32) to[k] = tile[pixel][k];
  }
}

// Adds the rows of one turn's taps, weighed by E and the scale of the tap.
template <RowLoads kLoads, class T>
__device__ __forceinline__ void add_window(const Side<T>& other, const T* image_b, int step_b, int64_t b,
                                           const LaneChannels<T>& channels, const RunWindows<kRunPixels>& windows,
                                           int turn, const accumulate_t<T>* gradient, int taps_across,
                                           RunSums<T>& sums) {
  using Acc = accumulate_t<T>;
  const BoxTaps taps(windows.box(turn));
  const bool takes_part = windows.takes_part(turn);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int octet_tap = lane / Octets<T>::kLanes * kTapsAtOnce, own_tap = octet_tap + lane / kRunPixels % kTapsAtOnce;
#pragma unroll 1
  for (int n = 0; n < taps.count; n += kStepTaps) {
    int y, x;
    const T* row[kTapsAtOnce];
#pragma unroll
    for (int u = 0; u < kTapsAtOnce; ++u) {
      taps.place(min(n + octet_tap + u, taps.count - 1), y, x);
      row[u] = image_b + static_cast<int64_t>(y * other.width + x) * step_b;
    }
    taps.place(min(n + own_tap, taps.count - 1), y, x);
    const bool counts = n + own_tap < taps.count && takes_part && windows.holds(y, x);
    Acc weight = Acc(0);
    if (counts) weight = gradient[(y - windows.y) * taps_across + (x - windows.x)] * other.scale(b, y, x);
    sums.template add<kLoads>(channels, row, weight, counts);
  }
}

template <class T>
__global__ void __launch_bounds__(kFlowThreads, kFlowBlocks<T>)
    local_correlation_flow_grad_a_kernel(LocalCorrelationParams p, Side<T> other, Rows<T> rows_b, RunGrid grid,
                                         int chunks, const accumulate_t<T>* gradient, GradientTarget<T> target) {
  using Acc = accumulate_t<T>;
  CSF_SHARED(SumTile<T>, tile);
  const GradientPlace at(grid, chunks);
  const LaneChannels<T> channels(at.chunk, rows_b.vectors);
  const RunPixel own = pixel_of_run(grid, at.run, static_cast<int>(threadIdx.x) % kRunPixels);
  const Window<Acc> window = window_of<Acc>(p, at.b, own.y, own.x);
  const int size = window.size, across = (size + kPieceTaps - 1) / kPieceTaps;
  const int64_t pixel = static_cast<int64_t>(at.b) * grid.height * grid.width + (own.y * grid.width + own.x);
  const T* const image = rows_b.of_image(at.b);
  RunSums<T> sums;
  sums.form(channels, [&](auto loads, RunSums<T>& to) {
#pragma unroll 1
    for (int number = 0; number < across * across; ++number) {
      const Piece piece = piece_of(number, size, kPieceTaps, 0);
      const RunWindows<kRunPixels> windows(window, own.exists, piece, other.height, other.width);
      const Acc* const mine = gradient + (pixel * size + piece.i) * size + piece.j;
#pragma unroll 1
      for (int turn = 0; turn < windows.turns(); ++turn) {
        add_window<decltype(loads)::value>(other, image, rows_b.step, at.b, channels, windows, turn, mine, size, to);
      }
    }
  });
  tile.put(sums);
  __syncthreads();
  write_tile(tile, grid, at, p.channels, 0, target);
}

// A pixel of a, as what it gives to fb is gathered: its number, its window's first column, and 1 / its norm (or 1).
template <class A>
struct alignas(16) WindowLanding {
  int pixel, column;
  A scale;
};

// Where windows lie, for the map: the cells are those of first taps, (2r+1) more above and left of fb than it has.
template <class A>
struct WindowPlaces {
  using Landing = WindowLanding<A>;
  LocalCorrelationParams p;
  const A* inverse_norm;  // (B, Ha * Wa), or null

  __device__ __forceinline__ Window<A> window(int64_t b, int pixel) const {
    const int width = static_cast<int>(p.width_a);
    return window_of<A>(p, b, pixel / width, pixel % width);
  }
  __device__ __forceinline__ int cell(int64_t b, int pixel) const {
    const Window<A> w = window(b, pixel);
    const int margin = w.size - 1, height = static_cast<int>(p.height_b), width = static_cast<int>(p.width_b);
    const bool lands = w.finite && w.y >= -margin && w.y < height && w.x >= -margin && w.x < width;
    return lands ? (w.y + margin) * (width + margin + 1) + (w.x + margin) : -1;
  }
  __device__ __forceinline__ Landing landing(int64_t b, int pixel) const {
    const A scale = inverse_norm == nullptr ? A(1) : inverse_norm[b * p.height_a * p.width_a + pixel];
    return {pixel, window(b, pixel).x, scale};
  }
};

template <class A>
using WindowMap = warp_cuda::InverseMap<WindowLanding<A>>;

// The landings that reach a run of four pixels of fb, row of cells by row of cells: as many rows as a window has.
struct RunReach {
  const int* starts;  // of the first cell of the first row
  int cells;          // of a row; 0 where there is no run

  template <class A>
  __device__ __forceinline__ RunReach(const WindowMap<A>& map, const RunGrid& grid, int64_t b, int run, int size) {
    const RunPixel first = pixel_of_run(grid, run, 0), last = pixel_of_run(grid, run, kRunPixels - 1);
    starts = map.starts + (b * map.rows + first.y) * map.pitch + first.x;
    cells = first.exists ? last.x - first.x + size : 0;
  }

  // All landings, in every lane.
  __device__ __forceinline__ int count(int pitch, int rows) const {
    int sum = 0;
    for (int i = static_cast<int>(threadIdx.x) % 32; i < rows; i += 32) {
      const int* const row = starts + static_cast<int64_t>(i) * pitch;
      sum += row[cells] - row[0];
    }
    return warp_reduce_sum(sum);
  }
};

// Who forms the sums of a warp's run: the warp, all of them together, or another block.
constexpr int kOwn = 0, kTogether = 1, kAbsent = 2;

// What the sums over landings read.
template <class T>
struct GatheredWindows {
  WindowMap<accumulate_t<T>> map;
  Rows<T> rows_a;
  const accumulate_t<T>* gradient;  // to the products
  int size;                         // of a window's side
};

// Adds the rows of the landings of a run of fb, 32 at a time; with all warps of the block `together` every fourth 32
// of a row of cells.
template <RowLoads kLoads, class T>
__device__ __forceinline__ void add_landings(const GatheredWindows<T>& from, int b, const RunReach& reach, int own_x,
                                             const LaneChannels<T>& channels, bool together, RunSums<T>& sums) {
  using Acc = accumulate_t<T>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int octet_tap = lane / Octets<T>::kLanes * kTapsAtOnce, own_tap = octet_tap + lane / kRunPixels % kTapsAtOnce;
  const int64_t pixels = static_cast<int64_t>(b) * from.map.pixels;
  const T* const image = from.rows_a.of_image(b);
  const int* cells = reach.starts;
#pragma unroll 1
  for (int i = from.size - 1; i >= 0; --i, cells += from.map.pitch) {  // windows that begin i rows above q
    const int begin = cells[0], count = cells[reach.cells] - begin;
    // Together another warp begins in each row, since most rows have few landings.
#pragma unroll 1
    for (int group = together ? ((static_cast<int>(threadIdx.x) + 32 * i) & (kFlowThreads - 32)) : 0; group < count;
         group += together ? kFlowThreads : 32) {
      const int here = min(32, count - group);
      const WindowLanding<Acc> landing = from.map.landings[pixels + (begin + group + min(lane, here - 1))];
#pragma unroll 1
      for (int n = 0; n < here; n += kStepTaps) {
        const T* pixel[kTapsAtOnce];
#pragma unroll
        for (int u = 0; u < kTapsAtOnce; ++u) {
          const int at = __shfl_sync(kWholeWarp, landing.pixel, min(n + octet_tap + u, here - 1));
          pixel[u] = image + static_cast<int64_t>(at) * from.rows_a.step;
        }
        const int source = min(n + own_tap, here - 1);
        const int at = __shfl_sync(kWholeWarp, landing.pixel, source);
        const int j = own_x - __shfl_sync(kWholeWarp, landing.column, source);
        const bool counts = n + own_tap < here && static_cast<unsigned>(j) < static_cast<unsigned>(from.size);
        const Acc scale = __shfl_sync(kWholeWarp, landing.scale, source);
        Acc weight = Acc(0);
        if (counts) weight = scale * from.gradient[((pixels + at) * from.size + i) * from.size + j];
        sums.template add<kLoads>(channels, pixel, weight, counts);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kFlowThreads, kFlowBlocks<T>)
    local_correlation_flow_grad_b_kernel(GatheredWindows<T> from, int64_t channels_of_fb, RunGrid grid, int chunks,
                                         GradientTarget<T> target) {
  using Flags = int[kWarps];
  CSF_SHARED(SumTile<T>, tile);
  CSF_SHARED(Flags, crowded);  // kOwn, kTogether, kAbsent
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const GradientPlace at(grid, chunks);
  const LaneChannels<T> channels(at.chunk, from.rows_a.vectors);
  const int landings = RunReach(from.map, grid, at.b, at.run, from.size).count(from.map.pitch, from.size);
  if (thread % 32 == 0) crowded[warp] = landings;
  __syncthreads();
  int mean = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) mean += crowded[w] / kWarps;
  __syncthreads();
  if (thread % 32 == 0) {
    const bool shared = grid.of_block == 1 || (landings > kCrowded && landings / 2 > mean);
    crowded[warp] = warp >= grid.of_block ? kAbsent : shared ? kTogether : kOwn;
  }
  __syncthreads();

  // First every warp its own run, where that is not crowded; then all warps one crowded run after the other.
  int crowd_run = -1;
#pragma unroll 1
  do {
    const bool together = crowd_run >= 0;
    if (together || crowded[warp] == kOwn) {
      const int run = together ? at.first_run + crowd_run : at.run;
      RunSums<T> sums;
      const RunReach reach(from.map, grid, at.b, run, from.size);
      // A pixel beyond the image takes what its neighbour takes, and is not written.
      const int own_x = pixel_of_run(grid, run, thread % kRunPixels).x;
      sums.form(channels, [&](auto loads, RunSums<T>& to) {
        add_landings<decltype(loads)::value>(from, at.b, reach, own_x, channels, together, to);
      });
      tile.put(sums);
    }
    __syncthreads();
    unsigned crowd = 0;  // of runs still to come
#pragma unroll
    for (int w = 0; w < kWarps; ++w) crowd |= static_cast<unsigned>(crowded[w] == kTogether && w > crowd_run) << w;
    if (together) {
      tile.add_warps(crowd_run);
      __syncthreads();
    }
    write_tile(tile, grid, at, channels_of_fb, together ? ~(1u << crowd_run) : crowd, target);
    __syncthreads();
    crowd_run = __ffs(static_cast<int>(crowd)) - 1;
  } while (crowd_run >= 0);
}

}  // namespace cosegflow::local_correlation_cuda

// Where the pixels of the output land in x, listed by place: what turns the scatter of warp's gradient into a gather.
//
// A pixel lands in the cell of x between its four taps. Cells have the coordinates of their upper left tap plus 1, so
// that those of the taps left of and above the image count too: (H + 1) rows of W + 1 cells. The list of an image has
// its pixels in the order of the cells, rows of cells in any order, and those of one cell in raster order: what a row's
// cells hold lies together, and a pixel of x finds what reaches it in two runs, one for the cells above it and one for
// those below. Sums over the list have one order, whatever the order of threads was.
//
// Five launches build it, none of which knows how many channels there are:
//   clear    the counters
//   count    a thread a pixel: its number within its cell, in order of arrival (one atomic)
//   starts   a block a row of cells: the sums of the counts, from a place that the row takes from its image's counter
//   place    a thread a pixel: its name to its place
//   order    a thread a cell of up to 16 pixels, a warp a fuller one: raster order; and what a gather wants to know of
//            each pixel, 16 bytes
// A very full cell (all pixels of an image may land in one) is not sorted: its warp looks at all pixels of the image in
// raster order and takes those that land there.
#pragma once

#include "common/arena.h"
#include "warp/warp_tiles.cuh"

namespace cosegflow::warp_cuda {

// A pixel of the output, as its gradient is gathered.
template <class A>
struct alignas(16) Landing {
  A wx, wy;    // the fractions
  int offset;  // of the pixel within a plane of grad_out
};

template <class A>
struct InverseMap {
  int* starts;  // (B, H + 1, W + 2): where a cell's pixels begin in its image's list; after a row's last, its end
  int* used;    // (B): how much of an image's list is taken
  int* ranks;   // (B, Ho, Wo): the number of a pixel within its cell, in order of arrival; -1: lands nowhere
  int* places;  // (B, Ho * Wo): the list: pixels of the output, by row and column
  Landing<A>* landings;  // the same list
  int pitch, rows;       // of starts: W + 2, H + 1
  int pixels;            // Ho * Wo
};

// The ranks are read before the landings are written, and lie in their memory.
template <class A>
InverseMap<A> inverse_map(const WarpParams& p, Arena& arena) {
  InverseMap<A> map{};
  map.pitch = static_cast<int>(p.width + 2), map.rows = static_cast<int>(p.height + 1);
  map.pixels = static_cast<int>(p.out_height * p.out_width);
  map.starts = arena.take<int>(p.batch * map.rows * map.pitch + p.batch);
  map.used = map.starts == nullptr ? nullptr : map.starts + p.batch * map.rows * map.pitch;
  map.places = arena.take<int>(p.batch * map.pixels);
  map.landings = arena.take<Landing<A>>(p.batch * map.pixels);
  map.ranks = reinterpret_cast<int*>(map.landings);
  return map;
}

// Whether cells and pixels of an image have 31 bits, and rows and groups of cells of all images fit a grid.
inline bool inverse_map_fits(const WarpParams& p) {
  return bounded_product(INT32_MAX, p.height + 1, p.width + 2) <= INT32_MAX &&
         bounded_product(INT32_MAX, p.batch, p.height + 1) <= INT32_MAX &&
         bounded_product(int64_t{INT32_MAX} * kThreads, p.batch, p.height + 1, p.width + 2) <=
             int64_t{INT32_MAX} * kThreads;
}

// The cell in which a pixel lands, in its image's starts; -1 where no tap lies inside.
template <class A>
__device__ __forceinline__ int cell_of(const WarpPoint<A>& point, const WarpParams& p) {
  const int lowest = point.nearest ? 0 : -1;
  const bool lands =
      point.finite && point.x0 >= lowest && point.x0 < p.width && point.y0 >= lowest && point.y0 < p.height;
  return lands ? (point.y0 + 1) * static_cast<int>(p.width + 2) + point.x0 + 1 : -1;
}

template <class A>
__device__ __forceinline__ WarpPoint<A> point_of_pixel(const WarpParams& p, int64_t b, int pixel) {
  const int width = static_cast<int>(p.out_width);
  return point_of_pixel<A>(p, b, pixel / width, pixel % width);
}

struct ImagePixel {
  int64_t b;
  int pixel;
  bool exists;
};

// From a flat grid over (image, 256 pixels).
__device__ __forceinline__ ImagePixel image_pixel(int pixels) {
  const unsigned runs = (static_cast<unsigned>(pixels) + kThreads - 1) / kThreads;
  const unsigned pixel = blockIdx.x % runs * kThreads + threadIdx.x;
  return {blockIdx.x / runs, static_cast<int>(pixel), pixel < static_cast<unsigned>(pixels)};
}

template <class A>
__global__ void __launch_bounds__(kThreads) warp_inverse_count_kernel(WarpParams p, InverseMap<A> map) {
  const ImagePixel at = image_pixel(map.pixels);
  if (!at.exists) return;
  const int cell = cell_of(point_of_pixel<A>(p, at.b, at.pixel), p);
  int* starts = map.starts + at.b * map.rows * map.pitch;
  map.ranks[at.b * map.pixels + at.pixel] = cell < 0 ? -1 : atomicAdd(starts + cell, 1);
}

// Sums over the threads of a block: of those before this one, and of all.
struct BlockSums {
  int before, all;
};

__device__ __forceinline__ BlockSums block_sums(int value) {
  constexpr int kWarps = kThreads / 32;
  using Totals = int[kWarps];
  CSF_SHARED(Totals, totals);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int sum = value;
#pragma unroll
  for (int apart = 1; apart < 32; apart *= 2) {
    const int below = __shfl_up_sync(kWholeWarp, sum, apart);
    if (lane >= apart) sum += below;
  }
  if (lane == 31) totals[warp] = sum;
  __syncthreads();
  BlockSums sums{sum - value, 0};
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) sums.before += totals[i];
    sums.all += totals[i];
  }
  __syncthreads();
  return sums;
}

// Template like the others, so that a header can define it.
template <class A>
__global__ void __launch_bounds__(kThreads) warp_inverse_starts_kernel(InverseMap<A> map) {
  constexpr int kCells = 4;
  CSF_SHARED(int, base);
  int* row = map.starts + static_cast<int64_t>(blockIdx.x) * map.pitch;
  const int thread = static_cast<int>(threadIdx.x);
  int count = 0;
  for (int i = thread; i < map.pitch; i += kThreads) count += row[i];
  const int total = block_sums(count).all;
  if (thread == 0) base = atomicAdd(map.used + blockIdx.x / map.rows, total);
  __syncthreads();
  int start = base;
  for (int first = 0; first < map.pitch; first += kThreads * kCells) {
    int counts[kCells], sum = 0;
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const int cell = first + thread * kCells + i;
      counts[i] = cell < map.pitch ? row[cell] : 0;
      sum += counts[i];
    }
    const BlockSums sums = block_sums(sum);
    int at = start + sums.before;
#pragma unroll
    for (int i = 0; i < kCells; ++i) {
      const int cell = first + thread * kCells + i;
      if (cell < map.pitch) row[cell] = at;
      at += counts[i];
    }
    start += sums.all;
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads) warp_inverse_place_kernel(WarpParams p, InverseMap<A> map) {
  const ImagePixel at = image_pixel(map.pixels);
  if (!at.exists) return;
  const int cell = cell_of(point_of_pixel<A>(p, at.b, at.pixel), p);
  if (cell < 0) return;
  const int64_t image = at.b * map.pixels;
  map.places[image + map.starts[at.b * map.rows * map.pitch + cell] + map.ranks[image + at.pixel]] = at.pixel;
}

template <class A>
__device__ __forceinline__ Landing<A> landing_of(const WarpParams& p, int64_t b, int pixel) {
  const int width = static_cast<int>(p.out_width);
  const int row = pixel / width, column = pixel % width;
  const WarpPoint<A> point = point_of_pixel<A>(p, b, row, column);
  return {point.wx, point.wy, place_of(p.grad_out, row, column)};
}

// How many of n pixels come before `pixel` in raster order.
__device__ __forceinline__ int count_before(const int* places, int n, int pixel) {
  int before = 0;
#pragma unroll 4
  for (int j = 0; j < n; ++j) before += places[j] < pixel;
  return before;
}

// The 32 lanes of a warp order one full cell.
template <class A>
__device__ __forceinline__ void order_full_cell(const WarpParams& p, const InverseMap<A>& map, int64_t b, int cell,
                                                int begin, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int* places = map.places + b * map.pixels + begin;
  Landing<A>* landings = map.landings + b * map.pixels + begin;
  if (static_cast<int64_t>(n) * n <= int64_t{8} * map.pixels) {  // about what looking at all pixels costs
    for (int i = lane; i < n; i += 32) landings[count_before(places, n, places[i])] = landing_of<A>(p, b, places[i]);
    return;
  }
  int found = 0;
  for (int first = 0; first < map.pixels; first += 32) {
    const int pixel = first + lane;
    const bool here = pixel < map.pixels && cell_of(point_of_pixel<A>(p, b, pixel), p) == cell;
    const unsigned all = __ballot_sync(kWholeWarp, here);
    if (here) landings[found + __popc(all & ((1u << lane) - 1u))] = landing_of<A>(p, b, pixel);
    found += __popc(all);
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads) warp_inverse_order_kernel(WarpParams p, InverseMap<A> map, int64_t cells) {
  constexpr int kFew = 16;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int per_image = map.rows * map.pitch;
  int begin = 0, n = 0, cell = 0;
  int64_t b = 0;
  if (index < cells) {
    b = index / per_image, cell = static_cast<int>(index % per_image);
    if (cell % map.pitch < map.pitch - 1) begin = map.starts[index], n = map.starts[index + 1] - begin;
  }
  if (n <= kFew) {
    const int* places = map.places + b * map.pixels + begin;
    Landing<A>* landings = map.landings + b * map.pixels + begin;
    for (int i = 0; i < n; ++i) landings[count_before(places, n, places[i])] = landing_of<A>(p, b, places[i]);
  }
  for (unsigned full = __ballot_sync(kWholeWarp, n > kFew); full != 0; full &= full - 1) {
    const int lane = __ffs(static_cast<int>(full)) - 1;
    const int64_t image = __shfl_sync(kWholeWarp, static_cast<int>(b), lane);
    const int its_cell = __shfl_sync(kWholeWarp, cell, lane), its_begin = __shfl_sync(kWholeWarp, begin, lane);
    order_full_cell(p, map, image, its_cell, its_begin, __shfl_sync(kWholeWarp, n, lane));
  }
}

// Of the gradient to x that is gathered by the map.
template <class A>
Status build_inverse_map(const WarpParams& p, const InverseMap<A>& map, Stream stream) {
  const int64_t cells = p.batch * map.rows * map.pitch;
  const int64_t runs = (map.pixels + int64_t{kThreads} - 1) / kThreads;
  const dim3 pixels(static_cast<unsigned>(p.batch * runs)), threads(kThreads);
  Status s = memset_async(map.starts, 0, static_cast<size_t>(cells + p.batch) * sizeof(int), stream);
  if (s.ok()) s = launch(&warp_inverse_count_kernel<A>, pixels, threads, 0, stream, p, map);
  if (s.ok()) {
    s = launch(&warp_inverse_starts_kernel<A>, dim3(static_cast<unsigned>(p.batch * map.rows)), threads, 0, stream,
               map);
  }
  if (s.ok()) s = launch(&warp_inverse_place_kernel<A>, pixels, threads, 0, stream, p, map);
  const dim3 groups(static_cast<unsigned>((cells + kThreads - 1) / kThreads));
  if (s.ok()) s = launch(&warp_inverse_order_kernel<A>, groups, threads, 0, stream, p, map, cells);
  return s;
}

}  // namespace cosegflow::warp_cuda

// Where the pixels of one image land in another, listed by place: what turns a scatter into a gather.
//
// A pixel lands in a cell: warp's between its four taps, local_correlation's that of its window's corner. The list of
// an image has its pixels in the order of the cells, rows of cells in any order, and those of one cell in raster order:
// what a row's cells hold lies together, and whoever is reached by neighbouring cells of a row finds what reaches it in
// one run. Sums over the list have one order, whatever the order of threads was.
//
// Five launches build it, none of which knows how many channels there are:
//   clear    the counters
//   count    a thread a pixel: its number within its cell, in order of arrival (one atomic)
//   starts   a block a row of cells: the sums of the counts, from a place that the row takes from its image's counter
//   place    a thread a pixel: its name to its place
//   order    a thread a cell of up to 16 pixels, a warp a fuller one: raster order; and what a gather wants to know of
//            each pixel
// A very full cell (all pixels of an image may land in one) is not sorted: its block looks at all pixels of the image
// in raster order and takes those that land there.
//
// The kernels ask a Places where pixels land:
//   using Landing = ...;                         what a gather wants to know of a pixel, 4 bytes or more
//   int cell(int64_t b, int pixel) const;        in its image's starts; -1: nowhere
//   Landing landing(int64_t b, int pixel) const;
#pragma once

#include "common/arena.h"
#include "warp/warp_tiles.cuh"

namespace cosegflow::warp_cuda {

template <class L>
struct InverseMap {
  int* starts;      // (B, rows, pitch): where a cell's pixels begin in its image's list; after a row's last, its end
  int* used;        // (B): how much of an image's list is taken
  int* ranks;       // (B, pixels): the number of a pixel within its cell, in order of arrival; -1: lands nowhere
  int* places;      // (B, pixels): the list: pixels by row and column
  L* landings;      // the same list
  int pitch, rows;  // of starts: one more than an image's columns of cells, and its rows
  int pixels;       // of an image that lands
};

// Of images that have `pixels` pixels each. The ranks are read before the landings are written, and lie in their
// memory.
template <class L>
InverseMap<L> inverse_map(int64_t batch, int64_t rows, int64_t columns, int64_t pixels, Arena& arena) {
  static_assert(sizeof(L) >= sizeof(int), "a rank fits the place of a landing");
  InverseMap<L> map{};
  map.pitch = static_cast<int>(columns + 1), map.rows = static_cast<int>(rows);
  map.pixels = static_cast<int>(pixels);
  map.starts = arena.take<int>(batch * map.rows * map.pitch + batch);
  map.used = map.starts == nullptr ? nullptr : map.starts + batch * map.rows * map.pitch;
  map.places = arena.take<int>(batch * map.pixels);
  map.landings = arena.take<L>(batch * map.pixels);
  map.ranks = reinterpret_cast<int*>(map.landings);
  return map;
}

// Whether cells of an image have 31 bits, and rows and groups of cells of all images fit a grid.
inline bool inverse_map_fits(int64_t batch, int64_t rows, int64_t columns) {
  return bounded_product(INT32_MAX, rows, columns + 1) <= INT32_MAX &&
         bounded_product(INT32_MAX, batch, rows) <= INT32_MAX &&
         bounded_product(int64_t{INT32_MAX} * kThreads, batch, rows, columns + 1) <= int64_t{INT32_MAX} * kThreads;
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

template <class P>
__global__ void __launch_bounds__(kThreads) warp_inverse_count_kernel(P where, InverseMap<typename P::Landing> map) {
  const ImagePixel at = image_pixel(map.pixels);
  if (!at.exists) return;
  const int cell = where.cell(at.b, at.pixel);
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
template <class L>
__global__ void __launch_bounds__(kThreads) warp_inverse_starts_kernel(InverseMap<L> map) {
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

template <class P>
__global__ void __launch_bounds__(kThreads) warp_inverse_place_kernel(P where, InverseMap<typename P::Landing> map) {
  const ImagePixel at = image_pixel(map.pixels);
  if (!at.exists) return;
  const int cell = where.cell(at.b, at.pixel);
  if (cell < 0) return;
  const int64_t image = at.b * map.pixels;
  map.places[image + map.starts[at.b * map.rows * map.pitch + cell] + map.ranks[image + at.pixel]] = at.pixel;
}

// How many of n pixels come before `pixel` in raster order.
__device__ __forceinline__ int count_before(const int* places, int n, int pixel) {
  int before = 0;
#pragma unroll 4
  for (int j = 0; j < n; ++j) before += places[j] < pixel;
  return before;
}

// A cell so full that comparing its pixels with each other costs more than looking at all pixels of the image.
template <class L>
__device__ __forceinline__ bool very_full(const InverseMap<L>& map, int n) {
  return static_cast<int64_t>(n) * n > int64_t{8} * map.pixels;
}

// A block orders a very full cell: it takes the pixels that land there as it finds them in raster order.
template <class P>
__device__ __forceinline__ void find_cell(const P& where, const InverseMap<typename P::Landing>& map, int64_t b,
                                          int cell, int begin) {
  typename P::Landing* landings = map.landings + b * map.pixels + begin;
  int found = 0;
  for (int first = 0; first < map.pixels; first += kThreads) {
    const int pixel = first + static_cast<int>(threadIdx.x);
    const bool here = pixel < map.pixels && where.cell(b, pixel) == cell;
    const BlockSums sums = block_sums(here ? 1 : 0);
    if (here) landings[found + sums.before] = where.landing(b, pixel);
    found += sums.all;
  }
}

// Threads of a block whose cells are very full.
struct FullCells {
  int thread[kThreads];
  int count;
};

template <class P>
__global__ void __launch_bounds__(kThreads)
    warp_inverse_order_kernel(P where, InverseMap<typename P::Landing> map, int64_t cells, int of_block) {
  constexpr int kFew = 16;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * of_block + thread;
  const int per_image = map.rows * map.pitch;
  int begin = 0, n = 0, cell = 0;
  int64_t b = 0;
  if (thread < of_block && index < cells) {
    b = index / per_image, cell = static_cast<int>(index % per_image);
    if (cell % map.pitch < map.pitch - 1) begin = map.starts[index], n = map.starts[index + 1] - begin;
  }
  if (n <= kFew) {
    const int* places = map.places + b * map.pixels + begin;
    typename P::Landing* landings = map.landings + b * map.pixels + begin;
    for (int i = 0; i < n; ++i) landings[count_before(places, n, places[i])] = where.landing(b, places[i]);
  }
  CSF_SHARED(FullCells, full);
  if (thread == 0) full.count = 0;
  __syncthreads();
  const bool later = n > kFew && very_full(map, n);
  if (later) full.thread[atomicAdd(&full.count, 1)] = thread;
  for (unsigned some = __ballot_sync(kWholeWarp, n > kFew && !later); some != 0; some &= some - 1) {
    const int of = __ffs(static_cast<int>(some)) - 1, its_n = __shfl_sync(kWholeWarp, n, of);
    const int64_t image = __shfl_sync(kWholeWarp, static_cast<int>(b), of);
    const int64_t list = image * map.pixels + __shfl_sync(kWholeWarp, begin, of);
    for (int i = lane; i < its_n; i += 32) {
      const int pixel = map.places[list + i];
      map.landings[list + count_before(map.places + list, its_n, pixel)] = where.landing(image, pixel);
    }
  }
  __syncthreads();
  for (int k = 0; k < full.count; ++k) {
    const int64_t at = index - thread + full.thread[k];
    find_cell(where, map, at / per_image, static_cast<int>(at % per_image), map.starts[at]);
  }
}

// Of `batch` images.
template <class P>
Status build_inverse_map(const P& places, int64_t batch, const InverseMap<typename P::Landing>& map, Stream stream) {
  const int64_t cells = batch * map.rows * map.pitch;
  const int64_t runs = (map.pixels + int64_t{kThreads} - 1) / kThreads;
  const dim3 pixels(static_cast<unsigned>(batch * runs)), threads(kThreads);
  Status s = memset_async(map.starts, 0, static_cast<size_t>(cells + batch) * sizeof(int), stream);
  if (s.ok()) s = launch(&warp_inverse_count_kernel<P>, pixels, threads, 0, stream, places, map);
  if (s.ok()) {
    s = launch(&warp_inverse_starts_kernel<typename P::Landing>, dim3(static_cast<unsigned>(batch * map.rows)), threads,
               0, stream, map);
  }
  if (s.ok()) s = launch(&warp_inverse_place_kernel<P>, pixels, threads, 0, stream, places, map);
  // Few cells to a block where there are few, since those may be full.
  const int64_t share = cells / (4 * int64_t{multiprocessors()}), of_block = share < 1 ? 1 : share;
  const int few = static_cast<int>(of_block < kThreads ? of_block : kThreads);
  const dim3 groups(static_cast<unsigned>((cells + few - 1) / few));
  if (s.ok()) s = launch(&warp_inverse_order_kernel<P>, groups, threads, 0, stream, places, map, cells, few);
  return s;
}

}  // namespace cosegflow::warp_cuda

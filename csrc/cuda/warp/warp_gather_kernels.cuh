// warp's gradient to x on CUDA, gathered by the map of where the output's pixels land (warp_inverse.cuh): no atomics,
// every element is written once, and each sum has one order: the bits do not depend on timing.
//
// A pixel of x is reached by the pixels that landed in the four cells around it: two runs of the list, one of the cells
//   above it and one of those below. Where the flow is smooth that is about four of them, its neighbours' too: the
//   gather then reads like the forward.
// Planes: a block has a tile of 32 x 8 pixels of x and up to 32 channels, a thread one pixel and 16 channels at once,
//   whose sums stay in registers: for each landing all their loads are in flight, and the next landing's data. 72
//   registers, 3 blocks a multiprocessor; 84 instructions a landing.
// Channels: a block has a tile of up to 16 x 16 pixels of x and all channels; threads walk over (pixel, 16 bytes of
//   channels), up to four landings (halves: two) of it in flight. 80 registers, 12 KB of shared memory (halves 16); 152
//   instructions for 16 bytes of float32 with four landings.
// A crowded pixel (hundreds of landings, and many more than its neighbours have) would keep one thread busy when all
//   others are done: the whole block takes such pixels one after the other, a thread every 256th landing.
// Must move: C (H W + Ho Wo) elements, 16 Ho Wo + 4 H W bytes of the map for each run of channels. Time not measured
// yet.
#pragma once

#include "primitives/warp_reduce.cuh"
#include "warp/channel_vector.cuh"
#include "warp/warp_landings.cuh"

namespace cosegflow::warp_cuda {

template <class T>
constexpr int kGatherChannels = sizeof(T) == 8 ? 8 : 16;  // of a thread at once, over planes
constexpr int kCrowded = 64;                              // landings that are not crowded, whatever the block has

// The landings that reach one pixel of x: `upper` of them, in the cells above it, begin at begin[0], the others at
// begin[1]. Those before `middle` are of the left cell: the pixel is their right tap.
struct Reach {
  int begin[2], middle[2];
  int upper, all;  // of the cells above, of all four
};

template <class A>
__device__ __forceinline__ Reach reach_of(const WarpParams& p, const WarpMap<A>& map, int64_t b, int row, int column) {
  const int* cells = map.starts + (b * map.rows + row) * map.pitch + column;
  const bool nearest = p.mode == WarpMode::kNearest;  // only the cell whose upper left tap it is
  Reach reach;
  reach.middle[0] = cells[1];
  reach.begin[0] = nearest ? reach.middle[0] : cells[0];
  reach.upper = nearest ? 0 : cells[2] - reach.begin[0];
  cells += map.pitch;
  reach.middle[1] = cells[1];
  reach.begin[1] = nearest ? reach.middle[1] : cells[0];
  reach.all = reach.upper + cells[2] - reach.begin[1];
  return reach;
}

// Landing i of a pixel: where its gradient is, and the weight with which it reached the pixel.
template <class A>
struct Share {
  int offset;
  A weight;
};

template <class A>
__device__ __forceinline__ Share<A> share_of(const Landing<A>* landings, const Reach& reach, int i) {
  const bool above = i < reach.upper;
  const int at = above ? reach.begin[0] + i : reach.begin[1] + (i - reach.upper);
  const bool left = at < (above ? reach.middle[0] : reach.middle[1]);
  const Landing<A> landing = landings[at];
  return {landing.offset, (left ? landing.wx : A(1) - landing.wx) * (above ? landing.wy : A(1) - landing.wy)};
}

// Whether a pixel with n landings is crowded, in a block whose threads have n each. All threads must call it.
__device__ __forceinline__ bool crowded(int n) {
  const float all = block_reduce_sum(static_cast<float>(n));
  return n > kCrowded && static_cast<float>(n) * kThreads > 4 * all;
}

// Numbers of the crowded pixels of a block, in any order.
struct Crowd {
  int count;
  int thread[kThreads];
};

// grad_x has the type of x or its accumulate type.
template <class T, class A>
__device__ __forceinline__ void store_gradient(const WarpParams& p, int64_t offset, A value) {
  if (sizeof(T) == sizeof(A) || p.grad_x.dtype == p.x.dtype) {
    static_cast<T*>(p.grad_x.data)[offset] = from_float<T>(value);
  } else {
    static_cast<A*>(p.grad_x.data)[offset] = value;
  }
}

template <class T, class A>
__device__ __forceinline__ void store_gradient_vector(const WarpParams& p, int64_t offset, const A (&v)[kVector<T>]) {
  if (sizeof(T) == sizeof(A) || p.grad_x.dtype == p.x.dtype) {
    store_vector(static_cast<T*>(p.grad_x.data) + offset, v);
    return;
  }
  constexpr int kHalf = kVector<T> / 2;
  A* to = static_cast<A*>(p.grad_x.data) + offset;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    A half[kHalf];
#pragma unroll
    for (int j = 0; j < kHalf; ++j) half[j] = v[i * kHalf + j];
    if constexpr (sizeof(T) < sizeof(A)) store_vector(to + i * kHalf, half);
  }
}

// The sums of a thread's landings i = first, first + step, ... over `channels` planes.
template <bool kFull, class T, class A>
__device__ __forceinline__ void gather_planes(const Landing<A>* landings, const Reach& reach, int first, int step,
                                              const T* grad, int64_t plane, int channels,
                                              A (&sum)[kGatherChannels<T>]) {
  if (first >= reach.all) return;
  Share<A> next = share_of(landings, reach, first);
#pragma unroll 1
  for (int i = first; i < reach.all; i += step) {
    const Share<A> share = next;
    if (i + step < reach.all) next = share_of(landings, reach, i + step);
    T g[kGatherChannels<T>];
#pragma unroll
    for (int c = 0; c < kGatherChannels<T>; ++c) {
      if (!kFull && c >= channels) break;
      g[c] = grad[share.offset + c * plane];
    }
#pragma unroll
    for (int c = 0; c < kGatherChannels<T>; ++c) {
      if (!kFull && c >= channels) break;
      sum[c] = multiply_add(share.weight, static_cast<A>(to_float(g[c])), sum[c]);
    }
  }
}

// The run of channels of a block.
template <class T>
struct GatheredPlanes {
  const T* grad;        // the first of the run
  int64_t step;         // from plane to plane
  int64_t to, to_step;  // the same of grad_x
  int channels;
};

// One pixel of x, by one thread: kGatherChannels channels at a time.
template <class T, class A>
__device__ __forceinline__ void gather_pixel(const WarpParams& p, const Landing<A>* landings, const Reach& reach,
                                             GatheredPlanes<T> planes, int place) {
  constexpr int kAtOnce = kGatherChannels<T>;
#pragma unroll 1
  while (planes.channels > 0) {
    A sum[kAtOnce] = {};
    if (planes.channels >= kAtOnce) {
      gather_planes<true>(landings, reach, 0, 1, planes.grad, planes.step, kAtOnce, sum);
    } else {
      gather_planes<false>(landings, reach, 0, 1, planes.grad, planes.step, planes.channels, sum);
    }
#pragma unroll
    for (int c = 0; c < kAtOnce; ++c) {
      if (c < planes.channels) store_gradient<T>(p, planes.to + place + c * planes.to_step, sum[c]);
    }
    planes.grad += kAtOnce * planes.step, planes.to += kAtOnce * planes.to_step, planes.channels -= kAtOnce;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    warp_gather_planes_kernel(WarpParams p, TileGrid grid, WarpMap<accumulate_t<T>> map, int run) {
  using A = accumulate_t<T>;
  constexpr int kAtOnce = kGatherChannels<T>;
  CSF_SHARED(Crowd, crowd);
  using Partials = A[kThreads / 32][kAtOnce];
  CSF_SHARED(Partials, partials);
  const int thread = static_cast<int>(threadIdx.x);
  const TilePixel at = pixel_of_thread(grid);
  const Landing<A>* landings = map.landings + at.b * map.pixels;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * run;
  const GatheredPlanes<T> planes{plane_of<const T>(p.grad_out, at.b, first), p.grad_out.stride[1],
                                 at.b * p.grad_x.stride[0] + first * p.grad_x.stride[1], p.grad_x.stride[1],
                                 static_cast<int>(p.channels - first < run ? p.channels - first : run)};

  if (thread == 0) crowd.count = 0;
  Reach reach = reach_of(p, map, at.b, at.row, at.column);
  if (!at.exists) reach.all = 0;
  const bool later = crowded(reach.all);  // its barriers are behind the store above and before the count below
  if (later) crowd.thread[atomicAdd(&crowd.count, 1)] = thread;
  if (at.exists && !later) gather_pixel<T>(p, landings, reach, planes, place_of(p.grad_x, at.row, at.column));
  __syncthreads();
  const Tile tile = tile_of_block(grid);
#pragma unroll 1
  for (int k = 0; k < crowd.count; ++k) {
    const int row = tile.row + crowd.thread[k] / kRowWidth, column = tile.column + crowd.thread[k] % kRowWidth;
    reach = reach_of(p, map, at.b, row, column);
    const int64_t to = planes.to + place_of(p.grad_x, row, column);
#pragma unroll 1
    for (int done = 0; done < planes.channels; done += kAtOnce) {
      A sum[kAtOnce] = {};
      gather_planes<false>(landings, reach, thread, kThreads, planes.grad + done * planes.step, planes.step,
                           planes.channels - done, sum);
#pragma unroll
      for (int c = 0; c < kAtOnce; ++c) {
        const A total = warp_reduce_sum(sum[c]);
        if (thread % 32 == 0) partials[thread / 32][c] = total;
      }
      __syncthreads();
      if (thread < kAtOnce && done + thread < planes.channels) {
        A total = partials[0][thread];
        for (int w = 1; w < kThreads / 32; ++w) total += partials[w][thread];
        store_gradient<T>(p, to + (done + thread) * planes.to_step, total);
      }
      __syncthreads();
    }
  }
}

// The same over 16 bytes of channels, up to kFlight landings in flight.
template <class T, class A>
__device__ __forceinline__ void gather_vector(const Landing<A>* landings, const Reach& reach, int first, int step,
                                              const T* grad, A (&sum)[kVector<T>]) {
  constexpr int kFlight = sizeof(T) == 2 ? 2 : 4;
#pragma unroll 1
  for (int i = first; i < reach.all; i += kFlight * step) {
    Share<A> share[kFlight];
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      if (i + k * step < reach.all) share[k] = share_of(landings, reach, i + k * step);
    }
    A g[kFlight][kVector<T>];
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      if (i + k * step < reach.all) load_vector(grad + share[k].offset, g[k]);
    }
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      if (i + k * step >= reach.all) break;
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) sum[j] = multiply_add(share[k].weight, g[k][j], sum[j]);
    }
  }
}

// A pixel of a tile, as all threads of the block need it.
struct PlacedReach {
  Reach reach;
  int place;  // of the pixel in grad_x; -1: beyond the image, or crowded
};

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    warp_gather_channels_kernel(WarpParams p, TileGrid grid, WarpMap<accumulate_t<T>> map) {
  using A = accumulate_t<T>;
  using Reaches = PlacedReach[kThreads];
  CSF_SHARED(Reaches, reaches);
  CSF_SHARED(Crowd, crowd);
  constexpr int kLanes = kVector<T>;  // named: nvcc's host pass takes a variable template here for no constant
  using Partials = A[kThreads][kLanes];
  CSF_SHARED(Partials, partials);
  const int thread = static_cast<int>(threadIdx.x), pixels = grid.tile_height * kPieceWidth;
  const Tile tile = tile_of_block(grid);
  const Landing<A>* landings = in_registers(map.landings + tile.b * map.pixels);
  const int vectors = static_cast<int>(p.channels) / kVector<T>;
  const T* grad = in_registers(plane_of<const T>(p.grad_out, tile.b, 0));
  const int64_t image = tile.b * p.grad_x.stride[0];

  if (thread == 0) crowd.count = 0;
  PlacedReach own{};
  const int own_row = tile.row + thread / kPieceWidth, own_column = tile.column + thread % kPieceWidth;
  const bool exists = thread < pixels && own_row < grid.height && own_column < grid.width;
  if (exists) own.reach = reach_of(p, map, tile.b, own_row, own_column);
  const bool later = crowded(own.reach.all);
  if (later) crowd.thread[atomicAdd(&crowd.count, 1)] = thread;
  own.place = exists && !later ? place_of(p.grad_x, own_row, own_column) : -1;
  reaches[thread] = own;
  __syncthreads();
  for_each_vector<T>(pixels, vectors, [&](int pixel, int channel) {
    const PlacedReach at = reaches[pixel];
    if (at.place < 0) return;
    A sum[kVector<T>] = {};
    gather_vector<T>(landings, at.reach, 0, 1, grad + channel, sum);
    store_gradient_vector<T>(p, image + (at.place + channel), sum);
  });
  const int side_by_side = vectors < 32 ? vectors : 32;  // vectors at once; their sums have as many threads as fit
  const int slices = kThreads / side_by_side, slice = thread / side_by_side;
#pragma unroll 1
  for (int k = 0; k < crowd.count; ++k) {
    const int row = tile.row + crowd.thread[k] / kPieceWidth, column = tile.column + crowd.thread[k] % kPieceWidth;
    const Reach reach = reaches[crowd.thread[k]].reach;
    for (int first = 0; first < vectors; first += side_by_side) {
      const int vector = first + thread % side_by_side;
      const bool works = slice < slices && vector < vectors;
      A sum[kVector<T>] = {};
      if (works) gather_vector<T>(landings, reach, slice, slices, grad + vector * kVector<T>, sum);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) partials[thread][j] = sum[j];
      __syncthreads();
      if (works && slice == 0) {
#pragma unroll 1
        for (int s = 1; s < slices; ++s) {
#pragma unroll
          for (int j = 0; j < kVector<T>; ++j) sum[j] += partials[s * side_by_side + thread][j];
        }
        store_gradient_vector<T>(p, image + (place_of(p.grad_x, row, column) + vector * kVector<T>), sum);
      }
      __syncthreads();
    }
  }
}

}  // namespace cosegflow::warp_cuda

// soft_argmax forward with a window (kernel_sigma): the most probable target of each row, then the softmax of
// k max(s, 0) around it. The volume is read once: a row stays in shared memory between the two.
//
// A team of warps has a row, as in soft_argmax_forward_kernels.cuh. A thread copies its words of the row (at most 16)
// to
//   shared memory, by cp.async past the registers, and reads only those: no barrier. First walk: the maximum, of halves
//   two or three at a time. Then the warp finds the place of it (find_most_probable), and the team fills two tables:
//   the window is a Gaussian over x times one over y, so a score costs no second exponential. Second walk: the softmax.
//   Without a mask and with beta >= 0 its largest logit is known, that of the centre, and nothing is compared or
//   rescaled. In one column of words (Places::kColumn) a thread's part of the table over x stays in registers.
//   Registers: 80; shared memory: 64 KB and the tables a block (256 threads, up to 8 rows): three blocks fit.
//   In flight: up to 24 warps x 8 KB on a multiprocessor, less what is being worked on.
//   Must move: B * M * N elements. Instructions an element, counted in the SASS for sm_90a (loops; some 450 more a row
//   and lane, 3.5 an element of 64 x 64 targets):
//                         rows of b: a divisor of 256 targets   multiple of 8   any
//     bfloat16, float16              9.3                        11.1            24
//     masked: bfloat16                                          20
//   An H200 can issue 16 per bfloat16 at 0.85 of its copy bandwidth. Prediction, not measured: 0.75 to 0.85 of a copy
//   without a mask, bound by instructions with one.
// Not kept (kKept false): rows longer than 64 KB and images of b so wide that tables have no room. The second walk
// reads
//   the row again, from L2, and takes a second exponential per score.
#pragma once

#include "primitives/async_copy.cuh"
#include "soft_argmax/soft_argmax_row.cuh"

namespace cosegflow::soft_argmax_cuda {

// The window as a product: of a table over x and one over y, the latter with beta in it.
template <class T>
struct WindowTables {
  using Acc = accumulate_t<T>;
  static constexpr int kItems = Pack<T>::kItems;
  Acc *x, *y;
  int size_x, size_y;

  // Where column x stands: threads that read neighbouring words of 8 are not to share banks. (Not with kSplit.)
  template <Places kPlaces>
  __device__ __forceinline__ int place(int column) const {
    if constexpr (kItems != 8 || kPlaces == Places::kSplit) return column;
    return (column & 4) * (size_x >> 3) + (column >> 3 << 2) + (column & 3);
  }
  template <Places kPlaces>
  __device__ __forceinline__ void fill(Acc exponent, Acc centre_x, Acc centre_y, Acc beta, int thread,
                                       int stride) const {
#pragma unroll 1
    for (int t = thread; t < size_x; t += stride) {
      const Acc d = static_cast<Acc>(t) - centre_x;
      x[place<kPlaces>(t)] = window_value(exponent, d * d, Acc(0));
    }
#pragma unroll 1
    for (int t = thread; t < size_y; t += stride) {
      const Acc d = static_cast<Acc>(t) - centre_y;
      y[t] = beta * window_value(exponent, d * d, Acc(0));
    }
  }
  // Of kItems neighbours in one image row, the first at a multiple of kItems.
  __device__ __forceinline__ void load_x(int column, Acc (&values)[kItems]) const {
    if constexpr (kItems == 8) {
      Acc low[4], high[4];
      load_shared(low, x + column / 2);
      load_shared(high, x + size_x / 2 + column / 2);
#pragma unroll
      for (int u = 0; u < 4; ++u) values[u] = low[u], values[4 + u] = high[u];
    } else {
      load_shared(values, x + column);
    }
  }
};

// The words of a thread, one after the other: in shared memory, or wherever the row is.
template <class T, bool kKept>
struct ThreadWords {
  uint4* at;  // in shared memory: the next word of this thread

  template <class Row, int kCount>
  __device__ __forceinline__ void next(const Row& row, int w, Pack<T> (&pack)[kCount]) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      if constexpr (kKept) {
        pack[c].words = at[c * kRowThreads];
      } else {
        pack[c] = load_again(row.word(w + c * row.stride));
      }
    }
    if constexpr (kKept) at += kCount * kRowThreads;
  }
};

constexpr int window_blocks(int bytes, bool kept) { return bytes == 8 ? 1 : kept ? 3 : 2; }

template <class T, bool kMasked, Places kPlaces, bool kKept>
__global__ void __launch_bounds__(kRowThreads, window_blocks(sizeof(T), kKept))
    soft_argmax_window_kernel(SoftArgmaxParams p, Targets<accumulate_t<T>> targets, RowPlan plan) {
  using Acc = accumulate_t<T>;
  constexpr int kItems = Pack<T>::kItems;
  using Bests = MostProbable<Acc>[kRowWarps];
  using States = PlaceSoftmax<Acc>[kRowWarps];
  CSF_SHARED(Bests, bests);
  CSF_SHARED(States, states);
  CSF_DYNAMIC_SHARED(uint4, dynamic);
  const Row<T, kMasked> row(p, targets, plan);
  const bool alone = plan.team_shift == 0;  // a warp is a team
  const int team = row.warp >> plan.team_shift, leader = team << plan.team_shift;
  const int next_leader = leader + (1 << plan.team_shift);
  const auto meet = [&] {
    if (alone) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  };
  uint4* const own = kKept ? dynamic + threadIdx.x : nullptr;
  if constexpr (kKept) {
    uint4* to = own;
    row.template walk<kGroup<T>>([&](int w, auto count) {
      const T* from = row.word(w);
#pragma unroll
      for (int c = 0; c < decltype(count)::value; ++c, from += row.stride * kItems) {
        cp_async_16(to + c * kRowThreads, kMasked ? row.word(w + c * row.stride) : from, true);
      }
      to += decltype(count)::value * kRowThreads;
    });
    cp_async_commit();
    cp_async_wait<0>();
  }

  // The most probable target.
  ThreadWords<T, kKept> words{own};
  Acc peak = minus_infinity<Acc>();
  int best = -1;
  row.template walk<kGroup<T>>([&](int w, auto count) {
    Pack<T> pack[decltype(count)::value];
    words.next(row, w, pack);
    const Acc higher = row.higher(peak, pack, w);
    if (higher > peak) best = w;
    peak = higher;
  });
  MostProbable<Acc> most_probable = find_most_probable(row, peak, best);
  if (!alone) {
    if (threadIdx.x % 32 == 0) bests[row.warp] = most_probable;
    __syncthreads();
#pragma unroll 1
    for (int other = leader; other < next_leader; ++other) most_probable.merge(bests[other]);
  }
  if (row.thread == 0 && row.exists) write_most_probable(p, row.at, most_probable);

  // The window around it; -1 is the place of a row of NaN, which stays one.
  const int centre = most_probable.index < 0 ? 0 : static_cast<int>(most_probable.index);
  const int centre_line = plan.width_b.quotient(centre);
  const Acc centre_x = static_cast<Acc>(centre - centre_line * plan.width_b.divisor);
  const Acc centre_y = static_cast<Acc>(centre_line), exponent = static_cast<Acc>(plan.window_exponent);
  Raster<Acc> raster(plan, row.thread * kItems);
  WindowTables<T> tables{};
  Acc in_x[kItems];
  if constexpr (kKept) {
    tables.size_x = plan.table_x, tables.size_y = plan.table_y;
    tables.x = reinterpret_cast<Acc*>(dynamic + plan.kept_words * kRowThreads) + team * (plan.table_x + plan.table_y);
    tables.y = tables.x + plan.table_x;
    tables.template fill<kPlaces>(exponent, centre_x, centre_y, row.beta, row.thread, row.stride);
    meet();
    if constexpr (kPlaces == Places::kColumn) tables.load_x(static_cast<int>(raster.x), in_x);
  }
  const auto place = [&](int w, Acc& x, Acc& y) {
    if constexpr (kMasked) {
      x = row.slots[w].x, y = row.slots[w].y;
    } else {
      x = raster.x, y = raster.y;
      raster.template next<kPlaces>();
    }
  };
  // The scores of a word, clipped, and the slopes of their logits: value * slope is beta k max(s, 0).
  const auto windowed = [&](const Pack<T>& pack, Acc x, Acc y, Acc(&value)[kItems], Acc(&slope)[kItems]) {
    pack.unpack_clipped(value);
    int at_x = static_cast<int>(x), at_y = static_cast<int>(y);
    if constexpr (kKept && kPlaces != Places::kSplit) {
      if constexpr (kPlaces == Places::kLine) tables.load_x(at_x, in_x);
#pragma unroll
      for (int u = 0; u < kItems; ++u) value[u] *= in_x[u], slope[u] = tables.y[at_y];
    } else {
#pragma unroll
      for (int u = 0; u < kItems; ++u) {
        if constexpr (kKept) {
          value[u] *= tables.x[at_x], slope[u] = tables.y[at_y];
        } else {
          const Acc dx = static_cast<Acc>(at_x) - centre_x, dy = static_cast<Acc>(at_y) - centre_y;
          slope[u] = row.beta * window_value(exponent, dx * dx, dy * dy);
        }
        if (++at_x == plan.width_b.divisor) at_x = 0, ++at_y;
      }
    }
  };
  const Acc width = static_cast<Acc>(plan.width_b.divisor), inverse_width = Acc(1) / width;

  // The softmax of the windowed scores.
  words.at = own;
  RunningSoftmax<Acc> state;
  state.clear();
  bool known = false;
  if constexpr (!kMasked && sizeof(T) < 8 && kKept && kPlaces != Places::kSplit) {
    // No logit is larger than that of the centre, where the window is 1. Exponents come without the logits: with one
    // rounding less, so that the centre's is `top` + `residual`.
    constexpr float kLog2e = 1.4426950408889634f;
    const float steep = row.beta * kLog2e, s = most_probable.score > 0.0f ? most_probable.score : 0.0f;
    const float top = steep * s, residual = fma_of(steep, s, -top);
    known = row.beta >= 0.0f && steep < 1e38f && top < 268435456.0f;  // 2^28: beyond, see value_softmax.cuh
    if (known) {
      state.raise(row.beta * s);
      row.template walk<kGroup<T>>([&](int w, auto count) {
        constexpr int kCount = decltype(count)::value;
        Pack<T> pack[kCount];
        words.next(row, w, pack);
#pragma unroll
        for (int c = 0; c < kCount; ++c) {
          Acc x, y, value[kItems], slope[kItems];  // one slope for all
          place(w, x, y);
          windowed(pack[c], x, y, value, slope);
          const Acc factor = slope[0] * kLog2e;
#pragma unroll
          for (int u = 0; u < kItems; ++u) value[u] = exp2_fast(fma_of(factor, value[u], -top));
          add_terms<kPlaces>(state, value, x, y, width, inverse_width);
        }
      });
      const Acc factor = exp2_fast(fma_of(state.peak, state.at.k, -state.at.base) - residual);  // to the state's base
      state.total *= factor, state.sum_x() *= factor, state.sum_y() *= factor;
    }
  }
  if (!known) {
    row.template walk<kMasked ? kGroup<T> / 2 : kGroup<T>>([&](int w, auto count) {
      constexpr int kCount = decltype(count)::value;
      Pack<T> pack[kCount];
      words.next(row, w, pack);
      Acc x[kCount], y[kCount], logit[kCount][kItems];
      Acc higher = state.peak;
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        Acc value[kItems], slope[kItems];
        place(w + c * row.stride, x[c], y[c]);
        windowed(pack[c], x[c], y[c], value, slope);
        row.load_weights(w + c * row.stride, logit[c]);
#pragma unroll
        for (int u = 0; u < kItems; ++u) {
          logit[c][u] = row.logit(slope[u], value[u], logit[c][u]);
          higher = max_of(higher, logit[c][u]);
        }
      }
      state.raise(higher);
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
#pragma unroll
        for (int u = 0; u < kItems; ++u) logit[c][u] = state.at.term(logit[c][u]);
        add_terms<kPlaces>(state, logit[c], x[c], y[c], width, inverse_width);
      }
    });
  }
  if constexpr (kPlaces == Places::kColumn) state.sum_x() = fma_of(raster.x, state.total, state.sum_x());
  state.merge_warp();
  if (!alone) {
    if (threadIdx.x % 32 == 0) states[row.warp] = state;
    __syncthreads();
    if (row.thread != 0) return;
#pragma unroll 1
    for (int other = leader + 1; other < next_leader; ++other) state.merge(states[other]);
  }
  if (row.thread == 0 && row.exists) write_matches(p, plan, row.at, row.image, state);
}

}  // namespace cosegflow::soft_argmax_cuda

// A row of the volume as a team of warps sees it: its 16-byte words, where their targets stand in b, and their logits.
#pragma once

#include "primitives/most_probable.cuh"
#include "soft_argmax/soft_argmax_common.cuh"
#include "soft_argmax/soft_argmax_pack.cuh"
#include "soft_argmax/soft_argmax_softmax.cuh"

namespace cosegflow::soft_argmax_cuda {

constexpr int kRowThreads = 256;  // of a block
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kMostTeamShift = 3;  // all of a block's warps have one row

// 16-byte words that a thread loads before it uses them. No more than 32 scores: find_most_probable.
template <class T>
constexpr int kGroup = sizeof(T) == 4 ? 8 : 4;

// How rows are dealt out: a team of 1, 2, 4 or 8 warps per row, a thread of it taking every (32 * warps)-th word.
// Everything within a row, and the number of rows, fits an int: else soft_argmax_any_row_kernel is taken.
struct RowPlan {
  int rows;            // of all images
  Divisor of_image;    // rows of one
  int team_shift;      // log2 of the warps
  int words;           // of a row
  int step_x, step_y;  // from a thread's word to its next one, in raster order
  Divisor width_a, width_b;
  // With a window (soft_argmax_window_kernel).
  double window_exponent;
  int kept_words;        // of a thread, in shared memory
  int table_x, table_y;  // values of a team's tables
};

// With a mask: the words of a row that have an allowed target, of each image (soft_argmax_targets_kernel).
template <class Acc>
struct alignas(16) Slot {
  Acc x, y;  // of the first target
  int word;
};
template <class Acc>
struct Targets {
  Slot<Acc>* slots;  // (B, words)
  Acc* log_weight;   // (B, words, targets of a word): in the order of the slots
  int* count;        // (B): slots
};

// How the words of a thread lie in b: in one column of words (x is the same in all); each within an image row; any.
enum class Places { kColumn, kLine, kSplit };

// Adds the terms of the neighbouring targets from (x, y) on: x and y times the sum of the terms, and what is constant
// for the compiler. With kColumn without x times the sum: the caller adds it at the end.
template <Places kPlaces, class State, class Acc, int kItems>
__device__ __forceinline__ void add_terms(State& state, const Acc (&e)[kItems], Acc x, Acc y, Acc width,
                                          Acc inverse_width) {
  Acc pairs[kItems / 2];
#pragma unroll
  for (int u = 0; u < kItems / 2; ++u) pairs[u] = e[2 * u] + e[2 * u + 1];
#pragma unroll
  for (int n = kItems / 4; n > 0; n /= 2) {
#pragma unroll
    for (int u = 0; u < n; ++u) pairs[u] = pairs[2 * u] + pairs[2 * u + 1];
  }
  const Acc terms = pairs[0];
  Acc along = e[1];
#pragma unroll
  for (int u = 2; u < kItems; ++u) along = fma_of(static_cast<Acc>(u), e[u], along);
  if constexpr (kPlaces != Places::kColumn) along = fma_of(x, terms, along);
  if constexpr (kPlaces == Places::kSplit) {
    Acc wrapped = Acc(0);  // the terms beyond the end of the image row; those beyond two ends twice
    if (width >= Acc(kItems)) {
#pragma unroll
      for (int u = 1; u < kItems; ++u) {
        if (x + Acc(u) >= width) wrapped += e[u];
      }
    } else {
#pragma unroll
      for (int u = 1; u < kItems; ++u) wrapped = fma_of(std::floor((x + Acc(u + 0.5)) * inverse_width), e[u], wrapped);
    }
    along = fma_of(-width, wrapped, along), state.sum_y() += wrapped;
  }
  state.total += terms, state.sum_x() += along, state.sum_y() = fma_of(y, terms, state.sum_y());
}

// The place of a thread's words, which it takes in raster order.
template <class Acc>
struct Raster {
  Acc x, y, step_x, step_y, width;
  __device__ __forceinline__ Raster(const RowPlan& plan, int first_target)
      : step_x(static_cast<Acc>(plan.step_x)),
        step_y(static_cast<Acc>(plan.step_y)),
        width(static_cast<Acc>(plan.width_b.divisor)) {
    const int line = plan.width_b.quotient(first_target);
    x = static_cast<Acc>(first_target - line * plan.width_b.divisor), y = static_cast<Acc>(line);
  }
  template <Places kPlaces>
  __device__ __forceinline__ void next() {
    y += step_y;
    if constexpr (kPlaces == Places::kColumn) return;
    x += step_x;
    if (x >= width) x -= width, y += Acc(1);
  }
};

// A row, and the calling thread's place in the team that has it.
template <class T, bool kMasked>
struct Row {
  using Acc = accumulate_t<T>;
  static constexpr int kItems = Pack<T>::kItems;

  int at, image;  // the row in all images; its image
  bool exists;
  int warp, thread, stride;  // warp of the block; thread and number of threads of the team
  const T* scores;
  const Slot<Acc>* slots;
  const Acc* log_weight;
  int words;  // with a mask: slots
  Acc beta;

  __device__ __forceinline__ Row(const SoftArgmaxParams& p, const Targets<Acc>& targets, const RowPlan& plan)
      : warp(static_cast<int>(threadIdx.x / 32)), stride(32 << plan.team_shift) {
    thread = static_cast<int>(threadIdx.x) & (stride - 1);
    at = static_cast<int>(blockIdx.x << (kMostTeamShift - plan.team_shift)) + (warp >> plan.team_shift);
    exists = at < plan.rows;
    image = exists ? plan.of_image.quotient(at) : 0;
    scores = static_cast<const T*>(p.corr) + static_cast<int64_t>(at) * plan.words * kItems;
    words = plan.words;
    if constexpr (kMasked) {
      slots = targets.slots + static_cast<int64_t>(image) * words;
      log_weight = targets.log_weight + static_cast<int64_t>(image) * words * kItems;
      words = targets.count[image];
    }
    if (!exists) words = 0;
    beta = beta_of<Acc>(p, image);
  }

  // Calls use(w, count) for this thread's words w, w + stride, ... of which there are `count`, a compile-time number.
  template <int kCount, class Use>
  __device__ __forceinline__ void walk(const Use& use) const {
    int done = 0;
    for (; done + kCount * stride <= words; done += kCount * stride) {
      use(done + thread, std::integral_constant<int, kCount>());
    }
    for (int w = done + thread; w < words; w += stride) use(w, std::integral_constant<int, 1>());
  }
  __device__ __forceinline__ const T* word(int w) const { return scores + (kMasked ? slots[w].word : w) * kItems; }

  // The logit of a score that is multiplied by `slope`. Select: an excluded score may be NaN. (Written as `>`, or the
  // compiler puts the constant into a register of its own.)
  static __device__ __forceinline__ Acc logit(Acc slope, Acc s, Acc weight) {
    if constexpr (!kMasked) return slope * s;
    return weight > minus_infinity<Acc>() ? fma_of(slope, s, weight) : weight;
  }
  __device__ __forceinline__ void load_weights(int w, Acc (&weight)[kItems]) const {
    if constexpr (kMasked) load_vector(weight, log_weight + w * kItems);
  }
  __device__ __forceinline__ void logits(const Pack<T>& pack, int w, Acc (&logit_)[kItems]) const {
    Acc s[kItems];
    pack.unpack(s);
    load_weights(w, logit_);
#pragma unroll
    for (int u = 0; u < kItems; ++u) logit_[u] = logit(beta, s[u], logit_[u]);
  }
  // The largest logit of the words w, w + stride, ..., or `peak` where that is larger. A NaN loses, also one of an
  // excluded score: there is nothing to select.
  template <int kCount>
  __device__ __forceinline__ Acc higher(Acc peak, const Pack<T> (&pack)[kCount], int w) const {
    if constexpr (!kMasked) {
      return max_of(peak, beta * (beta < Acc(0) ? extreme_score<true>(pack) : extreme_score<false>(pack)));
    } else {
#pragma unroll
      for (int c = 0; c < kCount; ++c) {
        Acc s[kItems], weight[kItems];
        pack[c].unpack(s);
        load_weights(w + c * stride, weight);
#pragma unroll
        for (int u = 0; u < kItems; ++u) peak = max_of(peak, fma_of(beta, s[u], weight[u]));
      }
      return peak;
    }
  }
};

// Of row i of image b.
template <class State>
__device__ __forceinline__ void write_matches(const SoftArgmaxParams& p, int64_t b, int64_t i, const State& state) {
  using Acc = decltype(state.mean_x());
  const int64_t rows = p.height_a * p.width_a;
  Acc* flow = static_cast<Acc*>(p.flow.data) + b * 2 * rows + i;
  flow[0] = state.empty() ? Acc(0) : state.mean_x() - static_cast<Acc>(i % p.width_a);
  flow[rows] = state.empty() ? Acc(0) : state.mean_y() - static_cast<Acc>(i / p.width_a);
  static_cast<Acc*>(p.lse.data)[b * rows + i] = state.log_sum_exp();
  static_cast<Acc*>(p.confidence.data)[b * rows + i] = state.largest_probability();
}
// The same of row `at` of all, without 64-bit divisions.
template <class State>
__device__ __forceinline__ void write_matches(const SoftArgmaxParams& p, const RowPlan& plan, int at, int image,
                                              const State& state) {
  using Acc = decltype(state.mean_x());
  const int rows = plan.of_image.divisor, i = at - image * rows, y = plan.width_a.quotient(i);
  Acc* flow = static_cast<Acc*>(p.flow.data) + at + static_cast<int64_t>(image) * rows;
  flow[0] = state.empty() ? Acc(0) : state.mean_x() - static_cast<Acc>(i - y * plan.width_a.divisor);
  flow[rows] = state.empty() ? Acc(0) : state.mean_y() - static_cast<Acc>(y);
  static_cast<Acc*>(p.lse.data)[at] = state.log_sum_exp();
  static_cast<Acc*>(p.confidence.data)[at] = state.largest_probability();
}

template <class Acc>
__device__ __forceinline__ void write_most_probable(const SoftArgmaxParams& p, int64_t row,
                                                    const MostProbable<Acc>& best) {
  p.index[row] = best.index;
  static_cast<Acc*>(p.score.data)[row] = best.score;
}

// The first target with the largest logit that the lanes of this warp have met: `peak` is a lane's own largest one, met
// first in the kGroup words from word `at` on; -1: none. The words of a lane are looked through by the whole warp,
// which reads them once more. All lanes get the result, and all must call.
template <class T, bool kMasked>
__device__ __forceinline__ MostProbable<accumulate_t<T>> find_most_probable(const Row<T, kMasked>& row,
                                                                            accumulate_t<T> peak, int at) {
  using Acc = accumulate_t<T>;
  constexpr int kItems = Pack<T>::kItems;
  const int lane = static_cast<int>(threadIdx.x % 32), item = lane % kItems;
  const Acc highest = warp_reduce_max(peak);
  MostProbable<Acc> best;
  best.clear();
  unsigned lanes = __ballot_sync(0xffffffffu, at >= 0 && peak == highest);
  while (lanes != 0) {
    const int w = __shfl_sync(0xffffffffu, at, __ffs(static_cast<int>(lanes)) - 1) + lane / kItems * row.stride;
    lanes &= lanes - 1;
    bool here = false;
    Acc score{};
    int target = 0;
    if (lane / kItems < kGroup<T> && w < row.words) {
      const T* score_at = row.word(w) + item;
      target = static_cast<int>(score_at - row.scores), score = to_float(*score_at);
      here = row.logit(row.beta, score, kMasked ? row.log_weight[w * kItems + item] : Acc(0)) == highest;
    }
    const int first = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, here))) - 1;
    best.merge({highest, __shfl_sync(0xffffffffu, score, first), __shfl_sync(0xffffffffu, target, first)});
  }
  return best;
}

}  // namespace cosegflow::soft_argmax_cuda

// soft_argmax forward: one read of the volume. (With a window: soft_argmax_window_kernel.cuh.)
//
// Fast (rows of whole 16-byte words): a team of 1, 2, 4 or 8 warps has one source position. A thread loads a group of 4
//   words (8 of float32) before it uses them, takes their maximum, rescales its sums once, and adds the terms of each
//   word: their sum y times, their sum x times, and the constants 1..7 within the word. Halves are compared two at a
//   time (three with Hopper's VHMNMX); the logit is beta times the score, and a term one multiply-add and one ex2.
//   The states of the team's threads are merged at the end: lanes by shuffles, warps through shared memory.
//   A mask's log weights are computed once per call, together with the list of the words that it leaves
//   (soft_argmax_targets.cuh): only those are read, and the work is proportional to them.
//   Registers: 64, with a mask 80; shared memory: a state per warp. In flight on a multiprocessor: 32 warps x 2 KB,
//   float32 4 KB; with a mask 24 warps x 2 KB. About 40 KB are needed.
//   Must move: B * M * N elements. Instructions an element, counted in the SASS for sm_90a (loop; some 210 more a row
//   and lane, 1.6 an element of 64 x 64 targets):
//                         rows of b: a divisor of 256 targets   multiple of 8   any
//     bfloat16, float16              7.9                        8.5             11.8
//     float32 (4, of 128)            7.8                        9.0             13.5
//     masked: bfloat16                                          11.8            16
//   An H200 can issue 16 instructions per bfloat16, 33 per float32, at 3.6 TB/s (0.85 of its copy bandwidth), and one
//   ex2 per 8 of its cycles takes half of that time. Prediction, not measured: bound by memory, at about 0.85 of a
//   copy. The index: a lane notes the group in which its maximum was raised last; at the end the warp looks through the
//   group of the lane that has the row's maximum, by reading it again.
// Any row (soft_argmax_any_row_kernel): rows that are not whole words; loads of one score, about 20 instructions each.
// Simple: one thread owns one source position and reads its row twice: the maximum, then the sums.
#pragma once

#include "soft_argmax/soft_argmax_row.cuh"

namespace cosegflow::soft_argmax_cuda {

// Blocks on a multiprocessor, by the registers that they need.
constexpr int forward_blocks(int bytes, bool masked) { return bytes == 8 ? 2 : masked ? 3 : 4; }

template <class T, bool kMasked, Places kPlaces>
__global__ void __launch_bounds__(kRowThreads, forward_blocks(sizeof(T), kMasked))
    soft_argmax_forward_kernel(SoftArgmaxParams p, Targets<accumulate_t<T>> targets, RowPlan plan) {
  using Acc = accumulate_t<T>;
  constexpr int kItems = Pack<T>::kItems;
  const Row<T, kMasked> row(p, targets, plan);
  const Acc width = static_cast<Acc>(plan.width_b.divisor), inverse_width = Acc(1) / width;
  Raster<Acc> raster(plan, row.thread * kItems);
  RunningSoftmax<Acc> state;
  state.clear();
  int best = -1;
  const auto add_word = [&](Acc(&logit)[kItems], Acc x, Acc y) {
#pragma unroll
    for (int u = 0; u < kItems; ++u) logit[u] = state.at.term(logit[u]);
    add_terms<kPlaces>(state, logit, x, y, width, inverse_width);
  };
  if constexpr (!kMasked) {
    // kGroup words w, w + stride, ..., or those of them that there are.
    const auto add_group = [&](int w, auto all) {
      const auto exists = [&](int c) { return decltype(all)::value || c == 0 || w + c * row.stride < row.words; };
      Pack<T> pack[kGroup<T>];
#pragma unroll
      for (int c = 0; c < kGroup<T>; ++c) pack[c] = load_once(row.word(exists(c) ? w + c * row.stride : w));
      const Acc peak = row.higher(state.peak, pack, w);
      if (peak > state.peak) best = w;
      state.raise(peak);
#pragma unroll
      for (int c = 0; c < kGroup<T>; ++c) {
        if (!exists(c)) break;
        Acc logit[kItems];
        row.logits(pack[c], w, logit);
        add_word(logit, raster.x, raster.y);
        raster.template next<kPlaces>();
      }
    };
    int done = 0;
    for (; done + kGroup<T> * row.stride <= row.words; done += kGroup<T> * row.stride) {
      add_group(done + row.thread, std::true_type());
    }
    if (done + row.thread < row.words) add_group(done + row.thread, std::false_type());
  } else {
    // Four loads at a time; logits are kept until their maximum is known, of no more than 16 for want of registers.
    constexpr int kLoads = 4, kPart = kItems == 8 ? 2 : 4;
    const Slot<Acc>* slot = row.slots + row.thread;
    const Acc* weight = row.log_weight + row.thread * kItems;
#pragma unroll 1
    for (int w = row.thread; w < row.words; w += kLoads * row.stride) {
      const auto exists = [&](int c) { return w + c * row.stride < row.words; };
      Pack<T> pack[kLoads];
      const Slot<Acc>* ahead = slot;
#pragma unroll
      for (int c = 0; c < kLoads; ++c, ahead += row.stride) {
        if (exists(c)) pack[c] = load_once(row.scores + ahead->word * kItems);
      }
#pragma unroll
      for (int first = 0; first < kLoads; first += kPart) {
        if (!exists(first)) break;
        Acc logit[kPart][kItems];
        Acc peak = state.peak;
#pragma unroll
        for (int c = 0; c < kPart; ++c, weight += row.stride * kItems) {
          if (!exists(first + c)) break;
          Acc s[kItems];
          pack[first + c].unpack(s);
          load_vector(logit[c], weight);
#pragma unroll
          for (int u = 0; u < kItems; ++u) {
            logit[c][u] = row.logit(row.beta, s[u], logit[c][u]);
            peak = max_of(peak, logit[c][u]);
          }
        }
        if (peak > state.peak) best = w + first * row.stride;
        state.raise(peak);
#pragma unroll
        for (int c = 0; c < kPart; ++c, slot += row.stride) {
          if (!exists(first + c)) break;
          add_word(logit[c], slot->x, slot->y);
        }
      }
    }
  }

  if constexpr (kPlaces == Places::kColumn) state.sum_x() = fma_of(raster.x, state.total, state.sum_x());
  const Acc mine = state.peak;
  state.merge_warp();
  MostProbable<Acc> most_probable;
  if (p.index != nullptr) most_probable = find_most_probable(row, mine, best);
  if (plan.team_shift > 0) {
    using States = PlaceSoftmax<Acc>[kRowWarps];
    using Bests = MostProbable<Acc>[kRowWarps];
    CSF_SHARED(States, states);
    CSF_SHARED(Bests, bests);
    if (threadIdx.x % 32 == 0) {
      states[row.warp] = state;
      if (p.index != nullptr) bests[row.warp] = most_probable;
    }
    __syncthreads();
    if (row.thread != 0) return;
#pragma unroll 1
    for (int other = row.warp + 1; other < row.warp + (1 << plan.team_shift); ++other) {
      state.merge(states[other]);
      if (p.index != nullptr) most_probable.merge(bests[other]);
    }
  }
  if (row.thread != 0 || !row.exists) return;
  write_matches(p, plan, row.at, row.image, state);
  if (p.index != nullptr) write_most_probable(p, row.at, most_probable);
}

// Rows that are not whole 16-byte words, or longer than an int counts: one score per load, neighbouring threads having
// neighbouring targets. With a window a row is read twice.
template <class T, bool kIndexed>
__global__ void __launch_bounds__(kRowThreads, kIndexed || sizeof(T) == 8 ? 2 : 0)  // 0: as if not given
    soft_argmax_any_row_kernel(SoftArgmaxParams p, const accumulate_t<T>* log_weight, int team_shift) {
  using Acc = accumulate_t<T>;
  constexpr int kItems = 4;
  const int64_t rows = p.height_a * p.width_a, n = p.height_b * p.width_b;
  const int warp = static_cast<int>(threadIdx.x / 32), stride = 32 << team_shift;
  const int thread = static_cast<int>(threadIdx.x) & (stride - 1);
  const int64_t row = (static_cast<int64_t>(blockIdx.x) << (kMostTeamShift - team_shift)) + (warp >> team_shift);
  const bool exists = row < p.batch * rows;
  const int64_t b = exists ? row / rows : 0, i = row - b * rows;
  const T* scores = static_cast<const T*>(p.corr) + row * n;
  const Acc* weights = log_weight == nullptr ? nullptr : log_weight + b * n;
  const Acc beta = beta_of<Acc>(p, b), width = static_cast<Acc>(p.width_b);
  const RasterStep<Acc> step(stride, p.width_b);

  // consume(first target, scores, log weights, x, y)
  const auto walk = [&](const auto& consume) {
    Acc at_x = static_cast<Acc>(thread % p.width_b), at_y = static_cast<Acc>(thread / p.width_b);
    for (int64_t j = thread; j < n && exists; j += kItems * stride) {
      Acc logit[kItems], x[kItems], y[kItems];
      T s[kItems] = {};
#pragma unroll
      for (int u = 0; u < kItems; ++u) {
        const int64_t at = j + u * stride;
        logit[u] = at >= n ? minus_infinity<Acc>() : (weights == nullptr ? Acc(0) : weights[at]);
        x[u] = at_x, y[u] = at_y;
        advance(at_x, at_y, step, width);
      }
#pragma unroll
      for (int u = 0; u < kItems; ++u) {
        if (logit[u] > minus_infinity<Acc>()) s[u] = scores[j + u * stride];
      }
      consume(j, s, logit, x, y);
    }
  };
  // A score that the mask excludes may be NaN: select.
  const auto logit_of = [&](Acc s, Acc weight) {
    return weight > minus_infinity<Acc>() ? fma_of(beta, s, weight) : weight;
  };

  RunningSoftmax<Acc> state;
  state.clear();
  const auto add = [&](const Acc(&logit)[kItems], const Acc(&x)[kItems], const Acc(&y)[kItems]) {
    Acc peak = state.peak;
#pragma unroll
    for (int u = 0; u < kItems; ++u) peak = max_of(peak, logit[u]);
    state.raise(peak);
#pragma unroll
    for (int u = 0; u < kItems; ++u) {
      const Acc e = state.at.term(logit[u]);
      state.total += e;
      state.sum_x() = fma_of(e, x[u], state.sum_x()), state.sum_y() = fma_of(e, y[u], state.sum_y());
    }
  };
  if constexpr (kIndexed) {
    using Bests = MostProbable<Acc>[kRowWarps];
    CSF_SHARED(Bests, bests);
    const bool windowed = p.kernel_sigma > 0;
    MostProbable<Acc> best;
    best.clear();
    walk([&](int64_t j, const T(&s)[kItems], Acc(&logit)[kItems], const Acc(&x)[kItems], const Acc(&y)[kItems]) {
#pragma unroll
      for (int u = 0; u < kItems; ++u) {
        const Acc score = to_float(s[u]);
        logit[u] = logit_of(score, logit[u]);
        best.add(logit[u], score, j + u * stride);
      }
      if (!windowed) add(logit, x, y);
    });
    best.merge_lanes();
    if (threadIdx.x % 32 == 0) bests[warp] = best;
    __syncthreads();
    const int leader = warp >> team_shift << team_shift;
#pragma unroll 1
    for (int other = leader; other < leader + (1 << team_shift); ++other) best.merge(bests[other]);
    if (thread == 0 && exists) write_most_probable(p, row, best);
    if (windowed) {
      const auto window = KernelWindow<Acc>::around(best.index, p.width_b, p.kernel_sigma);
      walk([&](int64_t, const T(&s)[kItems], Acc(&logit)[kItems], const Acc(&x)[kItems], const Acc(&y)[kItems]) {
#pragma unroll
        for (int u = 0; u < kItems; ++u) {
          logit[u] = logit_of(window.value(to_float(s[u]), window.gaussian(x[u], y[u])), logit[u]);
        }
        add(logit, x, y);
      });
    }
  } else {
    walk([&](int64_t, const T(&s)[kItems], Acc(&logit)[kItems], const Acc(&x)[kItems], const Acc(&y)[kItems]) {
#pragma unroll
      for (int u = 0; u < kItems; ++u) logit[u] = logit_of(to_float(s[u]), logit[u]);
      add(logit, x, y);
    });
  }
  state.merge_warp();
  if (team_shift > 0) {
    using States = PlaceSoftmax<Acc>[kRowWarps];
    CSF_SHARED(States, states);
    if (threadIdx.x % 32 == 0) states[warp] = state;
    __syncthreads();
    if (thread != 0) return;
#pragma unroll 1
    for (int other = 1; other < 1 << team_shift; ++other) state.merge(states[warp + other]);
  }
  if (thread == 0 && exists) write_matches(p, b, i, state);
}

template <class T>
__global__ void __launch_bounds__(256)
    soft_argmax_forward_simple_kernel(SoftArgmaxParams p, const accumulate_t<T>* log_weight) {
  using Acc = accumulate_t<T>;
  const int64_t rows = p.height_a * p.width_a, n = p.height_b * p.width_b;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (row >= p.batch * rows) return;
  const int64_t b = row / rows;
  const T* scores = static_cast<const T*>(p.corr) + row * n;
  const Acc beta = beta_of<Acc>(p, b);
  bool windowed = false;  // from here on scores are those of the window
  KernelWindow<Acc> window{};
  const auto logit = [&](int64_t j) -> Acc {
    const Acc weight = log_weight == nullptr ? Acc(0) : log_weight[b * n + j];
    if (weight == minus_infinity<Acc>()) return weight;
    Acc s = to_float(scores[j]);
    if (windowed) {
      s = window.value(s, window.gaussian(static_cast<Acc>(j % p.width_b), static_cast<Acc>(j / p.width_b)));
    }
    return fma_of(beta, s, weight);
  };
  if (p.index != nullptr) {
    MostProbable<Acc> best;
    best.clear();
    for (int64_t j = 0; j < n; ++j) best.add(logit(j), to_float(scores[j]), j);
    write_most_probable(p, row, best);
    windowed = p.kernel_sigma > 0;
    if (windowed) window = KernelWindow<Acc>::around(best.index, p.width_b, p.kernel_sigma);
  }
  OnlineSoftmax<Acc> state;
  state.clear();
  for (int64_t j = 0; j < n; ++j) state.peak = max_of(state.peak, logit(j));
  const Acc base = OnlineSoftmax<Acc>::base_of(state.peak);
  double total = 0, x = 0, y = 0;  // one long sum: float would lose digits
  for (int64_t j = 0; j < n; ++j) {
    const double e = exp_of(logit(j) - base);
    total += e, x += e * static_cast<double>(j % p.width_b), y += e * static_cast<double>(j / p.width_b);
  }
  state.total = static_cast<Acc>(total), state.x = static_cast<Acc>(x), state.y = static_cast<Acc>(y);
  write_matches(p, b, row % rows, state);
}

}  // namespace cosegflow::soft_argmax_cuda

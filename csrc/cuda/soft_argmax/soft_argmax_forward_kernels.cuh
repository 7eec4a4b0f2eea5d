// soft_argmax forward: one read of the volume.
//
// Fast: kRowThreads threads (a warp, or a block where rows are long or few) own one source position. They walk along
//   its row in runs of 16 bytes a thread, each with its own online softmax, and merge the states at the end: lanes by
//   shuffles, warps through shared memory. Registers: the state, 16 bytes of the row and their coordinates, which
//   advance by additions. Shared memory: one state per warp. A 16-byte word without an allowed target is not read.
//   No explicit pipeline: 8 independent warps a block keep loads in flight.
//   Must move: B * M * N elements of the volume (the log weights stay in cache); ~15 instructions an element.
//   Bound by memory for float32 and close to the instruction limit for half types.
//   Fraction of the bandwidth reached: not measured yet.
//   kIndexed: the most probable target too. With a window around it the row is walked twice, the second time from L2.
// Simple: one thread owns one source position and reads its row twice: the maximum, then the sums.
#pragma once

#include "primitives/most_probable.cuh"
#include "soft_argmax/soft_argmax_common.cuh"

namespace cosegflow::soft_argmax_cuda {

template <class Acc>
__device__ __forceinline__ void write_matches(const SoftArgmaxParams& p, int64_t b, int64_t i,
                                              const OnlineSoftmax<Acc>& state) {
  const int64_t rows = p.height_a * p.width_a;
  Acc* flow = static_cast<Acc*>(p.flow.data) + b * 2 * rows + i;
  flow[0] = state.empty() ? Acc(0) : state.mean_x() - static_cast<Acc>(i % p.width_a);
  flow[rows] = state.empty() ? Acc(0) : state.mean_y() - static_cast<Acc>(i / p.width_a);
  static_cast<Acc*>(p.lse.data)[b * rows + i] = state.log_sum_exp();
  static_cast<Acc*>(p.confidence.data)[b * rows + i] = state.largest_probability();
}

template <class Acc>
__device__ __forceinline__ void write_most_probable(const SoftArgmaxParams& p, int64_t row,
                                                    const MostProbable<Acc>& best) {
  p.index[row] = best.index;
  static_cast<Acc*>(p.score.data)[row] = best.score;
}

template <class T, int kRowThreads, bool kAligned, bool kIndexed>
__global__ void __launch_bounds__(256, kIndexed ? 2 : 0)  // 0: as if not given; else ptxas aims at 80 and spills
    soft_argmax_forward_kernel(SoftArgmaxParams p, const accumulate_t<T>* log_weight) {
  using Acc = accumulate_t<T>;
  using D = Deal<T, kRowThreads, kAligned>;
  const int64_t rows = p.height_a * p.width_a, n = p.height_b * p.width_b;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (256 / kRowThreads) + threadIdx.x / kRowThreads;
  if (row >= p.batch * rows) return;  // the whole group: it shares its row
  const int64_t b = row / rows, i = row % rows;
  const T* scores = static_cast<const T*>(p.corr) + row * n;
  const Acc* weights = log_weight == nullptr ? nullptr : log_weight + b * n;
  const Acc beta = beta_of<Acc>(p, b), width = static_cast<Acc>(p.width_b);
  const RasterStep<Acc> between(D::kBetween, p.width_b);
  const RasterStep<Acc> onwards(D::kRun - (D::kItems - 1) * D::kBetween, p.width_b);

  const int64_t first = static_cast<int64_t>(threadIdx.x % kRowThreads) * D::kFirst;
  // consume(first target, scores, log weights, x, y)
  const auto walk = [&](const auto& consume) {
    Acc at_x = static_cast<Acc>(first % p.width_b), at_y = static_cast<Acc>(first / p.width_b);
    for (int64_t j = first; j < n; j += D::kRun) {
      Acc logit[D::kItems], x[D::kItems], y[D::kItems];
      bool allowed = false;
      if (weights == nullptr) {
#pragma unroll
        for (int u = 0; u < D::kItems; ++u) logit[u] = j + u * D::kBetween < n ? Acc(0) : minus_infinity<Acc>();
        allowed = true;
      } else if constexpr (kAligned) {
        load_vector(logit, weights + j);
      } else {
#pragma unroll
        for (int u = 0; u < D::kItems; ++u) {
          const int64_t at = j + u * D::kBetween;
          logit[u] = at < n ? weights[at] : minus_infinity<Acc>();
        }
      }
#pragma unroll
      for (int u = 0; u < D::kItems; ++u) {
        x[u] = at_x, y[u] = at_y;
        allowed |= logit[u] != minus_infinity<Acc>();
        advance(at_x, at_y, u + 1 < D::kItems ? between : onwards, width);
      }
      if (!allowed) continue;
      T s[D::kItems] = {};
      if constexpr (kAligned) {
        load_vector(s, scores + j);
      } else {
#pragma unroll
        for (int u = 0; u < D::kItems; ++u) {
          if (logit[u] != minus_infinity<Acc>()) s[u] = scores[j + u * D::kBetween];
        }
      }
      consume(j, s, logit, x, y);
    }
  };
  // A score that the mask excludes may be NaN: select.
  const auto logit_of = [&](Acc s, Acc weight) {
    return weight == minus_infinity<Acc>() ? weight : fma_of(beta, s, weight);
  };

  OnlineSoftmax<Acc> state;
  state.clear();
  const auto add = [&](int64_t, const T(&s)[D::kItems], Acc(&logit)[D::kItems], const Acc(&x)[D::kItems],
                       const Acc(&y)[D::kItems]) {
#pragma unroll
    for (int u = 0; u < D::kItems; ++u) logit[u] = logit_of(to_float(s[u]), logit[u]);
    state.add(logit, x, y);
  };
  if constexpr (kIndexed) {
    const bool windowed = p.kernel_sigma > 0;
    MostProbable<Acc> best;
    best.clear();
    walk([&](int64_t j, const T(&s)[D::kItems], Acc(&logit)[D::kItems], const Acc(&x)[D::kItems],
             const Acc(&y)[D::kItems]) {
#pragma unroll
      for (int u = 0; u < D::kItems; ++u) {
        const Acc score = to_float(s[u]);
        best.add(logit_of(score, logit[u]), score, j + u * D::kBetween);
      }
      if (!windowed) add(j, s, logit, x, y);
    });
    best.merge_lanes();
    if constexpr (kRowThreads > 32) {
      using Bests = MostProbable<Acc>[kRowThreads / 32];
      CSF_SHARED(Bests, bests);
      if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
      __syncthreads();
      for (int w = 0; w < kRowThreads / 32; ++w) best.merge(bests[w]);
    }
    if (threadIdx.x % kRowThreads == 0) write_most_probable(p, row, best);
    if (windowed) {
      const auto window = KernelWindow<Acc>::around(best.index, p.width_b, p.kernel_sigma);
      walk([&](int64_t, const T(&s)[D::kItems], Acc(&logit)[D::kItems], const Acc(&x)[D::kItems],
               const Acc(&y)[D::kItems]) {
#pragma unroll
        for (int u = 0; u < D::kItems; ++u) {
          logit[u] = logit_of(window.value(to_float(s[u]), window.gaussian(x[u], y[u])), logit[u]);
        }
        state.add(logit, x, y);
      });
    }
  } else {
    walk(add);
  }

  state.merge_lanes();
  if constexpr (kRowThreads > 32) {
    constexpr int kWarps = kRowThreads / 32;
    using States = OnlineSoftmax<Acc>[kWarps];
    CSF_SHARED(States, states);
    if (threadIdx.x % 32 == 0) states[threadIdx.x / 32] = state;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < kWarps; ++w) state.merge(states[w]);
  }
  if (threadIdx.x % 32 == 0) write_matches(p, b, i, state);
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

// The online softmax over a tile of scores, and its gradient. Included like vector_math.h.
#pragma once

namespace cosegflow {
namespace CSF_ISA {

template <class T>
CSF_INLINE T exp2_one(T x) {
  return exp2_below(splat(x))[0];
}

// Calls body(score vector, column, n) over the columns of one row of a tile, for vector n of a panel: a sum for each n
// is that many independent chains. kWhole: columns fill whole panels.
template <class T, bool kWhole, class Body>
CSF_INLINE void for_each_vector(Panels<const T> scores, int64_t row, int64_t columns, Body body) {
  const T* panel = scores.data + row * kWidth<T>;
  for (int64_t c0 = 0; c0 < columns; c0 += kWidth<T>, panel += scores.panel_stride) {
#pragma GCC unroll 4
    for (int64_t n = 0; n < kVectors; ++n) {
      if (kWhole || c0 + n * kLanes<T> < columns) {
        body(load_anywhere(panel + n * kLanes<T>), c0 + n * kLanes<T>, n);
      }
    }
  }
}

// The target with the largest logit of those seen, by its score and log weight; none yet: weight -inf.
template <class T>
struct Peak {
  T score, weight;
};

template <class T, bool kWeighted>
CSF_INLINE Peak<T> peak_of_row(const SoftmaxTile<T>& t, int64_t row) {
  constexpr T kInfinity = __builtin_inf();
  if constexpr (!kWeighted) {
    const T sign = t.slope < 0 ? T(-1) : T(1);
    vec<T> largest[kVectors];  // of sign * s
    for (int64_t n = 0; n < kVectors; ++n) largest[n] = splat(-kInfinity);
    for_each_vector<T, true>(t.scores, row, t.columns,
                             [&](vec<T> s, int64_t, int64_t n)
                                 __attribute__((always_inline)) { largest[n] = larger(s * sign, largest[n]); });
    for (int64_t n = 1; n < kVectors; ++n) largest[0] = larger(largest[n], largest[0]);
    const T best = largest_lane(largest[0]);
    const bool none = best == -kInfinity;
    return {none ? T(0) : sign * best, none ? -kInfinity : T(0)};
  } else {
    vec<T> logit = splat(-kInfinity), score{}, weight = splat(-kInfinity);
    for_each_vector<T, false>(t.scores, row, t.columns,
                              [&](vec<T> s, int64_t c, int64_t) __attribute__((always_inline)) {
                                const vec<T> w = load(t.log_weight + c);
                                const vec<T> candidate = s * t.slope + w;
                                const auto better = candidate > logit;
                                logit = better ? candidate : logit;
                                score = better ? s : score;
                                weight = better ? w : weight;
                              });
    int best = 0;
    for (int i = 1; i < kLanes<T>; ++i) best = logit[i] > logit[best] ? i : best;
    return {score[best], weight[best]};
  }
}

template <class T>
constexpr int64_t kSumColumns = 4 * kWidth<T>;

// Logits enter only as differences from the peak, slope (s - s_peak) + (w - w_peak): accurate where the weight is large
// however large the logits are, and exactly 0 at the peak, so that the sum is at least 1 and nothing overflows.
template <class T, bool kWeighted>
static void softmax_rows(const SoftmaxTile<T>& t) {
  constexpr T kInfinity = __builtin_inf(), kLargest = sizeof(T) == 4 ? T(__FLT_MAX__) : T(__DBL_MAX__);
  for (int64_t row = 0; row < t.rows; ++row) {
    Peak<T> peak = peak_of_row<T, kWeighted>(t, row);
    const Peak<T> old = {t.peak_score[row], t.peak_weight[row]};
    double keep = 1;  // the factor on the sums so far; without an old peak they are 0 (or NaN)
    if (old.weight != -kInfinity) {
      const T gain = (peak.score - old.score) * t.slope + (peak.weight - old.weight);
      if (gain > 0) {
        keep = double(exp2_one(-gain));
      } else {
        peak = old;
      }
    }
    t.peak_score[row] = peak.score;
    t.peak_weight[row] = peak.weight;
    const T base = peak.weight == -kInfinity ? T(0) : peak.weight;
    vec<T> sum{}, sum_x{}, sum_y{};
    // A few panels at a time: small terms of equal size, added one by one to a large sum, would all round the same way.
    for (int64_t c0 = 0; c0 < t.columns; c0 += kSumColumns<T>) {
      const int64_t columns = t.columns - c0 < kSumColumns<T> ? t.columns - c0 : kSumColumns<T>;
      const Panels<const T> panels = {t.scores.data + c0 / kWidth<T> * t.scores.panel_stride, t.scores.panel_stride};
      vec<T> part[kVectors], part_x[kVectors], part_y[kVectors];
      for (int64_t n = 0; n < kVectors; ++n) part[n] = part_x[n] = part_y[n] = vec<T>{};
      for_each_vector<T, !kWeighted>(
          panels, row, columns, [&](vec<T> s, int64_t at, int64_t n) __attribute__((always_inline)) {
            const int64_t c = c0 + at;
            vec<T> relative = (s - peak.score) * t.slope;
            if constexpr (kWeighted) {
              relative =
                  -larger(splat(-kLargest), -relative);  // inf, which padding may have, plus its -inf would be NaN
              relative += load(t.log_weight + c) - base;
            }
            const vec<T> e = exp2_below(relative);
            part[n] += e;
            part_x[n] += e * load(t.x + c);
            part_y[n] += e * load(t.y + c);
          });
      for (int64_t n = 0; n < kVectors; ++n) sum += part[n], sum_x += part_x[n], sum_y += part_y[n];
    }
    t.sum[row] = t.sum[row] * keep + double(sum_lanes(sum));
    t.sum_x[row] = t.sum_x[row] * keep + double(sum_lanes(sum_x));
    t.sum_y[row] = t.sum_y[row] * keep + double(sum_lanes(sum_y));
  }
}

template <class T>
void softmax(const SoftmaxTile<T>& t) {
  t.log_weight != nullptr ? softmax_rows<T, true>(t) : softmax_rows<T, false>(t);
}

// Panel by panel, so that what belongs to a column (weight, position, the sum over rows) stays in registers.
template <class T, int kN, bool kWeighted>
CSF_INLINE void gradient_panel(const GradientTile<T>& t, const T* panel, T* gradient, int64_t c, vec<T>* beta_sum) {
  vec<T> x[kN], y[kN], weight[kN], column_sum[kN];
  for (int n = 0; n < kN; ++n) {
    x[n] = load(t.x + c + n * kLanes<T>);
    y[n] = load(t.y + c + n * kLanes<T>);
    weight[n] = kWeighted ? load(t.log_weight + c + n * kLanes<T>) : vec<T>{};
    column_sum[n] = vec<T>{};
  }
  for (int64_t row = 0; row < t.rows; ++row, panel += kWidth<T>, gradient += kWidth<T>) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      const vec<T> s = load_anywhere(panel + n * kLanes<T>);
      vec<T> logit = s * t.slope - t.lse[row];
      if constexpr (kWeighted) logit += weight[n];
      logit = -larger(vec<T>{}, -logit);  // p <= 1, also where lse is so large that its rounding error is more than 0
      const vec<T> d_logit = exp2_below(logit) * (x[n] * t.grad_x[row] + (y[n] * t.grad_y[row] + t.offset[row]));
      column_sum[n] += d_logit;
      beta_sum[n] += d_logit * s;
      store_anywhere(gradient + n * kLanes<T>, d_logit * t.beta);
    }
  }
  for (int n = 0; t.column_sum != nullptr && n < kN; ++n) {
    for (int64_t i = 0; i < kLanes<T>; ++i) t.column_sum[c + n * kLanes<T> + i] += double(column_sum[n][i]);
  }
}

constexpr int64_t kGradientTerms = 32;  // summed in T before they go to a double

template <class T, bool kWeighted>
static void gradient_panels(const GradientTile<T>& t) {
  const T* panel = t.scores.data;
  T* gradient = t.gradient.data;
  vec<T> beta_sum[kVectors];
  for (int64_t n = 0; n < kVectors; ++n) beta_sum[n] = vec<T>{};
  int64_t terms = 0;  // in each lane of beta_sum
  for (int64_t c = 0; c < t.columns; c += kWidth<T>) {
    const int64_t left = t.columns - c;
    if (left <= kLanes<T>) {
      gradient_panel<T, 1, kWeighted>(t, panel, gradient, c, beta_sum);
    } else if (left <= 2 * kLanes<T>) {
      gradient_panel<T, 2, kWeighted>(t, panel, gradient, c, beta_sum);
    } else {
      gradient_panel<T, kVectors, kWeighted>(t, panel, gradient, c, beta_sum);
    }
    panel += t.scores.panel_stride;
    gradient += t.gradient.panel_stride;
    terms += t.rows;
    if (terms < kGradientTerms && left > kWidth<T>) continue;
    for (int64_t n = 0; n < kVectors; ++n) {
      *t.beta_sum += double(sum_lanes(beta_sum[n]));
      beta_sum[n] = vec<T>{};
    }
    terms = 0;
  }
}

template <class T>
void softmax_gradient(const GradientTile<T>& t) {
  t.log_weight != nullptr ? gradient_panels<T, true>(t) : gradient_panels<T, false>(t);
}

// transfer_kernel.h
template <class T>
void softmax_weights(const WeightsTile<T>& t);
template <class T>
void transfer_gradient(const TransferGradientTile<T>& t);

// window_kernel.h
template <class T>
void peaks(const PeakTile<T>& t);
template <class T>
void window(const WindowTile<T>& t);
template <class T>
void window_gradient(const WindowTile<T>& t);

template <class T>
constexpr TileKernels<T> kTable = {
    kWidth<T>,
    multiply<T>,
    multiply_transposed<T>,
    nullptr,
    softmax<T>,
    softmax_gradient<T>,
    softmax_columns<T>,
    both_gradient<T>,
    softmax_weights<T>,
    transfer_gradient<T>,
    peaks<T>,
    window<T>,
    window_gradient<T>,
};

}  // namespace CSF_ISA
}  // namespace cosegflow

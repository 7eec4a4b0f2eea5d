// Both directions of match on one tile of scores: the online softmax of its columns (that of its rows is in
// softmax_kernel.h), and the gradient of both. Included like vector_math.h.
//
// Panel by panel, so that what belongs to a column stays in registers and what belongs to a row is broadcast: a column
// needs no sum across lanes. A direction has a reference of its own for each softmax, hence two exponentials a score:
// a shared reference would let the sums of rows and columns with small scores underflow.
#pragma once

namespace cosegflow {
namespace CSF_ISA {

template <class T, int kN, bool kWeighted>
static void softmax_columns_panel(const ColumnTile<T>& t, const T* panel, int64_t c) {
  constexpr T kInfinity = __builtin_inf();
  vec<T> peak_score[kN], peak_weight[kN];
  if constexpr (kWeighted) {
    vec<T> logit[kN];
    for (int n = 0; n < kN; ++n) logit[n] = peak_weight[n] = splat(-kInfinity), peak_score[n] = vec<T>{};
    for (int64_t row = 0; row < t.rows; ++row) {
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) {
        const vec<T> s = load(panel + row * kWidth<T> + n * kLanes<T>);
        const vec<T> candidate = s * t.slope + t.log_weight[row];
        const auto better = candidate > logit[n];
        logit[n] = better ? candidate : logit[n];
        peak_score[n] = better ? s : peak_score[n];
        peak_weight[n] = better ? splat(t.log_weight[row]) : peak_weight[n];
      }
    }
  } else {
    const T sign = t.slope < 0 ? T(-1) : T(1);
    vec<T> largest[kN];  // of sign * s
    for (int n = 0; n < kN; ++n) largest[n] = splat(-kInfinity);
    for (int64_t row = 0; row < t.rows; ++row) {
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) {
        largest[n] = larger(load(panel + row * kWidth<T> + n * kLanes<T>) * sign, largest[n]);
      }
    }
    for (int n = 0; n < kN; ++n) {
      const auto none = largest[n] == splat(-kInfinity);
      peak_score[n] = none ? vec<T>{} : largest[n] * sign;
      peak_weight[n] = none ? splat(-kInfinity) : vec<T>{};
    }
  }

  vec<T> base[kN], sum[kN], sum_x[kN], sum_y[kN];
  T keep[kN * kLanes<T>] __attribute__((aligned(64)));
  for (int n = 0; n < kN; ++n) {
    T* const at_score = t.peak_score + c + n * kLanes<T>;
    T* const at_weight = t.peak_weight + c + n * kLanes<T>;
    const vec<T> old_score = load(at_score), old_weight = load(at_weight);
    const auto first = old_weight == splat(-kInfinity);  // without an old peak the sums are 0 (or NaN): no factor
    const vec<T> gain = (peak_score[n] - old_score) * t.slope + (peak_weight[n] - old_weight);
    const auto rises = gain > vec<T>{};
    store(keep + n * kLanes<T>, first ? splat(T(1)) : rises ? exp2_below(-gain) : splat(T(1)));
    peak_score[n] = first ? peak_score[n] : rises ? peak_score[n] : old_score;
    peak_weight[n] = first ? peak_weight[n] : rises ? peak_weight[n] : old_weight;
    store(at_score, peak_score[n]);
    store(at_weight, peak_weight[n]);
    base[n] = peak_weight[n] == splat(-kInfinity) ? vec<T>{} : peak_weight[n];
    sum[n] = sum_x[n] = sum_y[n] = vec<T>{};
  }
  for (int64_t row = 0; row < t.rows; ++row, panel += kWidth<T>) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      vec<T> relative = (load(panel + n * kLanes<T>) - peak_score[n]) * t.slope;
      if constexpr (kWeighted) relative += t.log_weight[row] - base[n];
      const vec<T> e = exp2_below(relative);
      sum[n] += e;
      sum_x[n] += e * t.x[row];
      sum_y[n] += e * t.y[row];
    }
  }
  for (int n = 0; n < kN; ++n) {
    for (int64_t i = 0; i < kLanes<T>; ++i) {
      const int64_t at = c + n * kLanes<T> + i;
      const double factor = double(keep[n * kLanes<T> + i]);
      t.sum[at] = t.sum[at] * factor + double(sum[n][i]);
      t.sum_x[at] = t.sum_x[at] * factor + double(sum_x[n][i]);
      t.sum_y[at] = t.sum_y[at] * factor + double(sum_y[n][i]);
    }
  }
}

template <class T, bool kWeighted>
static void softmax_columns_panels(const ColumnTile<T>& t) {
  const T* panel = t.scores.data;
  for (int64_t c = 0; c < t.columns; c += kWidth<T>, panel += t.scores.panel_stride) {
    const int64_t left = t.columns - c;
    if (left <= kLanes<T>) {
      softmax_columns_panel<T, 1, kWeighted>(t, panel, c);
    } else if (left <= 2 * kLanes<T>) {
      softmax_columns_panel<T, 2, kWeighted>(t, panel, c);
    } else {
      softmax_columns_panel<T, kVectors, kWeighted>(t, panel, c);
    }
  }
}

template <class T>
void softmax_columns(const ColumnTile<T>& t) {
  t.log_weight != nullptr ? softmax_columns_panels<T, true>(t) : softmax_columns_panels<T, false>(t);
}

// min(logit, 0): p <= 1 also where an lse is so large that its rounding error is more than 0. Keeps a NaN.
template <class T>
CSF_INLINE vec<T> probability(vec<T> logit) {
  return exp2_below(-larger(vec<T>{}, -logit));
}

template <class T, int kN>
static void both_gradient_panel(const BothGradientTile<T>& t, T* panel, int64_t c) {
  const DirectionOfTile<T>&a = t.a, &b = t.b;
  vec<T> sum_b[kN], beta_sum{};
  for (int n = 0; n < kN; ++n) sum_b[n] = vec<T>{};
  for (int64_t row = 0; row < t.rows; ++row, panel += kWidth<T>) {
    vec<T> sum_a{};
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      const int64_t at = c + n * kLanes<T>;
      const vec<T> s = load(panel + n * kLanes<T>), logit = s * t.slope;
      const vec<T> from_a = probability<T>(logit - a.lse[row] + load(b.log_weight + at)) *
                            (load(b.x + at) * a.grad_x[row] + (load(b.y + at) * a.grad_y[row] + a.offset[row]));
      const vec<T> from_b = probability<T>(logit - load(b.lse + at) + a.log_weight[row]) *
                            (a.x[row] * load(b.grad_x + at) + (a.y[row] * load(b.grad_y + at) + load(b.offset + at)));
      sum_b[n] += from_a;
      sum_a += from_b;
      beta_sum += (from_a + from_b) * s;
      store(panel + n * kLanes<T>, (from_a + from_b) * t.beta);
    }
    if (a.weight_sum != nullptr) a.weight_sum[row] += double(sum_lanes(sum_a));
  }
  *t.beta_sum += double(sum_lanes(beta_sum));
  if (b.weight_sum == nullptr) return;
  for (int n = 0; n < kN; ++n) {
    for (int64_t i = 0; i < kLanes<T>; ++i) b.weight_sum[c + n * kLanes<T> + i] += double(sum_b[n][i]);
  }
}

template <class T>
void both_gradient(const BothGradientTile<T>& t) {
  T* panel = t.scores.data;
  for (int64_t c = 0; c < t.columns; c += kWidth<T>, panel += t.scores.panel_stride) {
    const int64_t left = t.columns - c;
    if (left <= kLanes<T>) {
      both_gradient_panel<T, 1>(t, panel, c);
    } else if (left <= 2 * kLanes<T>) {
      both_gradient_panel<T, 2>(t, panel, c);
    } else {
      both_gradient_panel<T, kVectors>(t, panel, c);
    }
  }
}

}  // namespace CSF_ISA
}  // namespace cosegflow

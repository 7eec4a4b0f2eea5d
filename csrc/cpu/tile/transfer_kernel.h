// The softmax of transfer over a tile of scores: weights to multiply values with, and the gradient. Included like
// vector_math.h, after softmax_kernel.h.
#pragma once

namespace cosegflow {
namespace CSF_ISA {

// As softmax_rows, but what is kept of a tile are its weights.
template <class T, bool kWeighted>
static void weights_of_rows(const WeightsTile<T>& t) {
  constexpr T kInfinity = __builtin_inf(), kLargest = sizeof(T) == 4 ? T(__FLT_MAX__) : T(__DBL_MAX__);
  SoftmaxTile<T> seen;  // what peak_of_row reads
  seen.scores = t.scores, seen.columns = t.columns, seen.slope = t.slope, seen.log_weight = t.log_weight;
  for (int64_t row = 0; row < t.rows; ++row) {
    Peak<T> peak = peak_of_row<T, kWeighted>(seen, row);
    const Peak<T> old = {t.peak_score[row], t.peak_weight[row]};
    T keep = 1;
    if (old.weight != -kInfinity) {
      const T gain = (peak.score - old.score) * t.slope + (peak.weight - old.weight);
      if (gain > 0) {
        keep = exp2_one(-gain);
      } else {
        peak = old;
      }
    }
    t.peak_score[row] = peak.score;
    t.peak_weight[row] = peak.weight;
    t.keep[row] = keep;
    const T base = peak.weight == -kInfinity ? T(0) : peak.weight;
    vec<T> sum{};
    T* panel = t.scores.data + row * kWidth<T>;
    for (int64_t c0 = 0; c0 < t.columns; c0 += kWidth<T>, panel += t.scores.panel_stride) {
#pragma GCC unroll 4
      for (int64_t n = 0; n < kVectors; ++n) {
        const int64_t c = c0 + n * kLanes<T>;
        if (c >= t.columns) continue;
        vec<T> relative = (load(panel + n * kLanes<T>) - peak.score) * t.slope;
        if constexpr (kWeighted) {
          relative = -larger(splat(-kLargest), -relative);  // inf, which padding may have, plus its -inf would be NaN
          relative += load(t.log_weight + c) - base;
        }
        const vec<T> e = exp2_below(relative);
        sum += e;
        store(panel + n * kLanes<T>, e);
      }
    }
    t.sum[row] = t.sum[row] * double(keep) + double(sum_lanes(sum));
  }
}

template <class T>
void softmax_weights(const WeightsTile<T>& t) {
  t.log_weight != nullptr ? weights_of_rows<T, true>(t) : weights_of_rows<T, false>(t);
}

// As gradient_panel, with the product of incoming gradient and value read from a second tile, which gets p.
template <class T, int kN, bool kWeighted>
static void transfer_gradient_panel(const TransferGradientTile<T>& t, T* scores, T* products, int64_t c) {
  vec<T> weight[kN], column_sum[kN], beta_sum[kN];
  for (int n = 0; n < kN; ++n) {
    weight[n] = kWeighted ? load(t.log_weight + c + n * kLanes<T>) : vec<T>{};
    column_sum[n] = beta_sum[n] = vec<T>{};
  }
  for (int64_t row = 0; row < t.rows; ++row, scores += kWidth<T>, products += kWidth<T>) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) {
      const vec<T> s = load(scores + n * kLanes<T>);
      vec<T> logit = s * t.slope - t.lse[row];
      if constexpr (kWeighted) logit += weight[n];
      logit = -larger(vec<T>{}, -logit);
      const vec<T> p = exp2_below(logit);
      const vec<T> d_logit = p * (load(products + n * kLanes<T>) + t.offset[row]);
      column_sum[n] += d_logit;
      beta_sum[n] += d_logit * s;
      store(scores + n * kLanes<T>, d_logit * t.beta);
      store(products + n * kLanes<T>, p);
    }
  }
  for (int n = 0; n < kN; ++n) {
    *t.beta_sum += double(sum_lanes(beta_sum[n]));
    if (t.column_sum == nullptr) continue;
    for (int64_t i = 0; i < kLanes<T>; ++i) t.column_sum[c + n * kLanes<T> + i] += double(column_sum[n][i]);
  }
}

template <class T, bool kWeighted>
static void transfer_gradient_panels(const TransferGradientTile<T>& t) {
  T *scores = t.scores.data, *products = t.products.data;
  for (int64_t c = 0; c < t.columns;
       c += kWidth<T>, scores += t.scores.panel_stride, products += t.products.panel_stride) {
    const int64_t left = t.columns - c;
    if (left <= kLanes<T>) {
      transfer_gradient_panel<T, 1, kWeighted>(t, scores, products, c);
    } else if (left <= 2 * kLanes<T>) {
      transfer_gradient_panel<T, 2, kWeighted>(t, scores, products, c);
    } else {
      transfer_gradient_panel<T, kVectors, kWeighted>(t, scores, products, c);
    }
  }
}

template <class T>
void transfer_gradient(const TransferGradientTile<T>& t) {
  t.log_weight != nullptr ? transfer_gradient_panels<T, true>(t) : transfer_gradient_panels<T, false>(t);
}

}  // namespace CSF_ISA
}  // namespace cosegflow

// The most probable target of a row, and the window around it. Included like vector_math.h, after softmax_kernel.h.
#pragma once

namespace cosegflow {
namespace CSF_ISA {

// Every lane of every vector of a panel keeps the first of its own largest keys (several chains hide the latency of the
// comparison); they are compared at the end: the largest key, and where several have it the lowest column.
template <class T, class Key>
CSF_INLINE void peak_of_rows(const PeakTile<T>& t, Key key_of) {
  using Index = typename Vec<T>::bits;
  using Lane = decltype(Index{}[0] + 0);
  const int64_t whole = t.columns / kLanes<T> * kLanes<T>;
  for (int64_t row = 0; row < t.rows; ++row) {
    vec<T> key[kVectors];
    Index at[kVectors];
    for (int64_t n = 0; n < kVectors; ++n) key[n] = splat(t.key[row]), at[n] = Index{} - 1;
    const T* panel = t.scores.data + row * kWidth<T>;
    for (int64_t c0 = 0; c0 < whole; c0 += kWidth<T>, panel += t.scores.panel_stride) {
#pragma GCC unroll 4
      for (int64_t n = 0; n < kVectors; ++n) {
        const int64_t c = c0 + n * kLanes<T>;
        if (c >= whole) break;
        const vec<T> candidate = key_of(load_anywhere(panel + n * kLanes<T>), c);
        const auto better = candidate > key[n];
        key[n] = better ? candidate : key[n];
        at[n] = better ? Index{} + static_cast<Lane>(c) : at[n];
      }
    }
    vec<T> largest = key[0];
    for (int64_t n = 1; n < kVectors; ++n) largest = larger(key[n], largest);
    T best = largest_lane(largest);
    int64_t column = -1;
    if (best > t.key[row]) {  // rare: in about one of k tiles at the k-th
      for (int64_t n = 0; n < kVectors; ++n) {
        for (int64_t i = 0; i < kLanes<T>; ++i) {
          const int64_t c = int64_t(at[n][i]) + i;
          if (key[n][i] == best && (column < 0 || c < column)) column = c;
        }
      }
    }
    const auto place = [&](int64_t c) {
      return c / kWidth<T> * t.scores.panel_stride + row * kWidth<T> + c % kWidth<T>;
    };
    if (whole < t.columns) {  // the last vector: what lies beyond the columns is no target
      const vec<T> candidate = key_of(load_anywhere(t.scores.data + place(whole)), whole);
      for (int64_t i = 0; i < t.columns - whole; ++i) {
        if (candidate[i] > best) best = candidate[i], column = whole + i;
      }
    }
    if (column < 0) continue;
    t.key[row] = best;
    t.score[row] = t.scores.data[place(column)];
    t.column[row] = t.first + column;
  }
}

template <class T>
void peaks(const PeakTile<T>& t) {
  if (t.log_weight != nullptr) {
    peak_of_rows<T>(t, [&](vec<T> s, int64_t c) __attribute__((always_inline)) {
      return s * t.beta + load(t.log_weight + c) * T(0.6931471805599453);
    });
  } else {  // the order of the scores alone: no product that could round two of them to one
    const T sign = t.beta > 0 ? T(1) : t.beta < 0 ? T(-1) : T(0);
    peak_of_rows<T>(t, [&](vec<T> s, int64_t) __attribute__((always_inline)) { return s * sign; });
  }
}

template <class T, bool kSlope>
static void window_rows(const WindowTile<T>& t) {
  for (int64_t row = 0; row < t.rows; ++row) {
    const vec<T> center_x = splat(t.center_x[row]), center_y = splat(t.center_y[row]);
    T* panel = t.scores.data + row * kWidth<T>;
    T* slope = kSlope ? t.slope.data + row * kWidth<T> : nullptr;
    for (int64_t c0 = 0; c0 < t.columns; c0 += kWidth<T>, panel += t.scores.panel_stride) {
#pragma GCC unroll 4
      for (int64_t n = 0; n < kVectors; ++n) {
        const int64_t lane = n * kLanes<T>;
        if (c0 + lane >= t.columns) break;
        const vec<T> dx = load(t.x + c0 + lane) - center_x, dy = load(t.y + c0 + lane) - center_y;
        const vec<T> k = exp2_below((dx * dx + dy * dy) * -t.rate);
        const vec<T> s = load(panel + lane);
        store(panel + lane, larger(vec<T>{}, s) * k);
        if constexpr (kSlope) store(slope + lane, s > vec<T>{} ? k : vec<T>{});
      }
      if constexpr (kSlope) slope += t.slope.panel_stride;
    }
  }
}

template <class T>
void window(const WindowTile<T>& t) {
  t.slope.data != nullptr ? window_rows<T, true>(t) : window_rows<T, false>(t);
}

template <class T>
void window_gradient(const WindowTile<T>& t) {
  for (int64_t row = 0; row < t.rows; ++row) {
    T* panel = t.scores.data + row * kWidth<T>;
    const T* slope = t.slope.data + row * kWidth<T>;
    for (int64_t c0 = 0; c0 < t.columns; c0 += kWidth<T>) {
#pragma GCC unroll 4
      for (int64_t n = 0; n < kVectors; ++n) {
        const int64_t lane = n * kLanes<T>;
        if (c0 + lane < t.columns) store(panel + lane, load(panel + lane) * load(slope + lane));
      }
      panel += t.scores.panel_stride;
      slope += t.slope.panel_stride;
    }
  }
}

}  // namespace CSF_ISA
}  // namespace cosegflow

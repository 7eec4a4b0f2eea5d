// The window kernels. Included after vector_math.h, once for each instruction set.
//
// Band: a vector holds neighbouring pixels of a source row; its sums for all shifts (or the weights of all shifts)
// stay in registers while the loop runs over channels. Two source rows share the loads of a target row: with 9 shifts
// that is 11 loads for 18 multiply-adds.
// Window: a vector holds neighbouring pixels of a row of the window, the pixel's feature is broadcast; the sums (or
// weights) of up to kWindowRows rows stay in registers. One load for one multiply-add.
#pragma once

namespace cosegflow {
namespace CSF_ISA {

constexpr int kBandShifts = CSF_VECTOR_BYTES == 64 ? 9 : 6;  // 32 or 16 registers; two rows take twice as many
constexpr int kWindowRows = 10;

// Sums over channels: so many in registers, then onto the total in memory. The error of one long chain of float32 adds
// grows with its length: with 128 channels it is three times that of torch's sum, which adds in blocks too.
constexpr int64_t kChannelsPerSum = 32;

// A vector anywhere in memory.
template <class T>
struct Unaligned;
template <>
struct Unaligned<float> {
  typedef float type __attribute__((vector_size(CSF_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct Unaligned<double> {
  typedef double type __attribute__((vector_size(CSF_VECTOR_BYTES), aligned(8), may_alias));
};
template <class T>
CSF_INLINE vec<T> load_any(const T* p) {
  return *reinterpret_cast<const typename Unaligned<T>::type*>(p);
}
template <class T>
CSF_INLINE void store_any(T* p, vec<T> v) {
  *reinterpret_cast<typename Unaligned<T>::type*>(p) = v;
}

// Keeps the compiler from loading a value again for each of its uses.
template <class V>
CSF_INLINE V in_register(V v) {
#if CSF_VECTOR_BYTES == 64
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#endif
  return v;
}

template <class T>
CSF_INLINE typename Vec<T>::bits lanes_below(int64_t count) {
  typename Vec<T>::bits index{};
  for (int i = 0; i < kLanes<T>; ++i) index[i] = i;
  return index < typename Vec<T>::bits{} + static_cast<int>(count < kLanes<T> ? count : kLanes<T>);
}

// Calls Kernel<T, kCount>::run(arguments...) with kCount = count, for count in 1 .. kMax.
template <template <class, int> class Kernel, class T, int kMax, class... A>
CSF_INLINE void with_count(int64_t count, A... arguments) {
  if constexpr (kMax > 1) {
    if (count < kMax) return with_count<Kernel, T, kMax - 1>(count, arguments...);
  }
  Kernel<T, kMax>::run(arguments...);
}

// Cuts [0, n) into equal parts of at most kMax and calls body(first, count).
template <int kMax, class Body>
CSF_INLINE void in_parts(int64_t n, Body body) {
  const int64_t parts = (n + kMax - 1) / kMax;
  for (int64_t part = 0, first = 0; part < parts; ++part) {
    const int64_t end = n * (part + 1) / parts;
    body(first, end - first);
    first = end;
  }
}

template <int kRows>
struct Band {
  template <class T, int kShifts>
  struct Correlate {
    static void run(const BandTask<T>* t, int64_t x, int64_t shift) {
      const int64_t width = t->width;
      const T* row = t->row + x + shift;
      int64_t at = x;
      for (int64_t begin = 0; begin < t->channels; begin += kChannelsPerSum) {
        vec<T> sum[kRows][kShifts];
#pragma GCC unroll 2
        for (int k = 0; k < kRows; ++k) {
#pragma GCC unroll 16
          for (int s = 0; s < kShifts; ++s) sum[k][s] = vec<T>{};
        }
        const int64_t left = t->channels - begin, count = left < kChannelsPerSum ? left : kChannelsPerSum;
        for (int64_t c = 0; c < count; ++c, row += t->row_pitch, at += t->source_pitch) {
          vec<T> source[kRows];
#pragma GCC unroll 2
          for (int k = 0; k < kRows; ++k) source[k] = load_any(t->sources[k] + at);
#pragma GCC unroll 16
          for (int s = 0; s < kShifts; ++s) {
            const vec<T> target = in_register(load_any(row + s));
#pragma GCC unroll 2
            for (int k = 0; k < kRows; ++k) sum[k][s] += source[k] * target;
          }
        }
#pragma GCC unroll 2
        for (int k = 0; k < kRows; ++k) {
          T* const totals = t->weights[k] + shift * width + x;
#pragma GCC unroll 16
          for (int s = 0; s < kShifts; ++s) {
            T* const total = totals + s * width;
            store_any(total, begin == 0 ? sum[k][s] : load_any(total) + sum[k][s]);
          }
        }
      }
    }
  };

  template <class T, int kShifts>
  struct Gather {
    static void run(const BandTask<T>* t, int64_t x, int64_t shift) {
      vec<T> weight[kRows][kShifts];
#pragma GCC unroll 2
      for (int k = 0; k < kRows; ++k) {
#pragma GCC unroll 16
        for (int s = 0; s < kShifts; ++s) weight[k][s] = load_any(t->weights[k] + (shift + s) * t->width + x);
      }
      const T* row = t->row + x + shift;
      int64_t at = x;
      for (int64_t c = 0; c < t->channels; ++c, row += t->row_pitch, at += t->source_pitch) {
        vec<T> sum[kRows];
#pragma GCC unroll 2
        for (int k = 0; k < kRows; ++k) sum[k] = load_any(t->sources[k] + at);
#pragma GCC unroll 16
        for (int s = 0; s < kShifts; ++s) {
          const vec<T> target = in_register(load_any(row + s));
#pragma GCC unroll 2
          for (int k = 0; k < kRows; ++k) sum[k] += weight[k][s] * target;
        }
#pragma GCC unroll 2
        for (int k = 0; k < kRows; ++k) store_any(t->sources[k] + at, sum[k]);
      }
    }
  };
};

template <template <class, int> class One, template <class, int> class Two, class T>
CSF_INLINE void over_band(const BandTask<T>& t) {
  for (int64_t x = 0; x < t.width; x += kLanes<T>) {
    in_parts<kBandShifts>(t.shifts, [&](int64_t shift, int64_t count) __attribute__((always_inline)) {
      if (t.rows == 1) {
        with_count<One, T, kBandShifts>(count, &t, x, shift);
      } else {
        with_count<Two, T, kBandShifts>(count, &t, x, shift);
      }
    });
  }
}

template <class T>
void correlate_band(const BandTask<T>& t) {
  over_band<Band<1>::Correlate, Band<2>::Correlate>(t);
}

template <class T>
void gather_band(const BandTask<T>& t) {
  over_band<Band<1>::Gather, Band<2>::Gather>(t);
}

template <class T>
constexpr int64_t whole_vectors(int64_t columns) {
  return (columns + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class T, int kRows>
struct Products {
  static void run(const WindowTask<T>* t, int64_t row, int64_t column) {
    const int64_t pitch = whole_vectors<T>(t->columns);
    T* const weights = t->weights + row * pitch + column;
    vec<T> sum[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) sum[i] = vec<T>{};
    const T* window = t->window + row * t->window_stride + column;
    const T* feature = t->feature;
    for (int64_t c = 0; c < t->channels; ++c, window += t->window_pitch, feature += t->feature_pitch) {
      const vec<T> source = splat(*feature);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) sum[i] += source * load_any(window + i * t->window_stride);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      T* const total = weights + i * pitch;
      store_any(total, t->accumulate ? load_any(total) + sum[i] : sum[i]);
    }
  }
};

template <class T, int kRows>
struct WindowGather {
  static void run(const WindowTask<T>* t, int64_t row, int64_t column) {
    const int64_t pitch = whole_vectors<T>(t->columns);
    const auto live = lanes_below<T>(t->columns - column);
    vec<T> weight[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) weight[i] = load_any(t->weights + (row + i) * pitch + column);
    const T* window = t->window + row * t->window_stride + column;
    T* feature = t->feature;
    for (int64_t c = 0; c < t->channels; ++c, window += t->window_pitch, feature += t->feature_pitch) {
      vec<T> sum = weight[0] * load_any(window);
#pragma GCC unroll 16
      for (int i = 1; i < kRows; ++i) sum += weight[i] * load_any(window + i * t->window_stride);
      *feature += sum_lanes(live ? sum : vec<T>{});
    }
  }
};

template <class T, int kRows>
struct WindowScatter {
  static void run(const WindowTask<T>* t, int64_t row, int64_t column) {
    const int64_t pitch = whole_vectors<T>(t->columns);
    const auto live = lanes_below<T>(t->columns - column);
    vec<T> weight[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) weight[i] = load_any(t->weights + (row + i) * pitch + column);
    T* window = t->window + row * t->window_stride + column;
    const T* feature = t->feature;
    for (int64_t c = 0; c < t->channels; ++c, window += t->window_pitch, feature += t->feature_pitch) {
      const vec<T> source = splat(*feature);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) {
        T* const at = window + i * t->window_stride;
        const vec<T> old = load_any(at);
        store_any(at, live ? old + weight[i] * source : old);
      }
    }
  }
};

template <template <class, int> class Kernel, class T>
CSF_INLINE void over_window(const WindowTask<T>& t) {
  for (int64_t column = 0; column < t.columns; column += kLanes<T>) {
    in_parts<kWindowRows>(t.rows, [&](int64_t row, int64_t count) __attribute__((always_inline)) {
      with_count<Kernel, T, kWindowRows>(count, &t, row, column);
    });
  }
}

template <class T>
void window_products(const WindowTask<T>& t) {
  over_window<Products>(t);
}
template <class T>
void window_gather(const WindowTask<T>& t) {
  over_window<WindowGather>(t);
}
template <class T>
void window_scatter(const WindowTask<T>& t) {
  over_window<WindowScatter>(t);
}

template <class T>
constexpr WindowKernels<T> kWindowTable = {kLanes<T>,          correlate_band<T>, gather_band<T>,
                                           window_products<T>, window_gather<T>,  window_scatter<T>};

}  // namespace CSF_ISA
}  // namespace cosegflow

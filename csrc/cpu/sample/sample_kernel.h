// Points, packing, sampling and its gradients for one instruction set; see sample_kernels.h.
//
// Included by sample/sample_<isa>.cpp under its target pragma, after tile/vector_math.h. Sums over taps and channels
// are formed in one order for every layout of the tensors, so results do not depend on it.
#pragma once

namespace cosegflow {
namespace CSF_ISA {

// A vector of L numbers, which the compiler maps to registers of the instruction set; `u` may lie anywhere.
template <class A, int L>
struct CellOf {
  typedef A type __attribute__((vector_size(L * sizeof(A))));
  typedef A u __attribute__((vector_size(L * sizeof(A)), aligned(sizeof(A)), may_alias));
};
template <class A, int L>
using cell_t = typename CellOf<A, L>::type;

template <class A, int L>
CSF_INLINE cell_t<A, L> load_cell(const A* p) {
  return *reinterpret_cast<const typename CellOf<A, L>::u*>(p);
}
template <class A, int L>
CSF_INLINE void store_cell(A* p, cell_t<A, L> v) {
  *reinterpret_cast<typename CellOf<A, L>::u*>(p) = v;
}

// One step of the transposition: a and b are rows i and i + Step; columns with the bit Step of a change places with
// columns without it of b.
template <int L, int Step, class V, int... I>
CSF_INLINE void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  const V upper = __builtin_shufflevector(a, b, ((I & Step) == 0 ? I : L + I - Step)...);
  b = __builtin_shufflevector(a, b, ((I & Step) == 0 ? I + Step : L + I)...);
#else
  using Order = decltype(a < b);
  const V upper = __builtin_shuffle(a, b, Order{((I & Step) == 0 ? I : L + I - Step)...});
  b = __builtin_shuffle(a, b, Order{((I & Step) == 0 ? I + Step : L + I)...});
#endif
  a = upper;
}

template <int L, int Step, class V>
CSF_INLINE void exchange_all(V (&m)[L]) {
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if ((i & Step) == 0) exchange<L, Step>(m[i], m[i + Step], std::make_integer_sequence<int, L>{});
  }
}

template <int L, class V>
CSF_INLINE void transpose(V (&m)[L]) {
  if constexpr (L > 8) exchange_all<L, 8>(m);
  if constexpr (L > 4) exchange_all<L, 4>(m);
  if constexpr (L > 2) exchange_all<L, 2>(m);
  exchange_all<L, 1>(m);
}

// L cells from L rows, at column `begin`; columns from `count` on are 0.
template <class A, int L>
CSF_INLINE void load_tile(const A* const* rows, int64_t begin, int64_t count, cell_t<A, L> (&m)[L]) {
  if (begin + L <= count) {
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) m[k] = load_cell<A, L>(rows[k] + begin);
  } else {
    for (int k = 0; k < L; ++k) {
      A edge[L] = {};
      for (int64_t i = begin; i < count; ++i) edge[i - begin] = rows[k][i];
      m[k] = load_cell<A, L>(edge);
    }
  }
  transpose<L>(m);
}

template <class A, int L>
CSF_INLINE void store_tile(cell_t<A, L> (&m)[L], int64_t begin, int64_t count, int64_t channels, A* const* rows) {
  transpose<L>(m);
  if (begin + L <= count) {
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) {
      if (k < channels) store_cell<A, L>(rows[k] + begin, m[k]);
    }
  } else {
    A block[L * L];
#pragma GCC unroll 16
    for (int k = 0; k < L; ++k) store_cell<A, L>(block + k * L, m[k]);
    const int64_t n = count - begin < L ? count - begin : L;
    for (int64_t k = 0; k < channels; ++k) __builtin_memcpy(rows[k] + begin, block + k * L, n * sizeof(A));
  }
}

template <class A, int L>
static void pack(const A* const* rows, int64_t count, A* cells) {
  for (int64_t begin = 0; begin < count; begin += L) {
    cell_t<A, L> m[L];
    load_tile<A, L>(rows, begin, count, m);
    const int64_t n = count - begin < L ? count - begin : L;
    if (n == L) {
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store_cell<A, L>(cells + (begin + i) * L, m[i]);
    } else {
      A block[L * L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) store_cell<A, L>(block + i * L, m[i]);
      __builtin_memcpy(cells + begin * L, block, n * L * sizeof(A));
    }
  }
}

template <class A, int L>
static void unpack(const A* cells, int64_t count, int64_t channels, A* const* rows) {
  for (int64_t begin = 0; begin < count; begin += L) {
    cell_t<A, L> m[L];
    const int64_t n = count - begin < L ? count - begin : L;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) m[i] = i < n ? load_cell<A, L>(cells + (begin + i) * L) : cell_t<A, L>{};
    store_tile<A, L>(m, begin, count, channels, rows);
  }
}

// The top left tap of point i.
template <class A, int L>
CSF_INLINE int64_t first_tap(const PointRow<A>& points, int64_t pitch, int64_t i) {
  return (points.cell_y[i] * pitch + points.cell_x[i]) * L;
}

template <class A, int L, bool Nearest>
static void sample_points(const A* image, int64_t pitch, const PointRow<A>& points, int64_t count, int64_t channels,
                          A* const* rows) {
  using Cell = cell_t<A, L>;
  for (int64_t begin = 0; begin < count; begin += L) {
    Cell m[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const int64_t p = begin + i;
      const A* at = image + first_tap<A, L>(points, pitch, p);
      if (Nearest) {
        m[i] = load_cell<A, L>(at);
        continue;
      }
      const A* below = at + pitch * L;
      Cell sum = points.weight[0][p] * load_cell<A, L>(at);
      sum += points.weight[1][p] * load_cell<A, L>(at + L);
      sum += points.weight[2][p] * load_cell<A, L>(below);
      sum += points.weight[3][p] * load_cell<A, L>(below + L);
      m[i] = sum;
    }
    store_tile<A, L>(m, begin, count, channels, rows);
  }
}

template <class A, int L>
static void sample(const A* image, int64_t pitch, const PointRow<A>& points, int64_t count, int64_t channels,
                   bool nearest, A* const* rows) {
  nearest ? sample_points<A, L, true>(image, pitch, points, count, channels, rows)
          : sample_points<A, L, false>(image, pitch, points, count, channels, rows);
}

template <class A, int L>
CSF_INLINE void add_to(A* p, A weight, cell_t<A, L> grad) {
  store_cell<A, L>(p, load_cell<A, L>(p) + weight * grad);
}

template <class A, int L>
static void scatter(A* image, int64_t pitch, const PointRow<A>& points, int64_t count, bool nearest, int64_t begin_row,
                    int64_t end_row, const A* const* grads) {
  const uint32_t rows = static_cast<uint32_t>(end_row - begin_row);
  const int32_t first = static_cast<int32_t>(begin_row);
  for (int64_t begin = 0; begin < count; begin += L) {
    bool any = false, all = !nearest;
    for (int i = 0; i < L; ++i) {
      const uint32_t row = static_cast<uint32_t>(points.cell_y[begin + i] - first);
      any |= row + 1 <= rows;  // -1, whose lower taps are in row 0, wraps around to 0
      all &= row < rows && row + 1 < rows;
    }
    if (!any) continue;
    cell_t<A, L> grad[L];
    load_tile<A, L>(grads, begin, count, grad);
    if (all) {
#pragma GCC unroll 4
      for (int i = 0; i < L; ++i) {
        const int64_t p = begin + i;
        A* at = image + first_tap<A, L>(points, pitch, p);
        add_to<A, L>(at, points.weight[0][p], grad[i]);
        add_to<A, L>(at + L, points.weight[1][p], grad[i]);
        add_to<A, L>(at + pitch * L, points.weight[2][p], grad[i]);
        add_to<A, L>(at + pitch * L + L, points.weight[3][p], grad[i]);
      }
      continue;
    }
    for (int i = 0; i < L; ++i) {
      const int64_t p = begin + i;
      const uint32_t row = static_cast<uint32_t>(points.cell_y[p] - first);
      A* at = image + first_tap<A, L>(points, pitch, p);
      if (nearest) {
        if (row < rows) add_to<A, L>(at, A(1), grad[i]);
        continue;
      }
      if (row < rows) {
        add_to<A, L>(at, points.weight[0][p], grad[i]);
        add_to<A, L>(at + L, points.weight[1][p], grad[i]);
      }
      if (row + 1 < rows) {
        add_to<A, L>(at + pitch * L, points.weight[2][p], grad[i]);
        add_to<A, L>(at + pitch * L + L, points.weight[3][p], grad[i]);
      }
    }
  }
}

template <class A, int L>
static void point_gradient(const A* image, int64_t pitch, const PointRow<A>& points, int64_t count,
                           const A* const* grads, A* sum_x, A* sum_y) {
  using Cell = cell_t<A, L>;
  for (int64_t begin = 0; begin < count; begin += L) {
    Cell grad[L], by_x[L], by_y[L];  // of each point, in the channel of each lane
    load_tile<A, L>(grads, begin, count, grad);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const int64_t p = begin + i;
      const A* at = image + first_tap<A, L>(points, pitch, p);
      const A wx = points.wx[p], wy = points.wy[p];
      const Cell v0 = load_cell<A, L>(at), v1 = load_cell<A, L>(at + L);
      const Cell v2 = load_cell<A, L>(at + pitch * L), v3 = load_cell<A, L>(at + pitch * L + L);
      by_x[i] = grad[i] * ((v1 - v0) * (A(1) - wy) + (v3 - v2) * wy);
      by_y[i] = grad[i] * ((v2 - v0) * (A(1) - wx) + (v3 - v1) * wx);
    }
    transpose<L>(by_x);
    transpose<L>(by_y);
    Cell total_x = {}, total_y = {};
    for (int k = 0; k < L; ++k) total_x += by_x[k], total_y += by_y[k];
    // Selected: x and the gradient that came in may be NaN.
    const auto finite = load_cell<A, L>(points.finite + begin) != A(0);
    const auto moves_x = load_cell<A, L>(points.slope_x + begin) != A(0);
    const auto moves_y = load_cell<A, L>(points.slope_y + begin) != A(0);
    store_cell<A, L>(sum_x + begin, finite & moves_x ? total_x : Cell{});
    store_cell<A, L>(sum_y + begin, finite & moves_y ? total_y : Cell{});
  }
}

// warp_point and warp_taps of common/warp_math.h for a whole vector of points; the same arithmetic, so the same bits.
template <class A>
struct PointVector {
  static constexpr int lanes = kLanes<A>;
  typedef A real __attribute__((vector_size(CSF_VECTOR_BYTES)));
  typedef typename Vec<A>::bits mask;
  typedef int32_t index __attribute__((vector_size(lanes * 4)));
  typedef int8_t bytes __attribute__((vector_size(lanes)));
};

template <class A>
CSF_INLINE void clamp_axis(typename PointVector<A>::real& p, typename PointVector<A>::real& slope, A low, A high) {
  using Real = typename PointVector<A>::real;
  const auto under = p<low, over = p> high;
  slope = under | over ? Real{} : slope;
  p = under ? Real{} + low : p;
  p = over ? Real{} + high : p;
}

// The next whole number below (p is clamped: it fits), and the rest.
template <class A>
CSF_INLINE typename PointVector<A>::index split(typename PointVector<A>::real p, typename PointVector<A>::real& rest) {
  using V = PointVector<A>;
  typename V::index whole = __builtin_convertvector(p, typename V::index);
  whole += __builtin_convertvector(__builtin_convertvector(whole, typename V::real) > p, typename V::index);
  rest = p - __builtin_convertvector(whole, typename V::real);
  return whole;
}

template <class A>
static void fill_points(const PointRow<A>& out, int64_t row, int64_t count, const SampleGrid& grid) {
  using V = PointVector<A>;
  using Real = typename V::real;
  using Mask = typename V::mask;
  using Index = typename V::index;
  const A last_x = static_cast<A>(grid.width - 1), last_y = static_cast<A>(grid.height - 1);
  const A margin = grid.border ? A(0) : A(4);
  const int32_t width = static_cast<int32_t>(grid.width), height = static_cast<int32_t>(grid.height);
  Index iota = {};
  for (int i = 0; i < V::lanes; ++i) iota[i] = i;
  for (int64_t begin = 0; begin < count; begin += V::lanes) {
    const Real flow_x = load_cell<A, V::lanes>(out.flow_x + begin), flow_y = load_cell<A, V::lanes>(out.flow_y + begin);
    Real px = __builtin_convertvector(iota + static_cast<int32_t>(begin), Real) + flow_x;
    Real py = static_cast<A>(row) + flow_y;
    const Mask finite = (flow_x - flow_x == A(0)) & (flow_y - flow_y == A(0));
    px = finite ? px : Real{} - A(4);
    py = finite ? py : Real{} - A(4);
    const Mask valid = finite & (px >= A(0)) & (px <= last_x) & (py >= A(0)) & (py <= last_y);
    Real slope_x = Real{} + A(1), slope_y = slope_x;
    clamp_axis<A>(px, slope_x, -margin, last_x + margin);
    clamp_axis<A>(py, slope_y, -margin, last_y + margin);
    if (grid.nearest) {
      for (int i = 0; i < V::lanes; ++i) px[i] = __builtin_rint(px[i]), py[i] = __builtin_rint(py[i]);
      slope_x = slope_y = Real{};
    }
    Real wx, wy;
    const Index x = split<A>(px, wx), y = split<A>(py, wy);
    const Index outside = (x < -1) | (x >= width) | (y < -1) | (y >= height) | ~__builtin_convertvector(finite, Index);
    const Index cell_x = outside ? Index{} : x + 1, cell_y = outside ? Index{} : y + 2;
    *reinterpret_cast<Index*>(out.cell_x + begin) = cell_x;
    *reinterpret_cast<Index*>(out.cell_y + begin) = cell_y;
    const Real left = A(1) - wx, top = A(1) - wy;
    store_cell<A, V::lanes>(out.weight[0] + begin, left * top);
    store_cell<A, V::lanes>(out.weight[1] + begin, wx * top);
    store_cell<A, V::lanes>(out.weight[2] + begin, left * wy);
    store_cell<A, V::lanes>(out.weight[3] + begin, wx * wy);
    store_cell<A, V::lanes>(out.wx + begin, wx);
    store_cell<A, V::lanes>(out.wy + begin, wy);
    store_cell<A, V::lanes>(out.slope_x + begin, slope_x);
    store_cell<A, V::lanes>(out.slope_y + begin, slope_y);
    const typename V::bytes are_valid = __builtin_convertvector(valid, typename V::bytes) & 1;
    store_cell<A, V::lanes>(out.finite + begin, finite ? Real{} + A(1) : Real{});
    __builtin_memcpy(out.valid + begin, &are_valid, V::lanes);
  }
}

template <class A, int L>
constexpr CellKernels<A> kCells = {L, pack<A, L>, unpack<A, L>, sample<A, L>, scatter<A, L>, point_gradient<A, L>};

template <class A>
constexpr SampleKernels<A> kSampleTable = {fill_points<A>, kCells<A, 4>, kCells<A, (kLanes<A> > 4 ? kLanes<A> : 4)>};

}  // namespace CSF_ISA
}  // namespace cosegflow

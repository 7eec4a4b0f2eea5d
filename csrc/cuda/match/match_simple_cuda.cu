// match, the plainly right kernels: straight from the strided inputs, no packing, no tiles, any dtype. They are the
// yardstick of the fast ones and run where those do not.
//
// Forward: one block of 128 threads per source pixel; a thread takes every 128th target, computes norm and inner
//   product by a loop over C, keeps an online softmax in registers; the 128 states merge in shared memory.
//   Where the most probable target is wanted, another such state; with a window around it, a second walk.
// Backward: images in turn, rows in chunks: (1) a thread per (source, target) writes s and dlogit to the workspace;
//   (2) a thread per (source, channel), and (3) per (target, channel), sums ds * f_hat; (4) a thread per target sums
//   dlogit for the mask and dlogit * s for beta; after the chunks (5) a thread per pixel goes back through the
//   normalization. No pipeline, no atomics: one order of summation.
// Moves Na * Nb * C values per pass through L2, 2 FLOPs each: bound by load throughput, far from any limit by design.
#include "common/dispatch.h"
#include "kernel_window.cuh"
#include "match/match_common.cuh"
#include "primitives/most_probable.cuh"

namespace cosegflow::match_cuda {
namespace {

constexpr int kForwardThreads = 128, kThreads = 256;

template <class T>
__device__ __forceinline__ T* at3(const View3& v, int64_t b, int64_t y, int64_t x) {
  return static_cast<T*>(v.data) + b * v.stride[0] + y * v.stride[1] + x * v.stride[2];
}
template <class T>
__device__ __forceinline__ T* at4(const View4& v, int64_t b, int64_t c, int64_t y, int64_t x) {
  return static_cast<T*>(v.data) + b * v.stride[0] + c * v.stride[1] + y * v.stride[2] + x * v.stride[3];
}

// One side: its features and mask, and which pixel is number i.
struct Side {
  View4 f;
  View3 mask;
  int64_t channels, height, width;
  bool normalize;
  __device__ __forceinline__ int64_t positions() const { return height * width; }
  __device__ __forceinline__ bool allowed(int64_t b, int64_t i) const {
    return mask_weight<float>(mask, b, i / width, i % width).weight > 0.0f;
  }
};
Side side_a(const MatchParams& p) { return {p.fa, p.mask_a, p.channels, p.height_a, p.width_a, p.normalize}; }
Side side_b(const MatchParams& p) { return {p.fb, p.mask_b, p.channels, p.height_b, p.width_b, p.normalize}; }

template <class T, class Acc = accumulate_t<T>>
__device__ __forceinline__ Acc feature(const Side& s, int64_t b, int64_t c, int64_t i) {
  return to_float(*at4<const T>(s.f, b, c, i / s.width, i % s.width));
}

// The sum of term(c) over the channels, eight at a time: one long sum in float would lose digits.
template <class Acc, class Term>
__device__ __forceinline__ Acc sum_over_channels(int64_t channels, const Term& term) {
  Acc sum = Acc(0);
  for (int64_t c0 = 0; c0 < channels; c0 += 8) {
    Acc part = Acc(0);
    for (int64_t c = c0; c < c0 + 8 && c < channels; ++c) part += term(c);
    sum += part;
  }
  return sum;
}

template <class T, class Acc = accumulate_t<T>>
__device__ __forceinline__ Acc inverse_norm(const Side& s, int64_t b, int64_t i) {
  if (!s.normalize) return Acc(1);
  const Acc squares = sum_over_channels<Acc>(s.channels, [&](int64_t c) {
    const Acc v = feature<T>(s, b, c, i);
    return v * v;
  });
  return inverse_norm_of(squares);
}

template <class T, class Acc = accumulate_t<T>>
__device__ __forceinline__ Acc score(const Side& sa, const Side& sb, int64_t b, int64_t i, int64_t j, Acc inv_a,
                                     Acc inv_b) {
  const Acc dot =
      sum_over_channels<Acc>(sa.channels, [&](int64_t c) { return feature<T>(sa, b, c, i) * feature<T>(sb, b, c, j); });
  return dot * inv_a * inv_b;
}

// The best of all threads, in all threads.
template <class Acc>
__device__ __forceinline__ MostProbable<Acc> best_of_block(const MostProbable<Acc>& mine) {
  using All = MostProbable<Acc>[kForwardThreads];
  using One = MostProbable<Acc>[1];
  CSF_SHARED(All, all);
  CSF_SHARED(One, one);
  all[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    MostProbable<Acc> best = mine;
    for (int t = 1; t < kForwardThreads; ++t) best.merge(all[t]);
    one[0] = best;
  }
  __syncthreads();
  return one[0];
}

template <class T, bool kIndexed>
__global__ void __launch_bounds__(kForwardThreads, 4)  // else ptxas aims at too few registers and spills
    match_simple_forward_kernel(MatchParams p, Side sa, Side sb) {
  using Acc = accumulate_t<T>;
  using States = OnlineSoftmax<Acc>[kForwardThreads];
  CSF_SHARED(States, states);
  const int64_t b = blockIdx.x / sa.positions(), i = blockIdx.x % sa.positions();
  const int64_t y = i / sa.width, x = i % sa.width;
  const bool exists = sa.allowed(b, i);
  const Acc beta = static_cast<const Acc*>(p.beta.data)[b * p.beta.stride[0]];
  const Acc inv_a = exists ? inverse_norm<T>(sa, b, i) : Acc(0);
  const auto walk = [&](const auto& consume) {  // consume(target, its score, its log weight)
    for (int64_t j = threadIdx.x; exists && j < sb.positions(); j += kForwardThreads) {
      const MaskWeight<Acc> m = mask_weight<Acc>(sb.mask, b, j / sb.width, j % sb.width);
      if (m.weight > Acc(0)) consume(j, score<T>(sa, sb, b, i, j, inv_a, inverse_norm<T>(sb, b, j)), m.log_weight);
    }
  };
  OnlineSoftmax<Acc> state;
  state.clear();
  const auto add = [&](int64_t j, Acc s, Acc log_weight) {
    const Acc logit[1] = {fma_of(beta, s, log_weight)};
    const Acc at_x[1] = {static_cast<Acc>(j % sb.width)}, at_y[1] = {static_cast<Acc>(j / sb.width)};
    state.add(logit, at_x, at_y);
  };
  if constexpr (kIndexed) {
    const bool windowed = p.kernel_sigma > 0;
    MostProbable<Acc> best;
    best.clear();
    walk([&](int64_t j, Acc s, Acc log_weight) {
      best.add(fma_of(beta, s, log_weight), s, j);
      if (!windowed) add(j, s, log_weight);
    });
    best = best_of_block(best);
    if (windowed) {
      const auto window = KernelWindow<Acc>::around(best.index, sb.width, p.kernel_sigma);
      walk([&](int64_t j, Acc s, Acc log_weight) {
        const Acc k = window.gaussian(static_cast<Acc>(j % sb.width), static_cast<Acc>(j / sb.width));
        add(j, window.value(s, k), log_weight);
      });
    }
    if (threadIdx.x == 0) {
      p.index[blockIdx.x] = best.index;
      *at3<Acc>(p.score, b, y, x) = best.score;
    }
  } else {
    walk(add);
  }
  // Pairs of pairs: where most targets weigh alike, one sum of 128 terms would round them all the same way.
  states[threadIdx.x] = state;
  for (unsigned others = kForwardThreads / 2; others > 0; others /= 2) {
    __syncthreads();
    if (threadIdx.x < others) state.merge(states[threadIdx.x + others]), states[threadIdx.x] = state;
  }
  if (threadIdx.x != 0) return;
  const bool empty = state.empty();
  *at4<Acc>(p.flow, b, 0, y, x) = empty ? Acc(0) : state.mean_x() - static_cast<Acc>(x);
  *at4<Acc>(p.flow, b, 1, y, x) = empty ? Acc(0) : state.mean_y() - static_cast<Acc>(y);
  *at3<Acc>(p.lse, b, y, x) = state.log_sum_exp();
  *at3<Acc>(p.confidence, b, y, x) = state.largest_probability();
}

// What the backward keeps for one image.
template <class Acc>
struct SimpleSpace {
  int64_t rows;              // of a chunk
  Acc *inv_a, *inv_b;        // (Na), (Nb)
  Acc *s, *dlogit;           // (rows, Nb); s windowed where there is a window
  Acc* dscore;               // (rows, Nb): d(loss)/ds over beta; dlogit itself without a window
  Acc *grad_a, *grad_b;      // (C, Na), (C, Nb): of normalized features
  Acc *sum_mask, *sum_beta;  // (Nb)
  size_t bytes;

  SimpleSpace(const MatchParams& p, void* base) {
    Arena arena(base);
    const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
    const size_t chunk = p.chunk_bytes == 0 ? size_t{64} << 20 : p.chunk_bytes;
    const bool windowed = p.kernel_sigma > 0;
    const int64_t fit = static_cast<int64_t>(chunk / ((windowed ? 3 : 2) * sizeof(Acc))) / nb;
    rows = fit < 1 ? 1 : (fit < na ? fit : na);
    inv_a = arena.take<Acc>(na), inv_b = arena.take<Acc>(nb);
    s = arena.take<Acc>(rows * nb), dlogit = arena.take<Acc>(rows * nb);
    dscore = windowed ? arena.take<Acc>(rows * nb) : dlogit;
    grad_a = arena.take<Acc>(p.channels * na), grad_b = arena.take<Acc>(p.channels * nb);
    sum_mask = arena.take<Acc>(nb), sum_beta = arena.take<Acc>(nb);
    bytes = arena.bytes();
  }
};

__device__ __forceinline__ int64_t thread_of_grid() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

template <class T>
__global__ void __launch_bounds__(kThreads) match_simple_norm_kernel(Side side, int64_t b, accumulate_t<T>* inv) {
  const int64_t i = thread_of_grid();
  if (i < side.positions()) inv[i] = side.allowed(b, i) ? inverse_norm<T>(side, b, i) : accumulate_t<T>(0);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4)  // else ptxas aims at 32 registers and spills
    match_simple_dlogit_kernel(MatchParams p, Side sa, Side sb, int64_t b, int64_t row_begin, int64_t rows,
                               SimpleSpace<accumulate_t<T>> w) {
  using Acc = accumulate_t<T>;
  const int64_t e = thread_of_grid(), nb = sb.positions();
  if (e >= rows * nb) return;
  const int64_t i = row_begin + e / nb, j = e % nb, y = i / sa.width, x = i % sa.width;
  const MaskWeight<Acc> m = mask_weight<Acc>(sb.mask, b, j / sb.width, j % sb.width);
  Acc s = Acc(0), dlogit = Acc(0), slope = Acc(1);
  if (m.weight > Acc(0) && sa.allowed(b, i)) {
    s = score<T>(sa, sb, b, i, j, w.inv_a[i], w.inv_b[j]);
    if (p.kernel_sigma > 0) {
      const auto window = KernelWindow<Acc>::around(p.index[b * sa.positions() + i], sb.width, p.kernel_sigma);
      const Acc k = window.gaussian(static_cast<Acc>(j % sb.width), static_cast<Acc>(j / sb.width));
      slope = window.slope(s, k);
      s = window.value(s, k);
    }
    const Acc beta = static_cast<const Acc*>(p.beta.data)[b * p.beta.stride[0]];
    const Acc probability = exp_of(fma_of(beta, s, m.log_weight) - *at3<const Acc>(p.lse, b, y, x));
    const Acc from_x = static_cast<Acc>(j % sb.width) - (*at4<const Acc>(p.flow, b, 0, y, x) + static_cast<Acc>(x));
    const Acc from_y = static_cast<Acc>(j / sb.width) - (*at4<const Acc>(p.flow, b, 1, y, x) + static_cast<Acc>(y));
    Acc along = p.grad_lse.data == nullptr ? Acc(0) : *at3<const Acc>(p.grad_lse, b, y, x);
    if (p.grad_flow.data != nullptr) {
      along += *at4<const Acc>(p.grad_flow, b, 0, y, x) * from_x + *at4<const Acc>(p.grad_flow, b, 1, y, x) * from_y;
    }
    dlogit = probability * along;
  }
  w.s[e] = s;
  w.dlogit[e] = dlogit;
  if (p.kernel_sigma > 0) w.dscore[e] = dlogit * slope;
}

// grad_a[c][i] = sum_j beta dscore_ij b_hat[c][j]: a thread per source of the chunk and channel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    match_simple_grad_a_kernel(MatchParams p, Side sa, Side sb, int64_t b, int64_t row_begin, int64_t rows,
                               SimpleSpace<accumulate_t<T>> w) {
  using Acc = accumulate_t<T>;
  const int64_t e = thread_of_grid(), nb = sb.positions();
  if (e >= rows * sa.channels) return;
  const int64_t c = e / rows, row = e % rows;
  Acc sum = Acc(0);
  for (int64_t j = 0; j < nb; ++j) {
    if (sb.allowed(b, j)) sum += w.dscore[row * nb + j] * (feature<T>(sb, b, c, j) * w.inv_b[j]);
  }
  w.grad_a[c * sa.positions() + row_begin + row] = sum * static_cast<const Acc*>(p.beta.data)[b * p.beta.stride[0]];
}

// grad_b[c][j] += sum_i beta dscore_ij a_hat[c][i], i in the chunk: a thread per target and channel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    match_simple_grad_b_kernel(MatchParams p, Side sa, Side sb, int64_t b, int64_t row_begin, int64_t rows,
                               SimpleSpace<accumulate_t<T>> w) {
  using Acc = accumulate_t<T>;
  const int64_t e = thread_of_grid(), nb = sb.positions();
  if (e >= nb * sa.channels) return;
  const int64_t c = e / nb, j = e % nb;
  Acc sum = Acc(0);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t i = row_begin + row;
    if (sa.allowed(b, i)) sum += w.dscore[row * nb + j] * (feature<T>(sa, b, c, i) * w.inv_a[i]);
  }
  sum *= static_cast<const Acc*>(p.beta.data)[b * p.beta.stride[0]];
  w.grad_b[e] = row_begin == 0 ? sum : w.grad_b[e] + sum;
}

template <class Acc>
__global__ void __launch_bounds__(kThreads)
    match_simple_columns_kernel(int64_t nb, int64_t row_begin, int64_t rows, SimpleSpace<Acc> w) {
  const int64_t j = thread_of_grid();
  if (j >= nb) return;
  Acc mask = row_begin == 0 ? Acc(0) : w.sum_mask[j], beta = row_begin == 0 ? Acc(0) : w.sum_beta[j];
  for (int64_t row = 0; row < rows; ++row) {
    mask += w.dlogit[row * nb + j];
    beta += w.dlogit[row * nb + j] * w.s[row * nb + j];
  }
  w.sum_mask[j] = mask;
  w.sum_beta[j] = beta;
}

// g = (d - (d . f_hat) f_hat) * inv, or d * inv where the norm was clamped: a thread per pixel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    match_simple_feature_gradient_kernel(Side side, int64_t b, const accumulate_t<T>* inv_norm,
                                         const accumulate_t<T>* grad_f_hat, View4 grad) {
  using Acc = accumulate_t<T>;
  const int64_t i = thread_of_grid(), n = side.positions();
  if (i >= n) return;
  const bool allowed = side.allowed(b, i);
  const Acc inv = inv_norm[i];
  const bool project = allowed && side.normalize && inv < Acc(1) / Acc(1e-12);
  Acc inner = Acc(0);
  if (project) {
    for (int64_t c = 0; c < side.channels; ++c) inner += grad_f_hat[c * n + i] * (feature<T>(side, b, c, i) * inv);
  }
  for (int64_t c = 0; c < side.channels; ++c) {
    Acc g = Acc(0);
    if (allowed) g = grad_f_hat[c * n + i];
    if (project) g -= inner * (feature<T>(side, b, c, i) * inv);
    *at4<T>(grad, b, c, i / side.width, i % side.width) = from_float<T>(allowed ? g * inv : g);
  }
}

template <class Acc>
__global__ void __launch_bounds__(kThreads)
    match_simple_mask_gradient_kernel(MatchParams p, Side sb, int64_t b, SimpleSpace<Acc> w) {
  const int64_t j = thread_of_grid();
  if (j >= sb.positions()) return;
  const Acc m = mask_weight<Acc>(sb.mask, b, j / sb.width, j % sb.width).weight;
  *at3<Acc>(p.grad_mask_b, b, j / sb.width, j % sb.width) = m > Acc(0) ? w.sum_mask[j] / m : Acc(0);
}

template <class Acc>
__global__ void match_simple_beta_gradient_kernel(MatchParams p, int64_t nb, int64_t b, SimpleSpace<Acc> w) {
  Acc sum = Acc(0);
  for (int64_t j = 0; j < nb; ++j) sum += w.sum_beta[j];
  static_cast<Acc*>(p.grad_beta.data)[b * p.grad_beta.stride[0]] = sum;
}

// Launches one after the other until one fails; `n` threads each.
class Launcher {
 public:
  explicit Launcher(Stream stream) : stream_(stream) {}
  template <class... P, class... A>
  void operator()(int64_t n, void (*kernel)(P...), A... args) {
    if (!status_.ok()) return;
    const int64_t blocks = ceil_div(n, kThreads);
    if (blocks > INT32_MAX) {
      status_ = {"match: too many pixels for the simple kernels"};
      return;
    }
    status_ = launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(n == 1 ? 1 : kThreads), 0, stream_, args...);
  }
  Status status() const { return status_; }

 private:
  Stream stream_;
  Status status_;
};

template <class T>
Status backward(const MatchParams& p, void* workspace, Stream stream) {
  using Acc = accumulate_t<T>;
  const SimpleSpace<Acc> w(p, workspace);
  const Side sa = side_a(p), sb = side_b(p);
  const int64_t na = p.height_a * p.width_a, nb = p.height_b * p.width_b;
  Launcher run(stream);
  for (int64_t b = 0; b < p.batch; ++b) {
    run(na, &match_simple_norm_kernel<T>, sa, b, w.inv_a);
    run(nb, &match_simple_norm_kernel<T>, sb, b, w.inv_b);
    for (int64_t row = 0; row < na; row += w.rows) {
      const int64_t rows = w.rows < na - row ? w.rows : na - row;
      run(rows * nb, &match_simple_dlogit_kernel<T>, p, sa, sb, b, row, rows, w);
      if (p.grad_fa.data) run(rows * p.channels, &match_simple_grad_a_kernel<T>, p, sa, sb, b, row, rows, w);
      if (p.grad_fb.data) run(nb * p.channels, &match_simple_grad_b_kernel<T>, p, sa, sb, b, row, rows, w);
      run(nb, &match_simple_columns_kernel<Acc>, nb, row, rows, w);
    }
    if (p.grad_fa.data) run(na, &match_simple_feature_gradient_kernel<T>, sa, b, w.inv_a, w.grad_a, p.grad_fa);
    if (p.grad_fb.data) run(nb, &match_simple_feature_gradient_kernel<T>, sb, b, w.inv_b, w.grad_b, p.grad_fb);
    if (p.grad_mask_b.data) run(nb, &match_simple_mask_gradient_kernel<Acc>, p, sb, b, w);
    if (p.grad_beta.data) run(1, &match_simple_beta_gradient_kernel<Acc>, p, nb, b, w);
  }
  return run.status();
}

}  // namespace

size_t simple_backward_bytes(const MatchParams& p) {
  return accumulate_type(p.fa.dtype) == DType::kFloat64 ? SimpleSpace<double>(p, nullptr).bytes
                                                        : SimpleSpace<float>(p, nullptr).bytes;
}

Status simple_forward(const MatchParams& p, Stream stream) {
  const int64_t blocks = p.batch * p.height_a * p.width_a;
  if (blocks > INT32_MAX) return {"match: too many source pixels for the simple kernels"};
  return dispatch_floating(p.fa.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto kernel =
        p.index != nullptr ? &match_simple_forward_kernel<T, true> : &match_simple_forward_kernel<T, false>;
    return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kForwardThreads), 0, stream, p, side_a(p),
                  side_b(p));
  });
}

Status simple_backward(const MatchParams& p, void* workspace, Stream stream) {
  return dispatch_floating(p.fa.dtype,
                           [&](auto tag) { return backward<typename decltype(tag)::type>(p, workspace, stream); });
}

}  // namespace cosegflow::match_cuda

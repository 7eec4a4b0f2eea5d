// transfer, the plainly right kernels on packed rows: no tiles, no shared memory but for one merge, any dtype. They are
// the yardstick of the tiled ones and run where those do not.
//
// states: a block of 128 threads per compact row; a thread takes every 128th target, an inner product by a loop over C,
//   an online softmax in registers; one thread merges the 128 states.
// probability: a thread per (row, target). gradient: a thread per target walks down the rows of one tile: s, D by loops
//   over C and V, P and dS, and the sums over these rows. product: a thread per element of the result.
// Moves Na * Nb * (C + V) values per pass through L2: bound by load throughput, far from any limit by design. No
// atomics: one order of summation.
#include "transfer/transfer_common.cuh"

namespace cosegflow::transfer_cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__device__ __forceinline__ accumulate_t<T> score(const PackedSide<T>& a, const PackedSide<T>& b, int64_t image,
                                                 int64_t i, int64_t j) {
  using Acc = accumulate_t<T>;
  const int64_t at_a = image * a.positions + i, at_b = image * b.positions + j;
  const T* const fa = a.features + at_a * a.padded_channels;
  const T* const fb = b.features + at_b * b.padded_channels;
  Acc dot = Acc(0);
  for (int64_t c = 0; c < a.channels; ++c) dot += to_float(fa[c]) * to_float(fb[c]);
  return dot * a.inv_norm[at_a] * b.inv_norm[at_b];
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    transfer_simple_states_kernel(PackedSide<T> side_a, PackedSide<T> side_b, View1 betas,
                                  OnlineSoftmax<accumulate_t<T>>* partial) {
  using Acc = accumulate_t<T>;
  using States = OnlineSoftmax<Acc>[kThreads];
  CSF_SHARED(States, states);
  const int64_t b = blockIdx.x / side_a.positions, i = blockIdx.x % side_a.positions;
  if (i >= side_a.count[b]) return;
  const Acc beta = static_cast<const Acc*>(betas.data)[b * betas.stride[0]];
  OnlineSoftmax<Acc> state;
  state.clear();
  for (int64_t j = threadIdx.x; j < side_b.count[b]; j += kThreads) {
    const Acc weight = side_b.log_weight[b * side_b.positions + j];
    const Acc logit[1] = {fma_of(beta, score(side_a, side_b, b, i, j), weight)}, zero[1] = {Acc(0)};
    state.add(logit, zero, zero);
  }
  states[threadIdx.x] = state;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int t = 1; t < kThreads; ++t) state.merge(states[t]);
  partial[b * side_a.positions + i] = state;
}

template <class T>
__global__ void __launch_bounds__(kThreads) transfer_simple_probability_kernel(ChunkArgs<T> args) {
  using Acc = accumulate_t<T>;
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t j = e % args.pitch, row = e / args.pitch % args.rows, b = e / args.pitch / args.rows;
  const int64_t i = args.row_begin + row;
  if (b >= args.images || i >= args.a.count[b] || j >= args.b.count[b]) return;
  const Acc beta = static_cast<const Acc*>(args.beta.data)[b * args.beta.stride[0]];
  const int64_t at = b * args.a.positions + i;
  const Acc logit = fma_of(beta, score(args.a, args.b, b, i, j), args.b.log_weight[b * args.b.positions + j]);
  args.probability[e] = exp_of(logit - args.base[at]) * args.extra[at];
}

template <class T>
__global__ void __launch_bounds__(kThreads) transfer_simple_gradient_kernel(ChunkArgs<T> args) {
  using Acc = accumulate_t<T>;
  const int64_t groups = (args.pitch + kThreads - 1) / kThreads;
  const int64_t j = blockIdx.x % groups * kThreads + threadIdx.x;
  const int64_t tile = blockIdx.x / groups % args.row_tiles, b = blockIdx.x / groups / args.row_tiles;
  if (j >= args.b.count[b]) return;
  const Acc beta = static_cast<const Acc*>(args.beta.data)[b * args.beta.stride[0]];
  const Acc weight = args.b.log_weight[b * args.b.positions + j];
  const Acc* const value = args.values + (b * args.b.positions + j) * args.value_channels;
  const int end = min(static_cast<int>(tile + 1) * TileExtent<T>::kRows, args.rows);
  Acc sum_logit = Acc(0), sum_beta = Acc(0);
  for (int row = static_cast<int>(tile) * TileExtent<T>::kRows; row < end; ++row) {
    const int64_t i = args.row_begin + row, at = b * args.a.positions + i;
    if (i >= args.a.count[b]) break;
    const Acc s = score(args.a, args.b, b, i, j);
    const Acc p = exp_of(fma_of(beta, s, weight) - args.base[at]);
    const Acc* const grad = args.grad_out + at * args.value_channels;
    Acc along = Acc(0);
    for (int64_t v = 0; v < args.value_channels; ++v) along += grad[v] * value[v];
    const Acc dlogit = p * (along - args.extra[at]);
    const int64_t to = (b * args.rows + row) * args.pitch + j;
    args.probability[to] = p;
    args.dscore[to] = beta * dlogit;
    sum_logit += dlogit;
    sum_beta += dlogit * s;
  }
  if (args.columns == nullptr) return;
  args.columns[(b * args.row_tiles + tile) * 2 * args.pitch + j] = sum_logit;
  args.columns[((b * args.row_tiles + tile) * 2 + 1) * args.pitch + j] = sum_beta;
}

template <class T, bool kTransposed>
__global__ void __launch_bounds__(kThreads)
    transfer_simple_product_kernel(ProductArgs<T> args, MatrixLhs<accumulate_t<T>> lhs) {
  using Acc = accumulate_t<T>;
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t c = e % args.channels, i = e / args.channels % args.rows, b = e / args.channels / args.rows;
  if (b >= args.batch || i >= live_rows(args.row_count, b, args.row_begin, args.rows)) return;
  const int64_t depth = live_rows(args.depth_count, b, args.depth_begin, args.depth);
  Acc sum = Acc(0);
  for (int64_t k = 0; k < depth; ++k) {
    const int64_t at = b * args.rhs_rows + args.depth_begin + k;
    const Acc scale = args.scale == nullptr ? Acc(1) : args.scale[at];
    sum += (kTransposed ? lhs(b, k, i) : lhs(b, i, k)) * (to_float(args.rhs[at * args.padded_channels + c]) * scale);
  }
  Acc* const out = args.out + (b * args.out_rows + args.row_begin + i) * args.channels + c;
  *out = args.accumulate ? *out + sum : sum;
}

// Blocks for `n` threads.
Status blocks_for(int64_t n, dim3& grid) {
  const int64_t blocks = ceil_div(n, kThreads);
  if (blocks > INT32_MAX) return {"transfer: too many pixels for the simple kernels"};
  grid = dim3(static_cast<unsigned>(blocks));
  return {};
}

}  // namespace

template <class T>
Status simple_states(const PackedSide<T>& a, const PackedSide<T>& b, View1 beta,
                     OnlineSoftmax<accumulate_t<T>>* partial, Stream stream) {
  dim3 grid;
  if (Status s = blocks_for(a.batch * a.positions * kThreads, grid); !s.ok()) return s;
  return launch(&transfer_simple_states_kernel<T>, grid, dim3(kThreads), 0, stream, a, b, beta, partial);
}

template <class T>
Status simple_probability(const ChunkArgs<T>& args, Stream stream) {
  dim3 grid;
  if (Status s = blocks_for(args.images * args.rows * args.pitch, grid); !s.ok()) return s;
  return launch(&transfer_simple_probability_kernel<T>, grid, dim3(kThreads), 0, stream, args);
}

template <class T>
Status simple_gradient(const ChunkArgs<T>& args, Stream stream) {
  dim3 grid;
  if (Status s = blocks_for(round_up(args.pitch, kThreads) * args.row_tiles * args.images, grid); !s.ok()) return s;
  return launch(&transfer_simple_gradient_kernel<T>, grid, dim3(kThreads), 0, stream, args);
}

template <bool kTransposed, class T>
Status simple_product(const ProductArgs<T>& args, const MatrixLhs<accumulate_t<T>>& lhs, Stream stream) {
  dim3 grid;
  if (Status s = blocks_for(args.batch * args.rows * args.channels, grid); !s.ok()) return s;
  return launch(&transfer_simple_product_kernel<T, kTransposed>, grid, dim3(kThreads), 0, stream, args, lhs);
}

#define CSF_SIMPLE_TRANSFER(T)                                                                                      \
  template Status simple_states(const PackedSide<T>&, const PackedSide<T>&, View1, OnlineSoftmax<accumulate_t<T>>*, \
                                Stream);                                                                            \
  template Status simple_probability(const ChunkArgs<T>&, Stream);                                                  \
  template Status simple_gradient(const ChunkArgs<T>&, Stream);                                                     \
  template Status simple_product<false>(const ProductArgs<T>&, const MatrixLhs<accumulate_t<T>>&, Stream);          \
  template Status simple_product<true>(const ProductArgs<T>&, const MatrixLhs<accumulate_t<T>>&, Stream)
CSF_SIMPLE_TRANSFER(Half);
CSF_SIMPLE_TRANSFER(BFloat16);
CSF_SIMPLE_TRANSFER(float);
CSF_SIMPLE_TRANSFER(double);
#undef CSF_SIMPLE_TRANSFER

}  // namespace cosegflow::transfer_cuda

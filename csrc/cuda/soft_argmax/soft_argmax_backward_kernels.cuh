// soft_argmax backward: one read and one write of the volume, and two reductions of it that stay on chip.
//
// Fast: a block of 128 threads owns a run of targets (16 bytes a thread) and a chunk of source positions, over which it
//   walks row by row. A thread keeps its targets: their coordinates, log weights and the sums over rows for the
//   gradient of the mask are in registers for the whole chunk, as is its share of the gradient of beta. What belongs to
//   a row (32 rows at a time) is computed once into shared memory and broadcast from there.
//   The sums over rows go to a workspace, one line per chunk, and are added up in a fixed order by a second kernel:
//   bit-equal from run to run, no atomics. A 16-byte word without an allowed target is written but not read.
//   Must move: 2 * B * M * N elements; ~12 instructions an element: bound by memory.
//   Fraction of the bandwidth reached: not measured yet.
// Simple: one thread owns one source position (gradient of the volume and of beta), another one target (of the mask).
#pragma once

#include "soft_argmax/soft_argmax_common.cuh"

namespace cosegflow::soft_argmax_cuda {

constexpr int kBackwardThreads = 128;
constexpr int kRowsAtOnce = 32;

// Where a block or thread leaves its sums; null where that gradient is not wanted.
template <class Acc>
struct BackwardSums {
  Acc* mask;               // (B, chunks, N): d(loss)/d(log m), summed over the rows of a chunk
  Acc* beta;               // (B, beta_parts)
  int64_t chunks;          // of source positions
  int64_t rows_per_chunk;  // a multiple of kRowsAtOnce
  int64_t beta_parts;
};

template <class T, bool kAligned, bool kWindowed>
__global__ void __launch_bounds__(kBackwardThreads, kWindowed ? 3 : 0)
    soft_argmax_backward_kernel(SoftArgmaxParams p, const accumulate_t<T>* log_weight,
                                BackwardSums<accumulate_t<T>> sums) {
  using Acc = accumulate_t<T>;
  using D = Deal<T, kBackwardThreads, kAligned>;
  using Rows = BackwardRow<Acc>[kRowsAtOnce];
  CSF_SHARED(Rows, rows);
  const int64_t m = p.height_a * p.width_a, n = p.height_b * p.width_b;
  const int64_t runs = (n + D::kRun - 1) / D::kRun;
  const int64_t run = blockIdx.x % runs, chunk = blockIdx.x / runs % sums.chunks, b = blockIdx.x / runs / sums.chunks;
  const Acc beta = beta_of<Acc>(p, b);

  const int64_t first = run * D::kRun + static_cast<int64_t>(threadIdx.x) * D::kFirst;
  Acc x[D::kItems], y[D::kItems], weight[D::kItems], sum[D::kItems];
  bool exists = false, allowed = false;
#pragma unroll
  for (int u = 0; u < D::kItems; ++u) {
    const int64_t j = first + u * D::kBetween;
    x[u] = static_cast<Acc>(j % p.width_b), y[u] = static_cast<Acc>(j / p.width_b);
    weight[u] = j >= n ? minus_infinity<Acc>() : (log_weight == nullptr ? Acc(0) : log_weight[b * n + j]);
    sum[u] = Acc(0);
    exists |= j < n;
    allowed |= weight[u] != minus_infinity<Acc>();
  }
  Acc sum_beta = Acc(0);

  const int64_t begin = chunk * sums.rows_per_chunk;
  const int64_t end = begin + sums.rows_per_chunk < m ? begin + sums.rows_per_chunk : m;
  for (int64_t i0 = begin; i0 < end; i0 += kRowsAtOnce) {
    const int live = static_cast<int>(end - i0 < kRowsAtOnce ? end - i0 : kRowsAtOnce);
    __syncthreads();  // the rows of the previous round have been read
    if (static_cast<int>(threadIdx.x) < live) rows[threadIdx.x] = load_row<Acc>(p, b, i0 + threadIdx.x);
    __syncthreads();
    if (!exists) continue;
    for (int r = 0; r < live; ++r) {
      const BackwardRow<Acc> row = rows[r];
      const int64_t at = (b * m + i0 + r) * n + first;
      T value[D::kItems] = {};
      if (allowed && !row.excluded()) {
        const T* scores = static_cast<const T*>(p.corr) + at;
        if constexpr (kAligned) {
          load_vector(value, scores);
        } else {
#pragma unroll
          for (int u = 0; u < D::kItems; ++u) {
            if (weight[u] != minus_infinity<Acc>()) value[u] = scores[u * D::kBetween];
          }
        }
#pragma unroll
        for (int u = 0; u < D::kItems; ++u) {
          Acc s = to_float(value[u]), slope = beta;
          if constexpr (kWindowed) {
            const Acc k = row.window.gaussian(x[u], y[u]);
            slope *= row.window.slope(s, k);
            s = row.window.value(s, k);
          }
          const bool excluded = weight[u] == minus_infinity<Acc>();  // select: an excluded score may be NaN
          const Acc grad = excluded ? Acc(0) : row.grad_logit(fma_of(beta, s, weight[u]), x[u], y[u]);
          sum[u] += grad;
          sum_beta += excluded ? Acc(0) : grad * s;
          value[u] = excluded ? T{} : from_float<T>(slope * grad);
        }
      }
      if (p.grad_corr == nullptr) continue;
      T* grad_corr = static_cast<T*>(p.grad_corr) + at;
      if constexpr (kAligned) {
        store_vector(grad_corr, value);
      } else {
#pragma unroll
        for (int u = 0; u < D::kItems; ++u) {
          if (first + u * D::kBetween < n) grad_corr[u * D::kBetween] = value[u];
        }
      }
    }
  }

  if (sums.mask != nullptr) {
    Acc* line = sums.mask + (b * sums.chunks + chunk) * n + first;
#pragma unroll
    for (int u = 0; u < D::kItems; ++u) {
      if (first + u * D::kBetween < n) line[u * D::kBetween] = sum[u];
    }
  }
  if (sums.beta != nullptr) {
    sum_beta = block_reduce_sum(sum_beta);
    if (threadIdx.x == 0) sums.beta[b * sums.beta_parts + chunk * runs + run] = sum_beta;
  }
}

template <class T>
__global__ void __launch_bounds__(256)
    soft_argmax_backward_simple_kernel(SoftArgmaxParams p, const accumulate_t<T>* log_weight,
                                       BackwardSums<accumulate_t<T>> sums) {
  using Acc = accumulate_t<T>;
  const int64_t m = p.height_a * p.width_a, n = p.height_b * p.width_b;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at >= p.batch * m) return;
  const int64_t b = at / m, i = at % m;
  const Acc beta = beta_of<Acc>(p, b);
  const BackwardRow<Acc> row = load_row<Acc>(p, b, i);
  double sum_beta = 0;  // one long sum: float would lose digits
  for (int64_t j = 0; j < n; ++j) {
    const Acc weight = log_weight == nullptr ? Acc(0) : log_weight[b * n + j];
    T value{};
    if (!row.excluded() && weight != minus_infinity<Acc>()) {
      const Acc x = static_cast<Acc>(j % p.width_b), y = static_cast<Acc>(j / p.width_b);
      Acc s = to_float(static_cast<const T*>(p.corr)[at * n + j]), slope = beta;
      if (p.kernel_sigma > 0) {
        const Acc k = row.window.gaussian(x, y);
        slope *= row.window.slope(s, k);
        s = row.window.value(s, k);
      }
      const Acc grad = row.grad_logit(fma_of(beta, s, weight), x, y);
      sum_beta += static_cast<double>(grad) * static_cast<double>(s);
      value = from_float<T>(slope * grad);
    }
    if (p.grad_corr != nullptr) static_cast<T*>(p.grad_corr)[at * n + j] = value;
  }
  if (sums.beta != nullptr) sums.beta[b * sums.beta_parts + i] = static_cast<Acc>(sum_beta);
}

template <class T>
__global__ void __launch_bounds__(256)
    soft_argmax_mask_simple_kernel(SoftArgmaxParams p, const accumulate_t<T>* log_weight,
                                   BackwardSums<accumulate_t<T>> sums) {
  using Acc = accumulate_t<T>;
  const int64_t m = p.height_a * p.width_a, n = p.height_b * p.width_b;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at >= p.batch * n) return;
  const int64_t b = at / n, j = at % n;
  const Acc weight = log_weight[at], beta = beta_of<Acc>(p, b);
  Acc sum = Acc(0);
  if (weight != minus_infinity<Acc>()) {
    for (int64_t i = 0; i < m; ++i) {
      const BackwardRow<Acc> row = load_row<Acc>(p, b, i);
      if (row.excluded()) continue;
      const Acc x = static_cast<Acc>(j % p.width_b), y = static_cast<Acc>(j / p.width_b);
      Acc s = to_float(static_cast<const T*>(p.corr)[(b * m + i) * n + j]);
      if (p.kernel_sigma > 0) s = row.window.value(s, row.window.gaussian(x, y));
      sum += row.grad_logit(fma_of(beta, s, weight), x, y);
    }
  }
  sums.mask[at] = sum;
}

// grad_mask_b: the sums of all chunks, and d(log m)/dm = 1/m. One thread per target.
template <class Acc>
__global__ void __launch_bounds__(256) soft_argmax_mask_gradient_kernel(SoftArgmaxParams p, BackwardSums<Acc> sums) {
  const int64_t n = p.height_b * p.width_b, at = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (at >= p.batch * n) return;
  const int64_t b = at / n, j = at % n;
  Acc sum = Acc(0);
  for (int64_t chunk = 0; chunk < sums.chunks; ++chunk) sum += sums.mask[(b * sums.chunks + chunk) * n + j];
  const Acc weight = mask_weight<Acc>(p.mask_b, b, j / p.width_b, j % p.width_b).weight;
  static_cast<Acc*>(p.grad_mask_b.data)[at] = weight > Acc(0) ? sum / weight : Acc(0);
}

// grad_beta: one block per image adds its parts up.
template <class Acc>
__global__ void __launch_bounds__(256) soft_argmax_beta_gradient_kernel(SoftArgmaxParams p, BackwardSums<Acc> sums) {
  const int64_t b = blockIdx.x;
  Acc sum = Acc(0);
  for (int64_t k = threadIdx.x; k < sums.beta_parts; k += 256) sum += sums.beta[b * sums.beta_parts + k];
  sum = block_reduce_sum(sum);
  if (threadIdx.x == 0) static_cast<Acc*>(p.grad_beta.data)[b] = sum;
}

}  // namespace cosegflow::soft_argmax_cuda

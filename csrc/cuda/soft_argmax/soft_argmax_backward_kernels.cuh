// soft_argmax backward: one read and one write of the volume, and two reductions of it that stay on chip.
//
// Fast: a block of up to 128 threads owns a run of targets (16 bytes a thread) and a chunk of source positions, over
//   which it walks row by row. A thread keeps its targets: their places, log weights and the sums over rows for the
//   gradient of the mask are in registers for the whole chunk, as is its share of the gradient of beta. What belongs to
//   a row (32 rows at a time) is computed once into shared memory and broadcast from there: the factor of the gradients
//   takes in what rounding lse took, so that a probability is one multiply-add and one ex2. A thread loads the scores
//   of 4 rows before it uses them. A word without an allowed target is written but not read; of others the bits of
//   excluded scores (which may be NaN) are cleared before, and those of their gradients after. The sums over rows go to
//   a workspace, one line per chunk, and are added up in a fixed order by a second kernel: bit-equal from run to run,
//   no atomics. Registers: 64, with a window 72, with a mask 96 at most; shared memory: 2 KB. In flight on a
//   multiprocessor: 28 to 32 warps x 2 KB, with a mask 20 x 2 KB. Must move: 2 * B * M * N elements. Instructions an
//   element, counted in the SASS for sm_90a (loop; and about 0.8 before it):
//                         rows of b: a multiple of 8 targets (float32: 4)   any   not whole words
//     bfloat16, float16              12.3, masked 14.6                       17    33
//     float32                        13.5, masked 17.8                       20    27
//     bfloat16 with a window         21.3, masked 23.6                       29    47
//     float32 with a window          23.4, masked 27.9                       32    39
//   An H200 can issue 33 per bfloat16, 66 per float32, at 0.85 of its copy bandwidth. Prediction, not measured: bound
//   by memory, at 0.85 to 0.9 of a copy.
// Simple: one thread owns one source position (gradient of the volume and of beta), another one target (of the mask).
#pragma once

#include "soft_argmax/soft_argmax_common.cuh"
#include "soft_argmax/soft_argmax_pack.cuh"
#include "soft_argmax/soft_argmax_softmax.cuh"

namespace cosegflow::soft_argmax_cuda {

constexpr int kMostBackwardThreads = 128;
constexpr int kRowsAtOnce = 32;   // of which a block has the numbers in shared memory
constexpr int kRowsInFlight = 4;  // of which a thread loads the scores before it uses them

// How the volume is dealt out, and where a block or thread leaves its sums; null where that gradient is not wanted.
template <class Acc>
struct BackwardSums {
  Acc* mask;   // (B, chunks, N): d(loss)/d(log m), summed over the rows of a chunk
  Acc* beta;   // (B, beta_parts)
  int chunks;  // of source positions
  int rows_per_chunk;
  int64_t beta_parts;
  int sources, targets;
  Divisor width_a, width_b;
  Acc window_exponent;  // with a window
};

// How a thread's targets lie: neighbours in one image row of b, read as one 16-byte word; neighbours in any; or four
// that are as far apart as the block has threads.
enum class Deal { kLine, kWord, kSingle };

// A row (BackwardRow) as the fast kernel wants it: probabilities are factor * 2^(k logit - base), with the factor in
// the gradients.
template <class Acc>
struct alignas(16) BackwardLine {
  typename PlaceSoftmax<Acc>::Base base;
  Acc expected_x, expected_y, grad_x, grad_y, grad_lse;
  Acc included;  // 0: an excluded row
  Acc centre_x, centre_y;
};

// Of row i of image b. Incoming gradients of an excluded row are not read: they may be NaN.
template <class Acc, bool kWindowed>
__device__ __forceinline__ BackwardLine<Acc> load_line(const SoftArgmaxParams& p, const BackwardSums<Acc>& sums, int b,
                                                       int i) {
  const int64_t at = static_cast<int64_t>(b) * sums.sources + i;
  BackwardLine<Acc> line{};
  const Acc lse = static_cast<const Acc*>(p.lse.data)[at];
  if (lse == minus_infinity<Acc>()) return line;
  const int y = sums.width_a.quotient(i), x = i - y * sums.width_a.divisor;
  line.base = PlaceSoftmax<Acc>::Base::of(lse);
  line.included = Acc(1);
  const Acc* flow = static_cast<const Acc*>(p.flow.data) + at + static_cast<int64_t>(b) * sums.sources;
  line.expected_x = flow[0] + static_cast<Acc>(x), line.expected_y = flow[sums.sources] + static_cast<Acc>(y);
  const View4& gf = p.grad_flow;
  const View3& gl = p.grad_lse;
  const int64_t of_flow = b * gf.stride[0] + y * gf.stride[2] + x * gf.stride[3];
  const Acc factor = PlaceSoftmax<Acc>::remainder(line.base, lse);
  line.grad_x = factor * gradient_or_zero<Acc>(gf.data, of_flow);
  line.grad_y = factor * gradient_or_zero<Acc>(gf.data, of_flow + gf.stride[1]);
  line.grad_lse = factor * gradient_or_zero<Acc>(gl.data, b * gl.stride[0] + y * gl.stride[1] + x * gl.stride[2]);
  if constexpr (kWindowed) {
    const int64_t index = p.index[at];  // -1: a row of NaN, which stays one
    const bool there = index >= 0 && index < p.height_b * p.width_b;
    const int centre = there ? static_cast<int>(index) : 0, centre_line = sums.width_b.quotient(centre);
    line.centre_x = static_cast<Acc>(centre - centre_line * sums.width_b.divisor);
    line.centre_y = static_cast<Acc>(centre_line);
  }
  return line;
}

// The targets of a thread: their places, log weights and sums over rows.
template <class T, Deal kDeal, bool kMasked>
struct BackwardTargets {
  using Acc = accumulate_t<T>;
  static constexpr bool kPacked = kDeal != Deal::kSingle;
  static constexpr int kItems = kPacked ? Pack<T>::kItems : 4;
  static constexpr int kPlaces = kDeal == Deal::kLine ? 1 : kItems;  // of which x and y are kept

  Acc x[kPlaces], y[kPlaces];
  Acc weight[kMasked ? kItems : 1], sum[kMasked ? kItems : 1];
  uint4 keep;  // kPacked: the bits of the scores of allowed targets
  bool exists, allowed;

  // From target `first` on, `between` apart.
  __device__ __forceinline__ void load(const Acc* log_weight, int n, const Divisor& width_b, int first, int between) {
    const int width = width_b.divisor, step_line = width_b.quotient(between), first_line = width_b.quotient(first);
    const Acc step_x = static_cast<Acc>(between - step_line * width), step_y = static_cast<Acc>(step_line);
    Acc at_x = static_cast<Acc>(first - first_line * width), at_y = static_cast<Acc>(first_line);
    exists = allowed = first < n;
    if constexpr (kDeal == Deal::kLine) x[0] = at_x, y[0] = at_y;
    if constexpr (kMasked) {
      T bits[kPacked ? kItems : 1] = {};
      exists = allowed = false;
#pragma unroll
      for (int u = 0; u < kItems; ++u) {
        const int j = first + u * between;
        if constexpr (kDeal != Deal::kLine) {
          x[u] = at_x, y[u] = at_y;
          at_x += step_x, at_y += step_y;
          if (at_x >= static_cast<Acc>(width)) at_x -= static_cast<Acc>(width), at_y += Acc(1);
        }
        weight[u] = j >= n ? minus_infinity<Acc>() : (log_weight == nullptr ? Acc(0) : log_weight[j]);
        sum[u] = Acc(0);
        exists |= j < n;
        allowed |= keeps(u);
        if (kPacked && keeps(u)) memset(&bits[u], 0xff, sizeof(T));
      }
      if constexpr (kPacked) memcpy(&keep, bits, 16);
    }
  }
  __device__ __forceinline__ bool keeps(int u) const { return !kMasked || weight[u] > minus_infinity<Acc>(); }
  // Zeros for the scores of excluded targets, which may be NaN.
  __device__ __forceinline__ void clear_excluded(uint4& words) const {
    if constexpr (kMasked) words.x &= keep.x, words.y &= keep.y, words.z &= keep.z, words.w &= keep.w;
  }
  __device__ __forceinline__ Acc logit(Acc slope, Acc s, int u) const {
    if constexpr (kMasked) return fma_of(slope, s, weight[u]);
    return slope * s;
  }
};

// Blocks of 128 threads on a multiprocessor: as many as there are registers for.
constexpr int backward_blocks(int bytes, bool line, bool masked, bool windowed) {
  return bytes == 8 ? 3 : !line ? 4 : masked ? 5 : windowed ? 7 : 8;
}

template <class T, Deal kDeal, bool kMasked, bool kWindowed>
__global__ void __launch_bounds__(kMostBackwardThreads,
                                  backward_blocks(sizeof(T), kDeal == Deal::kLine, kMasked, kWindowed))
    soft_argmax_backward_kernel(SoftArgmaxParams p, const accumulate_t<T>* log_weight,
                                BackwardSums<accumulate_t<T>> sums) {
  using Acc = accumulate_t<T>;
  using Mine = BackwardTargets<T, kDeal, kMasked>;
  using Lines = BackwardLine<Acc>[kRowsAtOnce];
  constexpr int kItems = Mine::kItems;
  CSF_SHARED(Lines, lines);
  const int n = sums.targets;
  const int between = Mine::kPacked ? 1 : static_cast<int>(blockDim.x);
  const int length = static_cast<int>(blockDim.x) * kItems;
  const unsigned runs = static_cast<unsigned>((n - 1) / length + 1), chunks = static_cast<unsigned>(sums.chunks);
  const int run = static_cast<int>(blockIdx.x % runs), chunk = static_cast<int>(blockIdx.x / runs % chunks);
  const int b = static_cast<int>(blockIdx.x / runs / chunks);
  const int first = run * length + static_cast<int>(threadIdx.x) * (Mine::kPacked ? kItems : 1);
  const Acc beta = beta_of<Acc>(p, b);
  Mine mine;
  mine.load(log_weight == nullptr ? nullptr : log_weight + static_cast<int64_t>(b) * n, n, sums.width_b, first,
            between);
  Acc sum_beta = Acc(0);

  const int begin = chunk * sums.rows_per_chunk;
  const int rows = sums.sources - begin < sums.rows_per_chunk ? sums.sources - begin : sums.rows_per_chunk;
  const int64_t offset = (static_cast<int64_t>(b) * sums.sources + begin) * n + first;
  const T* scores = static_cast<const T*>(p.corr) + offset;
  T* grad_corr = p.grad_corr == nullptr ? nullptr : static_cast<T*>(p.grad_corr) + offset;
  for (int done = 0; done < rows; done += kRowsAtOnce) {
    const int live = rows - done < kRowsAtOnce ? rows - done : kRowsAtOnce;
    __syncthreads();  // the rows of the previous round have been read
    if (static_cast<int>(threadIdx.x) < live) {
      lines[threadIdx.x] = load_line<Acc, kWindowed>(p, sums, b, begin + done + static_cast<int>(threadIdx.x));
    }
    __syncthreads();
    if (!mine.exists) continue;
    for (int r0 = 0; r0 < live; r0 += kRowsInFlight) {
      T value[kRowsInFlight][kItems];
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r, scores += n) {
        if constexpr (Mine::kPacked) {
          uint4 words{0, 0, 0, 0};
          if (mine.allowed && r0 + r < live) words = __ldcs(reinterpret_cast<const uint4*>(scores));
          memcpy(value[r], &words, 16);
        } else {
#pragma unroll
          for (int u = 0; u < kItems; ++u) {
            value[r][u] = T{};
            if (mine.keeps(u) && r0 + r < live) value[r][u] = scores[u * between];
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kRowsInFlight; ++r) {
        if (r0 + r >= live) break;
        const BackwardLine<Acc> line = lines[r0 + r];
        Acc s[kItems], out[kItems];
        Pack<T> pack;
        if constexpr (Mine::kPacked) {
          memcpy(&pack.words, value[r], 16);
          mine.clear_excluded(pack.words);
          kWindowed ? pack.unpack_clipped(s) : pack.unpack(s);
        } else {
#pragma unroll
          for (int u = 0; u < kItems; ++u) {
            s[u] = to_float(value[r][u]);
            if (kWindowed && s[u] <= Acc(0)) s[u] = Acc(0);
          }
        }
        if (mine.allowed && line.included != Acc(0)) {
          // d(loss)/d(logit) / p, at target u
          const auto pull = [&](Acc x, Acc y) {
            return fma_of(line.grad_x, x - line.expected_x, fma_of(line.grad_y, y - line.expected_y, line.grad_lse));
          };
          const Acc pull_0 = kDeal == Deal::kLine ? pull(mine.x[0], mine.y[0]) : Acc(0);
#pragma unroll
          for (int u = 0; u < kItems; ++u) {
            constexpr bool kLine = kDeal == Deal::kLine;
            const Acc along = static_cast<Acc>(u);
            Acc slope = beta;
            const bool flat = kWindowed && s[u] <= Acc(0);
            if constexpr (kWindowed) {
              const Acc dx = kLine ? (mine.x[0] - line.centre_x) + along : mine.x[kLine ? 0 : u] - line.centre_x;
              const Acc dy = mine.y[kLine ? 0 : u] - line.centre_y;
              const Acc k = window_value(sums.window_exponent, dx * dx, dy * dy);
              s[u] *= k, slope *= k;
            }
            const Acc grad = line.base.term(mine.logit(beta, s[u], u)) *
                             (kLine ? (u == 0 ? pull_0 : fma_of(along, line.grad_x, pull_0))
                                    : pull(mine.x[kLine ? 0 : u], mine.y[kLine ? 0 : u]));
            if constexpr (kMasked) mine.sum[u] += grad;
            sum_beta = fma_of(grad, s[u], sum_beta);
            out[u] = flat ? Acc(0) : slope * grad;
          }
        } else {
#pragma unroll
          for (int u = 0; u < kItems; ++u) out[u] = Acc(0);
        }
        if (grad_corr == nullptr) continue;
        if constexpr (Mine::kPacked) {
          pack.pack(out);
          mine.clear_excluded(pack.words);
          __stcs(reinterpret_cast<uint4*>(grad_corr), pack.words);
        } else {
#pragma unroll
          for (int u = 0; u < kItems; ++u) {
            if (first + u * between < n) grad_corr[u * between] = mine.keeps(u) ? from_float<T>(out[u]) : T{};
          }
        }
        grad_corr += n;
      }
    }
  }

  if (kMasked && sums.mask != nullptr) {
    Acc* line = sums.mask + (static_cast<int64_t>(b) * sums.chunks + chunk) * n + first;
#pragma unroll
    for (int u = 0; u < kItems; ++u) {
      if (first + u * between < n) line[u * between] = mine.sum[u];
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
  const Acc* line = sums.mask + b * sums.chunks * n + j;
#pragma unroll 8
  for (int chunk = 0; chunk < sums.chunks; ++chunk, line += n) sum += *line;
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

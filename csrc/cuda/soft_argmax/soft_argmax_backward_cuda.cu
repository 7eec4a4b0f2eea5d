// soft_argmax backward on CUDA: workspace, dispatch and launches. The kernels are in soft_argmax_backward_kernels.cuh.
#include <algorithm>

#include "soft_argmax/soft_argmax_backward_kernels.cuh"

namespace cosegflow {
namespace {

using namespace soft_argmax_cuda;

constexpr int64_t kEnoughBlocks = 512;  // of an image

// Whether the fast kernels are taken: what they count within an image fits an int, also a run past its end. (Else 2^31
// positions meet in each row or column of the volume, which no GPU holds unless the other is tiny.)
bool is_fast(const SoftArgmaxParams& p) {
  return !p.simple && sources(p) <= INT32_MAX && targets(p) <= INT32_MAX - 4096;
}

bool aligned(const SoftArgmaxParams& p) {
  const int64_t row_bytes = targets(p) * element_size(p.dtype);
  return aligned_rows(p.corr, row_bytes) && aligned_rows(p.grad_corr, row_bytes);
}

// Targets of a thread: 16 bytes where rows are whole words, else 4 elements.
int64_t thread_items(const SoftArgmaxParams& p, bool words) { return words ? 16 / element_size(p.dtype) : 4; }
int64_t block_threads(const SoftArgmaxParams& p, bool words) {
  const int64_t needed = ceil_div(targets(p), thread_items(p, words));
  return std::min<int64_t>(kMostBackwardThreads, ceil_div(needed, 32) * 32);
}
int64_t run_length(const SoftArgmaxParams& p, bool words) { return block_threads(p, words) * thread_items(p, words); }

template <class Acc>
struct Workspace {
  Acc* log_weight;
  BackwardSums<Acc> sums{};
  size_t bytes;
  Workspace(const SoftArgmaxParams& p, void* base) {
    Arena arena(base);
    const int64_t m = sources(p), n = targets(p);
    const bool fast = is_fast(p);
    int64_t chunks = 1;
    if (fast) {
      // Of 8 to 32 rows, as many as leave blocks enough; but at most 256 chunks, so that the sums of the mask stay
      // small beside the volume. Of the sizes of an image alone: sums do not depend on the batch.
      int64_t rows = 8;
      while (rows < kRowsAtOnce && ceil_div(n, run_length(p, true)) * ceil_div(m, rows) > kEnoughBlocks) rows *= 2;
      rows = std::max(rows, ceil_div(m, 256));
      if (rows > kRowsAtOnce) rows = ceil_div(rows, kRowsAtOnce) * kRowsAtOnce;
      chunks = ceil_div(m, rows);
      sums.rows_per_chunk = static_cast<int>(rows);
      sums.sources = static_cast<int>(m), sums.targets = static_cast<int>(n);
      sums.width_a = Divisor(static_cast<int>(p.width_a)), sums.width_b = Divisor(static_cast<int>(p.width_b));
      if (p.kernel_sigma > 0) sums.window_exponent = window_exponent<Acc>(p.kernel_sigma);
    }
    sums.chunks = static_cast<int>(chunks);
    sums.beta_parts = fast ? chunks * ceil_div(n, run_length(p, aligned(p))) : m;
    log_weight = p.mask_b.data == nullptr ? nullptr : arena.take<Acc>(p.batch * n);
    sums.mask = p.grad_mask_b.data != nullptr ? arena.take<Acc>(p.batch * chunks * n) : nullptr;
    // Sized for either way of dealing out targets: the size must not depend on how pointers are aligned.
    const int64_t most_parts = fast ? chunks * ceil_div(n, std::min(run_length(p, true), run_length(p, false))) : m;
    sums.beta = p.grad_beta.data != nullptr ? arena.take<Acc>(p.batch * most_parts) : nullptr;
    bytes = arena.bytes();
  }
};

template <class T>
Status launch_fast(const SoftArgmaxParams& p, const Workspace<accumulate_t<T>>& w, Stream stream) {
  const bool words = aligned(p);
  const auto launch_deal = [&](auto kernel, auto windowed_kernel) {
    dim3 grid;
    const int64_t runs = ceil_div(targets(p), run_length(p, words));
    if (Status s = grid_of(p.batch * w.sums.chunks * runs, grid); !s.ok()) return s;
    const dim3 block(static_cast<unsigned>(block_threads(p, words)));
    return launch(p.kernel_sigma > 0 ? windowed_kernel : kernel, grid, block, 0, stream, p, w.log_weight, w.sums);
  };
  if (!words) {
    return launch_deal(&soft_argmax_backward_kernel<T, Deal::kSingle, true, false>,
                       &soft_argmax_backward_kernel<T, Deal::kSingle, true, true>);
  }
  if constexpr (sizeof(T) < 8) {  // float64 always takes the general one
    if (p.width_b % Pack<T>::kItems == 0) {
      return w.log_weight == nullptr ? launch_deal(&soft_argmax_backward_kernel<T, Deal::kLine, false, false>,
                                                   &soft_argmax_backward_kernel<T, Deal::kLine, false, true>)
                                     : launch_deal(&soft_argmax_backward_kernel<T, Deal::kLine, true, false>,
                                                   &soft_argmax_backward_kernel<T, Deal::kLine, true, true>);
    }
  }
  return launch_deal(&soft_argmax_backward_kernel<T, Deal::kWord, true, false>,
                     &soft_argmax_backward_kernel<T, Deal::kWord, true, true>);
}

template <class T>
Status launch_simple(const SoftArgmaxParams& p, const Workspace<accumulate_t<T>>& w, Stream stream) {
  dim3 grid;
  if (w.sums.mask != nullptr) {
    if (Status s = grid_of(ceil_div(p.batch * targets(p), 256), grid); !s.ok()) return s;
    const Status s = launch(&soft_argmax_mask_simple_kernel<T>, grid, dim3(256), 0, stream, p, w.log_weight, w.sums);
    if (!s.ok()) return s;
  }
  if (Status s = grid_of(ceil_div(p.batch * sources(p), 256), grid); !s.ok()) return s;
  return launch(&soft_argmax_backward_simple_kernel<T>, grid, dim3(256), 0, stream, p, w.log_weight, w.sums);
}

template <class T>
Status backward(const SoftArgmaxParams& p, void* base, Stream stream) {
  using Acc = accumulate_t<T>;
  const Workspace<Acc> w(p, base);
  dim3 grid;
  if (w.log_weight != nullptr) {
    if (Status s = launch_weights(p, w.log_weight, stream); !s.ok()) return s;
  }
  if (Status s = is_fast(p) ? launch_fast<T>(p, w, stream) : launch_simple<T>(p, w, stream); !s.ok()) return s;
  if (w.sums.mask != nullptr) {
    if (Status s = grid_of(ceil_div(p.batch * targets(p), 256), grid); !s.ok()) return s;
    const Status s = launch(&soft_argmax_mask_gradient_kernel<Acc>, grid, dim3(256), 0, stream, p, w.sums);
    if (!s.ok()) return s;
  }
  if (w.sums.beta == nullptr) return {};
  if (Status s = grid_of(p.batch, grid); !s.ok()) return s;
  return launch(&soft_argmax_beta_gradient_kernel<Acc>, grid, dim3(256), 0, stream, p, w.sums);
}

}  // namespace

size_t soft_argmax_backward_workspace_bytes_cuda(const SoftArgmaxParams& p) {
  if (!check_sizes(p).ok() || p.batch == 0) return 0;
  return p.dtype == DType::kFloat64 ? Workspace<double>(p, nullptr).bytes : Workspace<float>(p, nullptr).bytes;
}

Status soft_argmax_backward_cuda(const SoftArgmaxParams& p, void* workspace, Stream stream) {
  if (Status s = check_backward(p); !s.ok() || p.batch == 0) return s;
  if (Status s = check_workspace(workspace, soft_argmax_backward_workspace_bytes_cuda(p)); !s.ok()) return s;
  if (p.grad_corr == nullptr && p.grad_mask_b.data == nullptr && p.grad_beta.data == nullptr) return {};
  log_kernels(p, "soft_argmax backward");
  return dispatch_floating(p.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    return backward<T>(p, workspace, stream);
  });
}

}  // namespace cosegflow

// What forward and backward of local_correlation share: the sides with their norms, and launches over flat grids.
#pragma once

#include "common/arena.h"
#include "common/local_correlation_checks.h"
#include "entry_checks.cuh"
#include "local_correlation/local_correlation_simple_kernels.cuh"

namespace cosegflow::local_correlation_cuda {

// Both sides; the norms are in the workspace.
template <class T>
struct Sides {
  using Acc = accumulate_t<T>;
  Side<T> a, b;
  Acc *norm_a = nullptr, *norm_b = nullptr;

  Sides(const LocalCorrelationParams& p, Arena& arena) {
    if (p.normalize) {
      norm_a = arena.take<Acc>(p.batch * p.height_a * p.width_a);
      norm_b = arena.take<Acc>(p.batch * p.height_b * p.width_b);
    }
    a = {p.fa, p.channels, static_cast<int>(p.height_a), static_cast<int>(p.width_a), norm_a};
    b = {p.fb, p.channels, static_cast<int>(p.height_b), static_cast<int>(p.width_b), norm_b};
  }
};

// One thread per item.
template <int kBlock = kThreads, class... P, class... A>
Status launch_flat(void (*kernel)(P...), int64_t items, Stream stream, A... args) {
  const int64_t blocks = (items + kBlock - 1) / kBlock;
  if (blocks > INT32_MAX) return {"local_correlation: the tensors are too large for one launch"};
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), 0, stream, args...);
}

template <class T>
Status compute_norms(const LocalCorrelationParams& p, const Sides<T>& s, Stream stream) {
  if (!p.normalize) return {};
  if (Status status =
          launch_flat(&local_correlation_norm_kernel<T>, p.batch * s.a.positions(), stream, p.batch, s.a, s.norm_a);
      !status.ok()) {
    return status;
  }
  return launch_flat(&local_correlation_norm_kernel<T>, p.batch * s.b.positions(), stream, p.batch, s.b, s.norm_b);
}

inline Status check_pixels(const LocalCorrelationParams& p) {
  if (p.height_a * p.width_a > INT32_MAX || p.height_b * p.width_b > INT32_MAX) {
    return {"local_correlation: an image has more than 2^31 pixels"};
  }
  return {};
}

}  // namespace cosegflow::local_correlation_cuda

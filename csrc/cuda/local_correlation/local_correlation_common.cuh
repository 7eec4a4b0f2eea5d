// What the launches of local_correlation share: the sides with their norms, and the last step of the backward.
#pragma once

#include "local_correlation/local_correlation_launch.cuh"
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

template <class T>
Status compute_norms(const LocalCorrelationParams& p, const Sides<T>& s, Stream stream) {
  if (!p.normalize) return {};
  if (Status status = launch_flat<kThreads>(&local_correlation_norm_kernel<T>, p.batch * s.a.positions(), stream,
                                            p.batch, s.a, s.norm_a);
      !status.ok()) {
    return status;
  }
  return launch_flat<kThreads>(&local_correlation_norm_kernel<T>, p.batch * s.b.positions(), stream, p.batch, s.b,
                               s.norm_b);
}

// result (B, C, H, W) of the caller's type, from the gradient to the (normalized) features of `side`.
template <class T>
Status finish_gradient(const LocalCorrelationParams& p, const Side<T>& side, const accumulate_t<T>* gradient,
                       const View4& result, Stream stream) {
  return launch_flat<kThreads>(&local_correlation_finish_kernel<T>, p.batch * side.positions(), stream, p.batch, side,
                               gradient, static_cast<T*>(result.data));
}

}  // namespace cosegflow::local_correlation_cuda

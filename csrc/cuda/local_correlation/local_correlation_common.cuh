// What the launches of local_correlation share: the sides with their norms, and the last step of the backward.
#pragma once

#include "common/round_up.h"
#include "local_correlation/local_correlation_launch.cuh"
#include "local_correlation/local_correlation_norm_kernels.cuh"

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

// Blocks of 32 pixels of all images; 0 where there are too many.
template <class T>
unsigned norm_blocks(const LocalCorrelationParams& p, const Side<T>& side) {
  const int64_t blocks = p.batch * ceil_div(side.positions(), kTileSide);
  return blocks > INT32_MAX ? 0u : static_cast<unsigned>(blocks);
}

template <class T>
Status compute_norms(const LocalCorrelationParams& p, const Sides<T>& s, Stream stream) {
  if (!p.normalize) return {};
  const unsigned of_a = norm_blocks(p, s.a), of_b = norm_blocks(p, s.b);
  if (of_a == 0 || of_b == 0) return {"local_correlation: the tensors are too large for one launch"};
  const auto kernel = &local_correlation_norm_kernel<T>;
  if (Status status = launch(kernel, dim3(of_a), dim3(kThreads), 0, stream, s.a, s.norm_a); !status.ok()) return status;
  return launch(kernel, dim3(of_b), dim3(kThreads), 0, stream, s.b, s.norm_b);
}

// result (B, C, H, W) of the caller's type, from the gradient to the (normalized) features of `side`.
template <class T>
Status finish_gradient(const LocalCorrelationParams& p, const Side<T>& side, const accumulate_t<T>* gradient,
                       const View4& result, Stream stream) {
  const unsigned blocks = norm_blocks(p, side);
  if (blocks == 0) return {"local_correlation: the tensors are too large for one launch"};
  return launch(&local_correlation_finish_kernel<T>, dim3(blocks), dim3(kThreads), 0, stream, side, gradient,
                static_cast<T*>(result.data));
}

}  // namespace cosegflow::local_correlation_cuda

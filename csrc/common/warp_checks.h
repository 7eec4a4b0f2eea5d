// What warp asks of its params (entry_checks.h).
#pragma once

#include "common/entry_checks.h"
#include "cosegflow/warp.h"

namespace cosegflow {

inline Status check_sizes(const WarpParams& p) {
  constexpr int64_t kMaxSide = INT32_MAX - 9;  // positions of taps are int
  Checks c;
  c.require(p.batch >= 0 && p.batch <= kMaxElements, "batch must not be negative, nor too large");
  c.require(p.channels >= 1, "channels must be at least 1");
  c.require(p.height >= 1 && p.height <= kMaxSide, "height must be at least 1, and below 2^31 - 8");
  c.require(p.width >= 1 && p.width <= kMaxSide, "width must be at least 1, and below 2^31 - 8");
  c.require(p.out_height >= 1, "out_height must be at least 1");
  c.require(p.out_width >= 1, "out_width must be at least 1");
  c.require(p.mode == WarpMode::kBilinear || p.mode == WarpMode::kNearest, "mode must be kBilinear or kNearest");
  c.require(p.padding == WarpPadding::kZeros || p.padding == WarpPadding::kBorder, "padding must be kZeros or kBorder");
  c.require(is_floating(p.x.dtype), "x must be floating");
  if (!c.status().ok()) return c.status();
  const int64_t images = p.batch > 0 ? p.batch : 1;
  c.require(bounded_product(kMaxElements, images, p.channels, p.height, p.width) <= kMaxElements,
            "batch, channels, height, width: x has too many elements");
  c.require(bounded_product(kMaxElements, images, p.channels, p.out_height, p.out_width) <= kMaxElements,
            "batch, channels, out_height, out_width: out has too many elements");
  return c.status();
}

namespace warp_checks {

inline Checks common(const WarpParams& p) {
  Checks c;
  c.input(COSEGFLOW_FIELD(p, x, "be floating"), is_floating(p.x.dtype), {p.batch, p.channels, p.height, p.width});
  c.input(COSEGFLOW_FIELD(p, flow, "have the accumulate type of x"), p.flow.dtype == accumulate_type(p.x.dtype),
          {p.batch, 2, p.out_height, p.out_width});
  return c;
}

}  // namespace warp_checks

inline Status check_forward(const WarpParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c = warp_checks::common(p);
  c.input(COSEGFLOW_FIELD(p, out, "have the dtype of x"), p.out.dtype == p.x.dtype,
          {p.batch, p.channels, p.out_height, p.out_width});
  c.optional_input(COSEGFLOW_FIELD(p, valid, "be bool"), p.valid.dtype == DType::kBool,
                   {p.batch, p.out_height, p.out_width});
  return c.status();
}

// any_grad_x: grad_x may have the type of x, and any strides.
inline Status check_backward(const WarpParams& p, bool any_grad_x = false) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  const DType acc = accumulate_type(p.x.dtype);
  Checks c = warp_checks::common(p);
  c.input(COSEGFLOW_FIELD(p, grad_out, "have the dtype of x"), p.grad_out.dtype == p.x.dtype,
          {p.batch, p.channels, p.out_height, p.out_width});
  const int64_t x_sizes[4] = {p.batch, p.channels, p.height, p.width};
  if (any_grad_x) {
    c.optional_input(COSEGFLOW_FIELD(p, grad_x, "have the type of x or its accumulate type"),
                     p.grad_x.dtype == acc || p.grad_x.dtype == p.x.dtype, x_sizes);
  } else {
    c.optional_contiguous(COSEGFLOW_FIELD(p, grad_x, "have the accumulate type of x"), p.grad_x.dtype == acc, x_sizes);
  }
  c.optional_input(COSEGFLOW_FIELD(p, grad_flow, "have the dtype of flow"), p.grad_flow.dtype == acc,
                   {p.batch, 2, p.out_height, p.out_width});
  return c.status();
}

}  // namespace cosegflow

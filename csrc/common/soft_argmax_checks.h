// What soft_argmax asks of its params (entry_checks.h).
#pragma once

#include "common/softmax_checks.h"
#include "cosegflow/soft_argmax.h"

namespace cosegflow {

inline Status check_sizes(const SoftArgmaxParams& p) {
  Checks c;
  c.require(p.batch >= 0 && p.batch <= kMaxElements, "batch must not be negative, nor too large");
  c.require(p.height_a >= 1, "height_a must be at least 1");
  c.require(p.width_a >= 1, "width_a must be at least 1");
  c.require(p.height_b >= 1, "height_b must be at least 1");
  c.require(p.width_b >= 1, "width_b must be at least 1");
  c.require(is_floating(p.dtype), "dtype must be floating");
  if (!c.status().ok()) return c.status();
  c.require(volume_is_small(p, kMaxElements), kTooManyPairs);
  return check_kernel_sigma(c, p.kernel_sigma).status();
}

inline Status check_forward(const SoftArgmaxParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c;
  c.contiguous(COSEGFLOW_FIELD(p, corr, ""), element_size(p.dtype));
  check_softmax_forward(c, p, accumulate_type(p.dtype));
  return c.status();
}

inline Status check_backward(const SoftArgmaxParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c;
  c.contiguous(COSEGFLOW_FIELD(p, corr, ""), element_size(p.dtype));
  check_softmax_backward(c, p, accumulate_type(p.dtype));
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_corr, ""), element_size(p.dtype));
  return c.status();
}

}  // namespace cosegflow

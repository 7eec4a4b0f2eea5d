// What cycle_error asks of its params (entry_checks.h).
#pragma once

#include "common/entry_checks.h"
#include "cosegflow/cycle_error.h"

namespace cosegflow {

inline Status check_sizes(const CycleErrorParams& p) {
  constexpr int64_t kMaxSide = INT32_MAX - 9;  // positions of taps are int
  Checks c;
  c.require(p.batch >= 0 && p.batch <= kMaxElements, "batch must not be negative, nor too large");
  c.require(p.height_a >= 1, "height_a must be at least 1");
  c.require(p.width_a >= 1, "width_a must be at least 1");
  c.require(p.height_b >= 1 && p.height_b <= kMaxSide, "height_b must be at least 1, and below 2^31 - 8");
  c.require(p.width_b >= 1 && p.width_b <= kMaxSide, "width_b must be at least 1, and below 2^31 - 8");
  c.require(is_floating(p.flow_ab.dtype), "flow_ab must be floating");
  if (!c.status().ok()) return c.status();
  const int64_t images = p.batch > 0 ? p.batch : 1;
  c.require(bounded_product(kMaxElements, images, p.height_a, p.width_a) <= kMaxElements,
            "batch, height_a, width_a: flow_ab has too many elements");
  c.require(bounded_product(kMaxElements, images, p.height_b, p.width_b) <= kMaxElements,
            "batch, height_b, width_b: flow_ba has too many elements");
  return c.status();
}

namespace cycle_error_checks {

inline Checks common(const CycleErrorParams& p) {
  Checks c;
  c.input(COSEGFLOW_FIELD(p, flow_ab, "be floating"), is_floating(p.flow_ab.dtype),
          {p.batch, 2, p.height_a, p.width_a});
  c.input(COSEGFLOW_FIELD(p, flow_ba, "have the dtype of flow_ab"), p.flow_ba.dtype == p.flow_ab.dtype,
          {p.batch, 2, p.height_b, p.width_b});
  return c;
}

}  // namespace cycle_error_checks

inline Status check_forward(const CycleErrorParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c = cycle_error_checks::common(p);
  c.input(COSEGFLOW_FIELD(p, error, "have the accumulate type of flow_ab"),
          p.error.dtype == accumulate_type(p.flow_ab.dtype), {p.batch, p.height_a, p.width_a});
  c.optional_input(COSEGFLOW_FIELD(p, valid, "be bool"), p.valid.dtype == DType::kBool,
                   {p.batch, p.height_a, p.width_a});
  return c.status();
}

inline Status check_backward(const CycleErrorParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  const DType acc = accumulate_type(p.flow_ab.dtype);
  Checks c = cycle_error_checks::common(p);
  c.input(COSEGFLOW_FIELD(p, grad_error, "have the accumulate type of flow_ab"), p.grad_error.dtype == acc,
          {p.batch, p.height_a, p.width_a});
  c.optional_input(COSEGFLOW_FIELD(p, grad_ab, "have the accumulate type of flow_ab"), p.grad_ab.dtype == acc,
                   {p.batch, 2, p.height_a, p.width_a});
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_ba, "have the accumulate type of flow_ab"), p.grad_ba.dtype == acc,
                        {p.batch, 2, p.height_b, p.width_b});
  return c.status();
}

}  // namespace cosegflow

// What local_correlation asks of its params (entry_checks.h).
#pragma once

#include "common/softmax_checks.h"
#include "cosegflow/local_correlation.h"

namespace cosegflow {

inline Status check_sizes(const LocalCorrelationParams& p) {
  constexpr int64_t kMaxSide = INT32_MAX / 2;  // positions of windows are int
  Checks c = pair_sizes(p);
  c.require(p.radius >= 0 && p.radius <= LocalCorrelationParams::kMaxRadius, "radius must be in 0 .. 16383");
  c.require(p.height_a <= kMaxSide && p.width_a <= kMaxSide, "height_a or width_a is above 2^30");
  c.require(p.height_b <= kMaxSide && p.width_b <= kMaxSide, "height_b or width_b is above 2^30");
  c.require(is_floating(p.fa.dtype), "fa must be floating");
  if (!c.status().ok()) return c.status();
  const int64_t images = p.batch > 0 ? p.batch : 1, planes = p.side() * p.side();
  c.require(bounded_product(kMaxElements, images, planes, p.height_a, p.width_a) <= kMaxElements,
            "batch, radius, height_a, width_a: out has too many elements");
  c.require(bounded_product(kMaxProducts, planes, p.height_a, p.width_a, p.channels) <= kMaxProducts,
            "radius, height_a, width_a, channels: there are too many products");
  return c.status();
}

namespace local_correlation_checks {

inline Checks common(const LocalCorrelationParams& p) {
  Checks c;
  check_features(c, p);
  c.optional_input(COSEGFLOW_FIELD(p, flow, "have the accumulate type of fa"),
                   p.flow.dtype == accumulate_type(p.fa.dtype), {p.batch, 2, p.height_a, p.width_a});
  return c;
}

}  // namespace local_correlation_checks

inline Status check_forward(const LocalCorrelationParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c = local_correlation_checks::common(p);
  return c.contiguous(COSEGFLOW_FIELD(p, out, ""), element_size(p.fa.dtype)).status();
}

inline Status check_backward(const LocalCorrelationParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c = local_correlation_checks::common(p);
  c.input(COSEGFLOW_FIELD(p, grad_out, "have the dtype of fa"), p.grad_out.dtype == p.fa.dtype,
          {p.batch, p.side() * p.side(), p.height_a, p.width_a});
  check_feature_gradients(c, p);
  c.require(p.grad_flow.data == nullptr || p.flow.data != nullptr, "grad_flow needs flow");
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_flow, "have the dtype of flow"), p.grad_flow.dtype == p.flow.dtype,
                        {p.batch, 2, p.height_a, p.width_a});
  return c.status();
}

}  // namespace cosegflow

// What correlation asks of its params (entry_checks.h).
#pragma once

#include "common/softmax_checks.h"
#include "cosegflow/correlation.h"

namespace cosegflow {

inline Status check_sizes(const CorrelationParams& p) {
  Checks c = pair_sizes(p);
  if (!c.status().ok()) return c.status();
  c.require(is_floating(p.fa.dtype), "fa must be floating");
  check_precision(c, p.precision);
  return c.require(volume_is_small(p, kMaxElements), kTooManyPairs).status();
}

inline Status check_forward(const CorrelationParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c;
  check_features(c, p);
  return c.contiguous(COSEGFLOW_FIELD(p, corr, ""), element_size(p.fa.dtype)).status();
}

inline Status check_backward(const CorrelationParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c;
  check_features(c, p);
  c.contiguous(COSEGFLOW_FIELD(p, grad_corr, ""), element_size(p.fa.dtype));
  c.require(!p.relu || p.corr != nullptr, "corr is null: the backward of relu needs it");
  c.optional_contiguous(COSEGFLOW_FIELD(p, corr, ""), element_size(p.fa.dtype));
  check_feature_gradients(c, p);
  return c.status();
}

}  // namespace cosegflow

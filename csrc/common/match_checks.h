// What match asks of its params (entry_checks.h).
#pragma once

#include "common/softmax_checks.h"
#include "cosegflow/match.h"

namespace cosegflow {

inline Status check_sizes(const MatchParams& p) {
  Checks c = pair_sizes(p);
  if (!c.status().ok()) return c.status();
  c.require(is_floating(p.fa.dtype), "fa must be floating");
  check_precision(c, p.precision);
  c.require(volume_is_small(p, kMaxProducts), kTooManyPairs);
  return check_kernel_sigma(c, p.kernel_sigma).status();
}

namespace match_checks {

inline Checks common(const MatchParams& p) {
  Checks c;
  check_features(c, p);
  c.optional_input(COSEGFLOW_FIELD(p, mask_a, "be floating or bool"), is_mask(p.mask_a.dtype),
                   {p.batch, p.height_a, p.width_a});
  return c;
}

}  // namespace match_checks

inline Status check_forward(const MatchParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c = match_checks::common(p);
  check_softmax_forward(c, p, accumulate_type(p.fa.dtype));
  return c.status();
}

inline Status check_backward(const MatchParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  Checks c = match_checks::common(p);
  check_softmax_backward(c, p, accumulate_type(p.fa.dtype));
  check_feature_gradients(c, p);
  return c.status();
}

}  // namespace cosegflow

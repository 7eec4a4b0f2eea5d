// What match_both asks of its params (entry_checks.h).
#pragma once

#include "common/softmax_checks.h"
#include "cosegflow/match_both.h"

namespace cosegflow {

inline Status check_sizes(const MatchBothParams& p) {
  Checks c = pair_sizes(p);
  if (!c.status().ok()) return c.status();
  c.require(is_floating(p.fa.dtype), "fa must be floating");
  check_precision(c, p.precision);
  return c.require(volume_is_small(p, kMaxProducts), kTooManyPairs).status();
}

namespace match_both_checks {

inline Checks common(const MatchBothParams& p) {
  const DType acc = accumulate_type(p.fa.dtype);
  Checks c;
  check_features(c, p);
  c.optional_input(COSEGFLOW_FIELD(p, mask_a, "be floating or bool"), is_mask(p.mask_a.dtype),
                   {p.batch, p.height_a, p.width_a});
  c.optional_input(COSEGFLOW_FIELD(p, mask_b, "be floating or bool"), is_mask(p.mask_b.dtype),
                   {p.batch, p.height_b, p.width_b});
  c.input(COSEGFLOW_FIELD(p, beta, "have the accumulate type of fa"), p.beta.dtype == acc, {p.batch});
  c.contiguous(COSEGFLOW_FIELD(p, ab.flow, "have the accumulate type of fa"), p.ab.flow.dtype == acc,
               {p.batch, 2, p.height_a, p.width_a});
  c.contiguous(COSEGFLOW_FIELD(p, ab.lse, "have the accumulate type of fa"), p.ab.lse.dtype == acc,
               {p.batch, p.height_a, p.width_a});
  c.contiguous(COSEGFLOW_FIELD(p, ba.flow, "have the accumulate type of fa"), p.ba.flow.dtype == acc,
               {p.batch, 2, p.height_b, p.width_b});
  c.contiguous(COSEGFLOW_FIELD(p, ba.lse, "have the accumulate type of fa"), p.ba.lse.dtype == acc,
               {p.batch, p.height_b, p.width_b});
  return c;
}

}  // namespace match_both_checks

inline Status check_forward(const MatchBothParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  const DType acc = accumulate_type(p.fa.dtype);
  Checks c = match_both_checks::common(p);
  c.contiguous(COSEGFLOW_FIELD(p, ab.confidence, "have the accumulate type of fa"), p.ab.confidence.dtype == acc,
               {p.batch, p.height_a, p.width_a});
  c.contiguous(COSEGFLOW_FIELD(p, ba.confidence, "have the accumulate type of fa"), p.ba.confidence.dtype == acc,
               {p.batch, p.height_b, p.width_b});
  return c.status();
}

inline Status check_backward(const MatchBothParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  const DType acc = accumulate_type(p.fa.dtype);
  Checks c = match_both_checks::common(p);
  c.optional_input(COSEGFLOW_FIELD(p, ab.grad_flow, "have the accumulate type of fa"), p.ab.grad_flow.dtype == acc,
                   {p.batch, 2, p.height_a, p.width_a});
  c.optional_input(COSEGFLOW_FIELD(p, ab.grad_lse, "have the accumulate type of fa"), p.ab.grad_lse.dtype == acc,
                   {p.batch, p.height_a, p.width_a});
  c.optional_input(COSEGFLOW_FIELD(p, ba.grad_flow, "have the accumulate type of fa"), p.ba.grad_flow.dtype == acc,
                   {p.batch, 2, p.height_b, p.width_b});
  c.optional_input(COSEGFLOW_FIELD(p, ba.grad_lse, "have the accumulate type of fa"), p.ba.grad_lse.dtype == acc,
                   {p.batch, p.height_b, p.width_b});
  check_feature_gradients(c, p);
  c.require(p.grad_mask_a.data == nullptr || p.mask_a.data != nullptr, "grad_mask_a needs mask_a");
  c.require(p.grad_mask_b.data == nullptr || p.mask_b.data != nullptr, "grad_mask_b needs mask_b");
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_mask_a, "have the accumulate type of fa"), p.grad_mask_a.dtype == acc,
                        {p.batch, p.height_a, p.width_a});
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_mask_b, "have the accumulate type of fa"), p.grad_mask_b.dtype == acc,
                        {p.batch, p.height_b, p.width_b});
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_beta, "have the accumulate type of fa"), p.grad_beta.dtype == acc,
                        {p.batch});
  return c.status();
}

}  // namespace cosegflow

// The two directions of match_both as params of match: what serves one direction serves the other with a and b swapped.
#pragma once

#include "cosegflow/match.h"
#include "cosegflow/match_both.h"

namespace cosegflow {

// From a to b: mask_a gates, mask_b weighs.
inline MatchParams a_to_b(const MatchBothParams& p) {
  MatchParams m;
  m.batch = p.batch, m.channels = p.channels;
  m.height_a = p.height_a, m.width_a = p.width_a, m.height_b = p.height_b, m.width_b = p.width_b;
  m.normalize = p.normalize, m.simple = p.simple, m.chunk_bytes = p.chunk_bytes;
  m.portable = p.portable, m.precision = p.precision;
  m.fa = p.fa, m.fb = p.fb, m.mask_a = p.mask_a, m.mask_b = p.mask_b, m.beta = p.beta;
  m.flow = p.ab.flow, m.lse = p.ab.lse, m.confidence = p.ab.confidence;
  m.grad_flow = p.ab.grad_flow, m.grad_lse = p.ab.grad_lse;
  m.grad_fa = p.grad_fa, m.grad_fb = p.grad_fb, m.grad_mask_b = p.grad_mask_b, m.grad_beta = p.grad_beta;
  return m;
}

// The same matches with the images in the other order.
inline MatchBothParams swapped(const MatchBothParams& p) {
  MatchBothParams s = p;
  s.height_a = p.height_b, s.width_a = p.width_b, s.height_b = p.height_a, s.width_b = p.width_a;
  s.fa = p.fb, s.fb = p.fa, s.mask_a = p.mask_b, s.mask_b = p.mask_a;
  s.ab = p.ba, s.ba = p.ab;
  s.grad_fa = p.grad_fb, s.grad_fb = p.grad_fa, s.grad_mask_a = p.grad_mask_b, s.grad_mask_b = p.grad_mask_a;
  return s;
}

inline MatchParams b_to_a(const MatchBothParams& p) { return a_to_b(swapped(p)); }

}  // namespace cosegflow

// What match and soft_argmax ask of the fields that both have.
#pragma once

#include "common/entry_checks.h"

namespace cosegflow {

inline Checks& check_kernel_sigma(Checks& c, double sigma) {
  return c.require(sigma >= 0 && sigma <= 1.7976931348623157e308,
                   "kernel_sigma must be positive and finite, or 0 for no window");  // a NaN fails
}

// Targets' weights, beta, and the forward's outputs that the backward reads too.
template <class Params>
void check_softmax(Checks& c, const Params& p, DType acc) {
  c.optional_input(COSEGFLOW_FIELD(p, mask_b, "be floating or bool"), is_mask(p.mask_b.dtype),
                   {p.batch, p.height_b, p.width_b});
  c.input(COSEGFLOW_FIELD(p, beta, "have the accumulate type of the features"), p.beta.dtype == acc, {p.batch});
  c.contiguous(COSEGFLOW_FIELD(p, flow, "have the accumulate type of the features"), p.flow.dtype == acc,
               {p.batch, 2, p.height_a, p.width_a});
  c.contiguous(COSEGFLOW_FIELD(p, lse, "have the accumulate type of the features"), p.lse.dtype == acc,
               {p.batch, p.height_a, p.width_a});
  c.require(!(p.kernel_sigma > 0) || p.index != nullptr, "kernel_sigma needs index");
  c.optional_contiguous(COSEGFLOW_FIELD(p, index, ""), sizeof(int64_t));
}

template <class Params>
void check_softmax_forward(Checks& c, const Params& p, DType acc) {
  check_softmax(c, p, acc);
  c.contiguous(COSEGFLOW_FIELD(p, confidence, "have the accumulate type of the features"), p.confidence.dtype == acc,
               {p.batch, p.height_a, p.width_a});
  c.require((p.index == nullptr) == (p.score.data == nullptr), "index and score are wanted both or neither");
  c.optional_contiguous(COSEGFLOW_FIELD(p, score, "have the accumulate type of the features"), p.score.dtype == acc,
                        {p.batch, p.height_a, p.width_a});
}

template <class Params>
void check_softmax_backward(Checks& c, const Params& p, DType acc) {
  check_softmax(c, p, acc);
  c.optional_input(COSEGFLOW_FIELD(p, grad_flow, "have the accumulate type of the features"), p.grad_flow.dtype == acc,
                   {p.batch, 2, p.height_a, p.width_a});
  c.optional_input(COSEGFLOW_FIELD(p, grad_lse, "have the accumulate type of the features"), p.grad_lse.dtype == acc,
                   {p.batch, p.height_a, p.width_a});
  c.require(p.grad_mask_b.data == nullptr || p.mask_b.data != nullptr, "grad_mask_b needs mask_b");
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_mask_b, "have the accumulate type of the features"),
                        p.grad_mask_b.dtype == acc, {p.batch, p.height_b, p.width_b});
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_beta, "have the accumulate type of the features"),
                        p.grad_beta.dtype == acc, {p.batch});
}

inline void check_precision(Checks& c, Precision precision) {
  c.require(precision >= Precision::kHighest && precision <= Precision::kMedium,
            "precision must be kHighest, kHigh or kMedium");
}

// fa and fb, and the gradients to them.
template <class Params>
void check_features(Checks& c, const Params& p) {
  c.input(COSEGFLOW_FIELD(p, fa, "be floating"), is_floating(p.fa.dtype), {p.batch, p.channels, p.height_a, p.width_a});
  c.input(COSEGFLOW_FIELD(p, fb, "have the dtype of fa"), p.fb.dtype == p.fa.dtype,
          {p.batch, p.channels, p.height_b, p.width_b});
}
template <class Params>
void check_feature_gradients(Checks& c, const Params& p) {
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_fa, "have the dtype of fa"), p.grad_fa.dtype == p.fa.dtype,
                        {p.batch, p.channels, p.height_a, p.width_a});
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_fb, "have the dtype of fa"), p.grad_fb.dtype == p.fa.dtype,
                        {p.batch, p.channels, p.height_b, p.width_b});
}

}  // namespace cosegflow

// What transfer asks of its params (entry_checks.h).
#pragma once

#include "common/softmax_checks.h"
#include "cosegflow/transfer.h"

namespace cosegflow {

inline Status check_sizes(const TransferParams& p) {
  Checks c = pair_sizes(p);
  c.require(p.value_channels >= 1, "value_channels must be at least 1");
  if (!c.status().ok()) return c.status();
  const int64_t images = p.batch > 0 ? p.batch : 1;
  c.require(is_floating(p.fa.dtype), "fa must be floating");
  check_precision(c, p.precision);
  c.require(is_floating(p.values.dtype) && accumulate_type(p.values.dtype) == accumulate_type(p.fa.dtype),
            "values must be floating, and float64 if and only if fa is");
  c.require(bounded_product(kMaxElements, images, p.value_channels, p.height_a, p.width_a) <= kMaxElements,
            "batch, value_channels, height_a, width_a: out has too many elements");
  c.require(bounded_product(kMaxElements, images, p.value_channels, p.height_b, p.width_b) <= kMaxElements,
            "batch, value_channels, height_b, width_b: values has too many elements");
  return c.require(volume_is_small(p, kMaxProducts), kTooManyPairs).status();
}

namespace transfer_checks {

inline Checks common(const TransferParams& p) {
  const DType acc = accumulate_type(p.fa.dtype);
  Checks c;
  check_features(c, p);
  c.input(COSEGFLOW_FIELD(p, values, "be floating"), is_floating(p.values.dtype),
          {p.batch, p.value_channels, p.height_b, p.width_b});
  c.optional_input(COSEGFLOW_FIELD(p, mask_a, "be floating or bool"), is_mask(p.mask_a.dtype),
                   {p.batch, p.height_a, p.width_a});
  c.optional_input(COSEGFLOW_FIELD(p, mask_b, "be floating or bool"), is_mask(p.mask_b.dtype),
                   {p.batch, p.height_b, p.width_b});
  c.input(COSEGFLOW_FIELD(p, beta, "have the accumulate type of fa"), p.beta.dtype == acc, {p.batch});
  c.contiguous(COSEGFLOW_FIELD(p, out, "have the accumulate type of fa"), p.out.dtype == acc,
               {p.batch, p.value_channels, p.height_a, p.width_a});
  c.contiguous(COSEGFLOW_FIELD(p, lse, "have the accumulate type of fa"), p.lse.dtype == acc,
               {p.batch, p.height_a, p.width_a});
  return c;
}

}  // namespace transfer_checks

inline Status check_forward(const TransferParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  return transfer_checks::common(p).status();
}

inline Status check_backward(const TransferParams& p) {
  if (Status s = check_sizes(p); !s.ok() || p.batch == 0) return s;
  const DType acc = accumulate_type(p.fa.dtype);
  Checks c = transfer_checks::common(p);
  c.input(COSEGFLOW_FIELD(p, grad_out, "have the accumulate type of fa"), p.grad_out.dtype == acc,
          {p.batch, p.value_channels, p.height_a, p.width_a});
  check_feature_gradients(c, p);
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_values, "have the dtype of values"),
                        p.grad_values.dtype == p.values.dtype, {p.batch, p.value_channels, p.height_b, p.width_b});
  c.require(p.grad_mask_b.data == nullptr || p.mask_b.data != nullptr, "grad_mask_b needs mask_b");
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_mask_b, "have the accumulate type of fa"), p.grad_mask_b.dtype == acc,
                        {p.batch, p.height_b, p.width_b});
  c.optional_contiguous(COSEGFLOW_FIELD(p, grad_beta, "have the accumulate type of fa"), p.grad_beta.dtype == acc,
                        {p.batch});
  return c.status();
}

}  // namespace cosegflow

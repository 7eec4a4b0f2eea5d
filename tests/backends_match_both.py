"""match_both on hostsim, differentiable: see backends.py."""

import torch
from backends import beta_per_image, hostsim_module, to_numpy, to_torch


class MatchBoth(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fa, fb, mask_a, mask_b, beta, normalize, simple, chunk_bytes, kernels):
        ctx.set_materialize_grads(False)
        arrays = [to_numpy(t) for t in (fa, fb, mask_a, mask_b)]
        outputs = hostsim_module().match_both(
            *arrays, beta_per_image(beta, fa.shape[0]), normalize, simple, chunk_bytes=chunk_bytes, **kernels
        )
        outputs = tuple(to_torch(o) for o in outputs)
        ctx.save_for_backward(fa, fb, mask_a, mask_b, beta, *outputs[:2], *outputs[3:5])
        ctx.options = (normalize, simple, chunk_bytes, kernels.get("portable", False))
        ctx.mark_non_differentiable(outputs[2], outputs[5])
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        fa, fb, mask_a, mask_b, beta, *saved = ctx.saved_tensors
        normalize, simple, chunk_bytes, portable = ctx.options
        results = hostsim_module().match_both_backward(
            *(to_numpy(t) for t in (fa, fb, mask_a, mask_b)), beta_per_image(beta, fa.shape[0]),
            [to_numpy(t) for t in saved], [to_numpy(grads[i]) for i in (0, 1, 3, 4)], normalize, simple,
            list(ctx.needs_input_grad[:5]), chunk_bytes=chunk_bytes, portable=portable,
        )  # fmt: skip
        grad_fa, grad_fb, *grad_masks, grad_beta = (to_torch(g) for g in results)
        grad_masks = [None if g is None else g.to(m.dtype) for g, m in zip(grad_masks, (mask_a, mask_b), strict=True)]
        if grad_beta is not None and beta.dim() == 0:
            grad_beta = grad_beta.sum()
        return grad_fa, grad_fb, *grad_masks, grad_beta, *(None,) * 4

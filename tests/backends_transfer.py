"""transfer on the backends of `backends`: `transfer(backend, ...)` gives (out, lse) of the operator, differentiable."""

from typing import Any

import torch
from backends import beta_per_image, hostsim_module, to_numpy, to_torch, which_kernels


class _Transfer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fa, fb, values, mask_a, mask_b, beta, normalize, simple, chunk_bytes, kernels):
        ctx.set_materialize_grads(False)
        arrays = [to_numpy(t) for t in (fa, fb, values, mask_a, mask_b)]
        outputs = hostsim_module().transfer(
            *arrays, beta_per_image(beta, fa.shape[0]), normalize, simple, chunk_bytes=chunk_bytes, **kernels
        )
        out, lse = (to_torch(o) for o in outputs)
        ctx.save_for_backward(fa, fb, values, mask_a, mask_b, beta, out, lse)
        ctx.options = (normalize, simple, chunk_bytes, kernels.get("portable", False))
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx, grad_out, _):
        fa, fb, values, mask_a, mask_b, beta, out, lse = ctx.saved_tensors
        normalize, simple, chunk_bytes, portable = ctx.options
        need = tuple(ctx.needs_input_grad[i] for i in (0, 1, 2, 4, 5))
        grads = hostsim_module().transfer_backward(
            to_numpy(grad_out), *(to_numpy(t) for t in (fa, fb, values, mask_a, mask_b)),
            beta_per_image(beta, fa.shape[0]), to_numpy(out), to_numpy(lse), normalize, simple, need,
            chunk_bytes=chunk_bytes, portable=portable,
        )  # fmt: skip
        grad_fa, grad_fb, grad_values, grad_mask_b, grad_beta = (to_torch(g) for g in grads)
        if grad_mask_b is not None:
            grad_mask_b = grad_mask_b.to(mask_b.dtype)
        if grad_beta is not None and beta.dim() == 0:
            grad_beta = grad_beta.sum()
        return grad_fa, grad_fb, grad_values, None, grad_mask_b, grad_beta, *(None,) * 4


def transfer(
    backend: Any, fa, fb, values, mask_a, mask_b, beta, normalize=True, simple=False, chunk_bytes=0, precision=0,
    portable=False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """(out, lse) in the accumulate dtype; chunk_bytes is for hostsim."""
    if backend.name == "hostsim":
        kernels = which_kernels(precision, portable)
        return _Transfer.apply(fa, fb, values, mask_a, mask_b, beta, normalize, simple, chunk_bytes, kernels)
    arguments = (fa, fb, values, mask_a, mask_b, beta, normalize, simple)
    return backend._run(torch.ops.cosegflow.transfer, *arguments, precision, portable or backend.portable)

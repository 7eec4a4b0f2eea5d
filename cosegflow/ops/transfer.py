"""transfer: labels, masks or any values of b, carried to a by the matching probabilities, without the 4D volume."""

from typing import Any

import torch
from torch import Tensor

from cosegflow import _library, reference
from cosegflow.ops import _checks, _transforms
from cosegflow.ops._autocast import autocast_dtype, autocast_features, without_autocast
from cosegflow.ops._precision import float32_precision
from cosegflow.ops._registration import second_derivative, sum_to_beta
from cosegflow.ops._trust import PORTABLE, SIMPLE, choose


def transfer(
    fa: Tensor,
    fb: Tensor,
    values: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 50.0,
    normalize: bool = True,
) -> Tensor:
    """Soft label transfer: what each pixel of a gets from the values of the pixels of b that it matches.

    out[b, :, i] = sum_j p_ij values[b, :, j], with the weights p_ij = m_j exp(beta s_ij) / sum_k m_k exp(beta s_ik) of
    `match`: s_ij = <fa_i, fb_j> (of unit vectors with ``normalize``). One-hot labels give probabilities, as in the
    matching networks of Vinyals et al. 2016 (arXiv 1606.04080, equation 1). Neither the volume nor the probabilities
    are stored, forward or backward: memory is linear in Ha*Wa + Hb*Wb plus one bounded workspace, and the work is
    proportional to |mask_a > 0| x |mask_b > 0|.

    Args:
        fa: (B, C, Ha, Wa), float16, bfloat16, float32 or float64.
        fb: (B, C, Hb, Wb), the dtype of ``fa``; the size may differ.
        values: (B, V, Hb, Wb), any V >= 1, float16, bfloat16, float32 or float64, not necessarily that of ``fa``.
            Values of excluded targets never reach the result, NaN or not.
        mask_a: gates the sources: (B, Ha, Wa) or (B, 1, Ha, Wa), floating or bool; where it is not > 0 the result is 0.
            No gradient.
        mask_b: weighs the targets: (B, Hb, Wb) or (B, 1, Hb, Wb), floating or bool, normally in [0, 1]. 0, negative and
            NaN exclude; +inf counts as the largest finite value.
        beta: inverse temperature: a number, a 0-dim tensor or one value per image (B,); may be 0 or negative.
        normalize: divide each feature by max(its L2 norm over C, 1e-12), fused.

    Returns:
        (B, V, Ha, Wa) in the dtype of ``values``, accumulated in float32 (float64 where ``fa`` or ``values`` are).
        Where nothing matches: 0, and every gradient through it is 0. Gradients flow to ``fa``, ``fb``, ``values``,
        ``mask_b`` and ``beta``.

    Raises:
        TypeError: a dtype that is not floating (or bool, for masks), or two dtypes of features.
        ValueError: a wrong shape or device, or a ``beta`` that is not finite.
    """
    _checks.require_pair(fa, fb)
    _checks.require_flag("normalize", normalize)
    batch = fa.shape[0]
    _require_values(values, fb)
    mask_a = _checks.as_mask("mask_a", mask_a, batch, fa.shape[2:], "fa", fa)
    mask_b = _checks.as_mask("mask_b", mask_b, batch, fb.shape[2:], "fa", fa)
    _library.require(fa.device)
    # The kernels have one accumulate type: float64 on one side makes the other float64 too.
    dtype, given = autocast_dtype(fa), values.dtype
    if torch.float64 in (dtype, given):
        fa, fb = fa.to(dtype).to(torch.float64), fb.to(dtype).to(torch.float64)
        dtype, values = torch.float64, values.to(torch.float64)
    beta = _checks.as_beta(beta, batch, "fa", fa)
    if _transforms.reference_wanted():
        with without_autocast(fa):
            return reference.transfer(fa.to(dtype), fb.to(dtype), values, mask_a, mask_b, beta, normalize).to(given)
    precision = float32_precision(dtype, fa.device)
    kernels = choose("transfer", dtype, fa.device, precision)
    out, _ = _transforms.run(
        "transfer", fa, fb, values, mask_a, mask_b, beta, normalize, kernels == SIMPLE, precision, kernels == PORTABLE
    )
    return out.to(given)


def _require_values(values: Tensor, fb: Tensor) -> None:
    """Raises unless `values` is a floating (B, V, Hb, Wb) on the device of fb."""
    _checks.require_tensor("values", values)
    _checks.require_dense("values", values)
    if values.dtype not in _checks.FLOATING:
        raise TypeError(
            f"values must be float16, bfloat16, float32 or float64, got {values.dtype}; for labels pass floating "
            "one-hot channels, for a mask `values.float()`"
        )
    batch, _, height, width = fb.shape
    if values.dim() != 4 or (values.shape[0], *values.shape[2:]) != (batch, height, width) or values.shape[1] == 0:
        raise ValueError(
            f"values must have shape ({batch}, V, {height}, {width}) with V >= 1, the batch and size of fb, got "
            f"{tuple(values.shape)}"
        )
    _checks.require_device("values", values, "fa", fb)


def _fake(
    fa: Tensor,
    fb: Tensor,
    values: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    normalize: bool = True,
    simple: bool = False,
    precision: int = 0,
    portable: bool = False,
) -> tuple[Tensor, Tensor]:
    dtype = reference.accumulate_dtype(fa.dtype)
    batch, _, ha, wa = fa.shape
    return fa.new_empty((batch, values.shape[1], ha, wa), dtype=dtype), fa.new_empty((batch, ha, wa), dtype=dtype)


def _fake_backward(
    grad_out: Tensor,
    fa: Tensor,
    fb: Tensor,
    values: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    out: Tensor,
    lse: Tensor,
    normalize: bool,
    simple: bool,
    need_fa: bool,
    need_fb: bool,
    need_values: bool,
    need_mask_b: bool,
    need_beta: bool,
    portable: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        fa.new_empty(fa.shape if need_fa else (0,)),
        fb.new_empty(fb.shape if need_fb else (0,)),
        values.new_empty(values.shape if need_values else (0,)),
        mask_b.new_empty(mask_b.shape) if need_mask_b and mask_b is not None else out.new_empty(0),
        out.new_empty(fa.shape[:1] if need_beta else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.normalize, ctx.simple, _, ctx.portable = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    fa, fb, values, mask_a, mask_b, beta, out, lse = ctx.saved_tensors
    if grad_out is None:
        return (None,) * 10
    need_fa, need_fb, need_values, _, need_mask_b, need_beta = ctx.needs_input_grad[:6]
    need_mask_b = need_mask_b and mask_b is not None
    grads = _transforms.run(
        "transfer_backward",
        grad_out,
        fa,
        fb,
        values,
        mask_a,
        mask_b,
        beta,
        out,
        lse,
        ctx.normalize,
        ctx.simple,
        need_fa,
        need_fb,
        need_values,
        need_mask_b,
        need_beta,
        ctx.portable,
    )
    return (
        grads[0] if need_fa else None,
        grads[1] if need_fb else None,
        grads[2] if need_values else None,
        None,
        grads[3] if need_mask_b else None,
        sum_to_beta(grads[4], beta) if need_beta else None,
        *(None,) * 4,
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, fa, fb, values, mask_a, mask_b, beta, _, _, ctx.normalize, _, *ctx.need, _ = inputs
    ctx.save_for_backward(grad_out, fa, fb, values, mask_a, mask_b, beta)
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_out, fa, fb, values, mask_a, mask_b, beta = ctx.saved_tensors
    weighs = mask_b is not None and mask_b.is_floating_point()

    def forward(fa: Tensor, fb: Tensor, values: Tensor, beta: Tensor, *mask: Tensor) -> tuple[Tensor]:
        mask_or_none = mask[0] if weighs else mask_b
        return (reference.transfer(fa, fb, values.to(beta.dtype), mask_a, mask_or_none, beta, ctx.normalize),)

    # The backward gives beta's gradient per image.
    inputs = (fa, fb, values, beta.expand(fa.shape[0]), *((mask_b,) if weighs else ()))
    wanted = [gg if need else None for gg, need in zip(grad_grads, ctx.need, strict=True)]
    gg_fa, gg_fb, gg_values, gg_mask, gg_beta = wanted
    grad_grads = (gg_fa, gg_fb, gg_values, gg_beta, *((gg_mask,) if weighs else ()))
    for_inputs, for_grads = second_derivative(forward, inputs, (grad_out,), grad_grads)
    for_beta = None if for_inputs[3] is None else sum_to_beta(for_inputs[3], beta)
    for_mask = for_inputs[4] if weighs else None
    return (*for_grads, *for_inputs[:3], None, for_mask, for_beta, *(None,) * 10)


if _library.is_available():
    torch.library.register_fake("cosegflow::transfer", _fake)
    torch.library.register_fake("cosegflow::transfer_backward", _fake_backward)
    _transforms.register("transfer", _setup, _backward)
    _transforms.register("transfer_backward", _setup_backward, _double_backward)
    autocast_features("transfer")

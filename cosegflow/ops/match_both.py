"""match_both: match from a to b and from b to a, out of one product of the features."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from cosegflow import _library, reference
from cosegflow.ops import _checks, _transforms
from cosegflow.ops._autocast import autocast_dtype, autocast_features, without_autocast
from cosegflow.ops._precision import float32_precision
from cosegflow.ops._registration import second_derivative, sum_to_beta
from cosegflow.ops._trust import PORTABLE, SIMPLE, choose
from cosegflow.ops.match import match
from cosegflow.types import IndexedMatches, Matches


@overload
def match_both(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 50.0,
    normalize: bool = True,
    kernel_sigma: float | None = None,
    return_index: Literal[False] = False,
) -> tuple[Matches, Matches]: ...
@overload
def match_both(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 50.0,
    normalize: bool = True,
    kernel_sigma: float | None = None,
    return_index: Literal[True],
) -> tuple[IndexedMatches, IndexedMatches]: ...
@overload
def match_both(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 50.0,
    normalize: bool = True,
    kernel_sigma: float | None = None,
    return_index: bool,
) -> tuple[Matches | IndexedMatches, Matches | IndexedMatches]: ...
def match_both(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 50.0,
    normalize: bool = True,
    kernel_sigma: float | None = None,
    return_index: bool = False,
) -> tuple[Matches | IndexedMatches, Matches | IndexedMatches]:
    """Where each pixel of a lies in b, and each pixel of b in a: every tile of scores is computed once for both.

    Equal to ``(match(fa, fb, mask_a, mask_b), match(fb, fa, mask_b, mask_a))``, for about half the work. Each mask both
    gates its own pixels as sources and weighs them as targets. The soft argmax is that of Kendall et al. 2017 (arXiv
    1703.04309, equation 1). Neither the volume nor the probabilities are stored, forward or backward.

    Args:
        fa: (B, C, Ha, Wa), float16, bfloat16, float32 or float64.
        fb: (B, C, Hb, Wb), the dtype of ``fa``; the size may differ.
        mask_a: (B, Ha, Wa) or (B, 1, Ha, Wa), floating or bool, normally in [0, 1]. 0, negative and NaN exclude a pixel
            in both roles; +inf counts as the largest finite value.
        mask_b: (B, Hb, Wb) or (B, 1, Hb, Wb), likewise.
        beta: inverse temperature: a number, a 0-dim tensor or one value per image (B,); may be 0 or negative.
        normalize: divide each feature by max(its L2 norm over C, 1e-12), fused.
        kernel_sigma: as in `match`; the two directions are then two calls of it.
        return_index: as in `match`; the two directions are then two calls of it.

    Returns:
        Two `Matches` as of `match`: sources in a, of shape (Ha, Wa), and sources in b, of shape (Hb, Wb). Gradients
        flow from both ``flow`` and ``lse`` to ``fa``, ``fb``, ``beta`` and both masks: to ``mask_b`` as the weight of
        the first, to ``mask_a`` as that of the second.

    Raises:
        TypeError: a dtype that is not floating (or bool, for masks), or two dtypes of features.
        ValueError: a wrong shape or device, or a ``beta`` that is not finite.
    """
    if kernel_sigma is not None or return_index:
        # The window of a row follows from its peak, and that of a column from another: no tile serves both.
        options: dict[str, Any] = {
            "beta": beta, "normalize": normalize, "kernel_sigma": kernel_sigma, "return_index": return_index,
        }  # fmt: skip
        return match(fa, fb, mask_a, mask_b, **options), match(fb, fa, mask_b, mask_a, **options)
    _checks.require_pair(fa, fb)
    _checks.require_flag("normalize", normalize)
    _checks.require_flag("return_index", return_index)
    batch = fa.shape[0]
    mask_a = _checks.as_mask("mask_a", mask_a, batch, fa.shape[2:], "fa", fa)
    mask_b = _checks.as_mask("mask_b", mask_b, batch, fb.shape[2:], "fa", fa)
    beta = _checks.as_beta(beta, batch, "fa", fa)
    _library.require(fa.device)
    dtype = autocast_dtype(fa)
    if _transforms.reference_wanted():
        with without_autocast(fa):
            return reference.match_both(fa.to(dtype), fb.to(dtype), mask_a, mask_b, beta, normalize)
    precision = float32_precision(dtype, fa.device)
    kernels = choose("match_both", dtype, fa.device, precision)
    result = _transforms.run(
        "match_both", fa, fb, mask_a, mask_b, beta, normalize, kernels == SIMPLE, precision, kernels == PORTABLE
    )
    return Matches(*result[:3]), Matches(*result[3:])


def _fake(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    normalize: bool = True,
    simple: bool = False,
    precision: int = 0,
    portable: bool = False,
) -> tuple[Tensor, ...]:
    dtype = reference.accumulate_dtype(fa.dtype)
    shapes = []
    for features in (fa, fb):
        batch, _, height, width = features.shape
        shapes += [(batch, 2, height, width), (batch, height, width), (batch, height, width)]
    return tuple(fa.new_empty(shape, dtype=dtype) for shape in shapes)


def _fake_backward(
    grad_flow_ab: Tensor | None,
    grad_lse_ab: Tensor | None,
    grad_flow_ba: Tensor | None,
    grad_lse_ba: Tensor | None,
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    flow_ab: Tensor,
    lse_ab: Tensor,
    flow_ba: Tensor,
    lse_ba: Tensor,
    normalize: bool,
    simple: bool,
    need_fa: bool,
    need_fb: bool,
    need_mask_a: bool,
    need_mask_b: bool,
    need_beta: bool,
    portable: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def mask_gradient(mask: Tensor | None, need: bool) -> Tensor:
        return mask.new_empty(mask.shape) if need and mask is not None else flow_ab.new_empty(0)

    return (
        fa.new_empty(fa.shape if need_fa else (0,)),
        fb.new_empty(fb.shape if need_fb else (0,)),
        mask_gradient(mask_a, need_mask_a),
        mask_gradient(mask_b, need_mask_b),
        flow_ab.new_empty(fa.shape[:1] if need_beta else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    fa, fb, mask_a, mask_b, beta, ctx.normalize, ctx.simple, _, ctx.portable = inputs
    flow_ab, lse_ab, confidence_ab, flow_ba, lse_ba, confidence_ba = output
    ctx.save_for_backward(fa, fb, mask_a, mask_b, beta, flow_ab, lse_ab, flow_ba, lse_ba)
    ctx.mark_non_differentiable(confidence_ab, confidence_ba)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    fa, fb, mask_a, mask_b, beta, flow_ab, lse_ab, flow_ba, lse_ba = ctx.saved_tensors
    need_fa, need_fb, need_mask_a, need_mask_b, need_beta = ctx.needs_input_grad[:5]
    grad_flow_ab, grad_lse_ab, _, grad_flow_ba, grad_lse_ba, _ = grads
    if all(g is None for g in (grad_flow_ab, grad_lse_ab, grad_flow_ba, grad_lse_ba)):
        return (None,) * 9
    result = _transforms.run(
        "match_both_backward",
        grad_flow_ab,
        grad_lse_ab,
        grad_flow_ba,
        grad_lse_ba,
        fa,
        fb,
        mask_a,
        mask_b,
        beta,
        flow_ab,
        lse_ab,
        flow_ba,
        lse_ba,
        ctx.normalize,
        ctx.simple,
        need_fa,
        need_fb,
        need_mask_a,
        need_mask_b,
        need_beta,
        ctx.portable,
    )
    return (
        result[0] if need_fa else None,
        result[1] if need_fb else None,
        result[2] if need_mask_a else None,
        result[3] if need_mask_b else None,
        sum_to_beta(result[4], beta) if need_beta else None,
        *(None,) * 4,
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.normalize, ctx.need = inputs[13], inputs[15:20]
    ctx.save_for_backward(*inputs[:9])
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_outputs, (fa, fb, mask_a, mask_b, beta) = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    weighs = [mask is not None and mask.is_floating_point() for mask in (mask_a, mask_b)]
    batch = fa.shape[0]

    def forward(fa: Tensor, fb: Tensor, beta: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
        given = iter(masks)
        a, b = (next(given) if w else mask for w, mask in zip(weighs, (mask_a, mask_b), strict=True))
        ab, ba = reference.match_both(fa, fb, a, b, beta, ctx.normalize)
        return (*ab[:2], *ba[:2])

    def of_masks(values: tuple[Any, Any]) -> tuple[Any, ...]:
        return tuple(value for value, w in zip(values, weighs, strict=True) if w)

    gg_fa, gg_fb, *gg_masks, gg_beta = (g if need else None for g, need in zip(grad_grads, ctx.need, strict=True))
    inputs = (fa, fb, beta.expand(batch), *of_masks((mask_a, mask_b)))  # the backward gives beta's per image
    wanted = (gg_fa, gg_fb, gg_beta, *of_masks((gg_masks[0], gg_masks[1])))
    (for_fa, for_fb, for_beta, *rest), for_grads = second_derivative(forward, inputs, grad_outputs, wanted)
    for_masks = iter(rest)
    masks = tuple(next(for_masks) if w else None for w in weighs)
    for_beta = None if for_beta is None else sum_to_beta(for_beta, beta)
    return (*for_grads, for_fa, for_fb, *masks, for_beta, *(None,) * 12)


if _library.is_available():
    torch.library.register_fake("cosegflow::match_both", _fake)
    torch.library.register_fake("cosegflow::match_both_backward", _fake_backward)
    _transforms.register("match_both", _setup, _backward)
    _transforms.register("match_both_backward", _setup_backward, _double_backward)
    autocast_features("match_both")

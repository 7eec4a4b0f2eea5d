"""match: correlation and mask-aware soft argmax in one pass, without the 4D volume."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from cosegflow import _library, reference
from cosegflow.ops import _checks, _transforms
from cosegflow.ops._autocast import autocast_dtype, autocast_features, without_autocast
from cosegflow.ops._precision import float32_precision
from cosegflow.ops._registration import fake_matches, second_derivative, sum_to_beta
from cosegflow.ops._trust import PORTABLE, SIMPLE, choose
from cosegflow.types import IndexedMatches, Matches


@overload
def match(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 50.0,
    normalize: bool = True,
    kernel_sigma: float | None = None,
    return_index: Literal[False] = False,
) -> Matches: ...
@overload
def match(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 50.0,
    normalize: bool = True,
    kernel_sigma: float | None = None,
    return_index: Literal[True],
) -> IndexedMatches: ...
@overload
def match(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 50.0,
    normalize: bool = True,
    kernel_sigma: float | None = None,
    return_index: bool,
) -> Matches | IndexedMatches: ...
def match(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 50.0,
    normalize: bool = True,
    kernel_sigma: float | None = None,
    return_index: bool = False,
) -> Matches | IndexedMatches:
    """Where each pixel of a lies in b: soft argmax of the features' correlation.

    s_ij = <fa_i, fb_j> (of unit vectors with ``normalize``), p_ij = m_j exp(beta s_ij) / sum_k m_k exp(beta s_ik), and
    flow_i = sum_j p_ij q_j - p_i with q_j the pixel of b. The soft argmax is that of Kendall et al. 2017 (arXiv
    1703.04309, equation 1); masks exclude exactly. Neither the volume nor the probabilities are stored, forward or
    backward: memory is linear in Ha*Wa + Hb*Wb plus one bounded workspace, and the work is proportional to
    |mask_a > 0| x |mask_b > 0|.

    Args:
        fa: (B, C, Ha, Wa), float16, bfloat16, float32 or float64.
        fb: (B, C, Hb, Wb), the dtype of ``fa``; the size may differ.
        mask_a: gates the sources: (B, Ha, Wa) or (B, 1, Ha, Wa), floating or bool; where it is not > 0 the result is
            that of "nothing matches". No gradient.
        mask_b: weighs the targets: (B, Hb, Wb) or (B, 1, Hb, Wb), floating or bool, normally in [0, 1]. 0, negative and
            NaN exclude; +inf counts as the largest finite value.
        beta: inverse temperature: a number, a 0-dim tensor or one value per image (B,); may be 0 or negative.
        normalize: divide each feature by max(its L2 norm over C, 1e-12), fused.
        kernel_sigma: None, or the standard deviation in pixels of the window of the kernel soft argmax (SFNet, Lee et
            al. 2019, arXiv 1904.01810): k_ij max(s_ij, 0) stands for s_ij, k being a Gaussian around the most probable
            target of the plain distribution, whose position carries no gradient.
        return_index: also return the most probable target of the plain distribution (the lowest on ties) and its score.

    Returns:
        `Matches`, float32 (float64 for float64 features): ``flow`` (B, 2, Ha, Wa) in pixels, ``lse`` (B, Ha, Wa),
        ``confidence`` (B, Ha, Wa) in [0, 1]. Where nothing matches: flow 0, lse -inf, confidence 0, all gradients 0.
        Gradients flow from ``flow`` and ``lse`` to ``fa``, ``fb``, ``mask_b`` and ``beta``.
        With ``return_index`` `IndexedMatches`, which adds ``index`` (B, Ha, Wa) int64, the flat position y * Wb + x (-1
        where nothing matches), and ``score`` (B, Ha, Wa), its s_ij (-inf); neither carries a gradient.

    Raises:
        TypeError: a dtype that is not floating (or bool, for masks), or two dtypes of features.
        ValueError: a wrong shape or device, or a ``beta`` or ``kernel_sigma`` that is not finite.
    """
    _checks.require_pair(fa, fb)
    _checks.require_flag("normalize", normalize)
    batch = fa.shape[0]
    mask_a = _checks.as_mask("mask_a", mask_a, batch, fa.shape[2:], "fa", fa)
    mask_b = _checks.as_mask("mask_b", mask_b, batch, fb.shape[2:], "fa", fa)
    beta = _checks.as_beta(beta, batch, "fa", fa)
    sigma = _checks.as_sigma(kernel_sigma)
    _checks.require_flag("return_index", return_index)
    _library.require(fa.device)
    dtype = autocast_dtype(fa)
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    if _transforms.reference_wanted():
        with without_autocast(fa):
            result = reference.match_indexed(fa.to(dtype), fb.to(dtype), mask_a, mask_b, beta, normalize, sigma)
    else:
        precision = float32_precision(dtype, fa.device)
        kernels = choose("match", dtype, fa.device, precision)
        result = _transforms.run(
            "match", fa, fb, mask_a, mask_b, beta, normalize, kernels == SIMPLE, sigma, return_index, precision,
            kernels == PORTABLE,
        )  # fmt: skip
    return IndexedMatches(*result) if return_index else Matches(*result[:3])


def _fake(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    normalize: bool = True,
    simple: bool = False,
    kernel_sigma: float = 0.0,
    return_index: bool = False,
    precision: int = 0,
    portable: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return fake_matches(fa, (fa.shape[0], *fa.shape[2:]), return_index or kernel_sigma > 0)


def _fake_backward(
    grad_flow: Tensor | None,
    grad_lse: Tensor | None,
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    flow: Tensor,
    lse: Tensor,
    normalize: bool,
    simple: bool,
    need_fa: bool,
    need_fb: bool,
    need_mask_b: bool,
    need_beta: bool,
    index: Tensor | None = None,
    kernel_sigma: float = 0.0,
    portable: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_mask_b = mask_b.new_empty(mask_b.shape) if need_mask_b and mask_b is not None else flow.new_empty(0)
    return (
        fa.new_empty(fa.shape if need_fa else (0,)),
        fb.new_empty(fb.shape if need_fb else (0,)),
        grad_mask_b,
        flow.new_empty(fa.shape[:1] if need_beta else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    fa, fb, mask_a, mask_b, beta, ctx.normalize, ctx.simple, ctx.sigma, _, _, ctx.portable = inputs
    flow, lse, confidence, index, score = output
    ctx.save_for_backward(fa, fb, mask_a, mask_b, beta, flow, lse, index if ctx.sigma > 0 else None)
    ctx.mark_non_differentiable(confidence, index, score)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_flow: Tensor | None, grad_lse: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    fa, fb, mask_a, mask_b, beta, flow, lse, index = ctx.saved_tensors
    need_fa, need_fb, _, need_mask_b, need_beta = ctx.needs_input_grad[:5]
    if grad_flow is None and grad_lse is None:
        return (None,) * 11
    need_mask_b = need_mask_b and mask_b is not None
    grads = _transforms.run(
        "match_backward",
        grad_flow,
        grad_lse,
        fa,
        fb,
        mask_a,
        mask_b,
        beta,
        flow,
        lse,
        ctx.normalize,
        ctx.simple,
        need_fa,
        need_fb,
        need_mask_b,
        need_beta,
        index,
        ctx.sigma,
        ctx.portable,
    )
    return (
        grads[0] if need_fa else None,
        grads[1] if need_fb else None,
        None,
        grads[2] if need_mask_b else None,
        sum_to_beta(grads[3], beta) if need_beta else None,
        *(None,) * 6,
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_flow, grad_lse, fa, fb, mask_a, mask_b, beta, _, _, ctx.normalize, _, *ctx.need, _, ctx.sigma, _ = inputs
    ctx.save_for_backward(grad_flow, grad_lse, fa, fb, mask_a, mask_b, beta)
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_flow, grad_lse, fa, fb, mask_a, mask_b, beta = ctx.saved_tensors
    weighs = mask_b is not None and mask_b.is_floating_point()
    batch = fa.shape[0]

    def forward(fa: Tensor, fb: Tensor, beta: Tensor, *mask: Tensor) -> tuple[Tensor, Tensor]:
        return reference.match(fa, fb, mask_a, mask[0] if weighs else mask_b, beta, ctx.normalize, ctx.sigma)[:2]

    inputs = (fa, fb, beta.expand(batch), *((mask_b,) if weighs else ()))  # the backward gives beta's per image
    gg_fa, gg_fb, gg_mask, gg_beta = (gg if need else None for gg, need in zip(grad_grads, ctx.need, strict=True))
    wanted = (gg_fa, gg_fb, gg_beta, *((gg_mask,) if weighs else ()))
    for_inputs, for_grads = second_derivative(forward, inputs, (grad_flow, grad_lse), wanted)
    for_beta = None if for_inputs[2] is None else sum_to_beta(for_inputs[2], beta)
    for_mask = for_inputs[3] if weighs else None
    return (*for_grads, for_inputs[0], for_inputs[1], None, for_mask, for_beta, *(None,) * 11)


if _library.is_available():
    torch.library.register_fake("cosegflow::match", _fake)
    torch.library.register_fake("cosegflow::match_backward", _fake_backward)
    _transforms.register("match", _setup, _backward)
    _transforms.register("match_backward", _setup_backward, _double_backward)
    autocast_features("match")

"""soft_argmax: the expected position over a 4D correlation volume, with masks that exclude exactly."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from cosegflow import _library, reference
from cosegflow.ops import _checks, _transforms
from cosegflow.ops._autocast import without_autocast
from cosegflow.ops._registration import fake_matches, second_derivative, sum_to_beta
from cosegflow.ops._trust import SIMPLE, choose
from cosegflow.types import IndexedMatches, Matches


@overload
def soft_argmax(
    corr: Tensor,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 1.0,
    kernel_sigma: float | None = None,
    return_index: Literal[False] = False,
) -> Matches: ...
@overload
def soft_argmax(
    corr: Tensor,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 1.0,
    kernel_sigma: float | None = None,
    return_index: Literal[True],
) -> IndexedMatches: ...
@overload
def soft_argmax(
    corr: Tensor,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 1.0,
    kernel_sigma: float | None = None,
    return_index: bool,
) -> Matches | IndexedMatches: ...
def soft_argmax(
    corr: Tensor,
    mask_b: Tensor | None = None,
    *,
    beta: float | Tensor = 1.0,
    kernel_sigma: float | None = None,
    return_index: bool = False,
) -> Matches | IndexedMatches:
    """The expected target of each source pixel under the softmax of its scores.

    p_ij = m_j exp(beta corr_ij) / sum_k m_k exp(beta corr_ik); flow_i = sum_j p_ij q_j - p_i (Kendall et al. 2017,
    arXiv 1703.04309, equation 1). The volume is read once forward; backward it is read once and its gradient written
    once. Entries of excluded targets are never read into a result.

    Args:
        corr: (B, Ha, Wa, Hb, Wb), float16, bfloat16, float32 or float64.
        mask_b: weights of the targets: (B, Hb, Wb) or (B, 1, Hb, Wb), floating or bool, normally in [0, 1]. 0, negative
            and NaN exclude; +inf counts as the largest finite value.
        beta: inverse temperature: a number, a 0-dim tensor or one value per image (B,); may be 0 or negative.
        kernel_sigma: None, or the standard deviation in pixels of the window of the kernel soft argmax (SFNet, Lee et
            al. 2019, arXiv 1904.01810): k_ij max(s_ij, 0) stands for s_ij, k being a Gaussian around the most probable
            target of the plain distribution, whose position carries no gradient.
        return_index: also return the most probable target of the plain distribution (the lowest on ties) and its score.

    Returns:
        `Matches`, float32 (float64 for float64 volumes). Where nothing matches: flow 0, lse -inf, confidence 0, all
        gradients 0. Gradients flow from ``flow`` and ``lse`` to ``corr``, ``mask_b`` and ``beta``.
        With ``return_index`` `IndexedMatches`, which adds ``index`` (B, Ha, Wa) int64, the flat position y * Wb + x (-1
        where nothing matches), and ``score`` (B, Ha, Wa), its entry of ``corr`` (-inf); neither carries a gradient.

    Raises:
        TypeError: a dtype that is not floating (or bool, for the mask).
        ValueError: a wrong shape or device, or a ``beta`` or ``kernel_sigma`` that is not finite.
    """
    _checks.require_tensor("corr", corr)
    _checks.require_dense("corr", corr)
    if corr.dtype not in _checks.FLOATING:
        raise TypeError(f"corr must be float16, bfloat16, float32 or float64, got {corr.dtype}")
    if corr.dim() != 5 or any(size == 0 for size in corr.shape[1:]):
        raise ValueError(f"corr must have shape (B, Ha, Wa, Hb, Wb) without empty sides, got {tuple(corr.shape)}")
    batch = corr.shape[0]
    mask_b = _checks.as_mask("mask_b", mask_b, batch, corr.shape[3:], "corr", corr)
    beta = _checks.as_beta(beta, batch, "corr", corr)
    sigma = _checks.as_sigma(kernel_sigma)
    _checks.require_flag("return_index", return_index)
    _library.require(corr.device)
    result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    if _transforms.reference_wanted():
        with without_autocast(corr):
            result = reference.soft_argmax_indexed(corr, mask_b, beta, sigma)
    else:
        simple = choose("soft_argmax", corr.dtype, corr.device) == SIMPLE
        result = _transforms.run("soft_argmax", corr, mask_b, beta, simple, sigma, return_index)
    return IndexedMatches(*result) if return_index else Matches(*result[:3])


def _fake(
    corr: Tensor,
    mask_b: Tensor | None,
    beta: Tensor,
    simple: bool = False,
    kernel_sigma: float = 0.0,
    return_index: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return fake_matches(corr, corr.shape[:3], return_index or kernel_sigma > 0)


def _fake_backward(
    grad_flow: Tensor | None,
    grad_lse: Tensor | None,
    corr: Tensor,
    mask_b: Tensor | None,
    beta: Tensor,
    flow: Tensor,
    lse: Tensor,
    simple: bool,
    need_corr: bool,
    need_mask_b: bool,
    need_beta: bool,
    index: Tensor | None = None,
    kernel_sigma: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_mask_b = mask_b.new_empty(mask_b.shape) if need_mask_b and mask_b is not None else flow.new_empty(0)
    return (
        corr.new_empty(corr.shape if need_corr else (0,)),
        grad_mask_b,
        flow.new_empty(corr.shape[:1] if need_beta else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    corr, mask_b, beta, ctx.simple, ctx.sigma, _ = inputs
    flow, lse, confidence, index, score = output
    ctx.save_for_backward(corr, mask_b, beta, flow, lse, index if ctx.sigma > 0 else None)
    ctx.mark_non_differentiable(confidence, index, score)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, grad_flow: Tensor | None, grad_lse: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, ...]:
    corr, mask_b, beta, flow, lse, index = ctx.saved_tensors
    need_corr, need_mask_b, need_beta = ctx.needs_input_grad[:3]
    if grad_flow is None and grad_lse is None:
        return (None,) * 6
    need_mask_b = need_mask_b and mask_b is not None
    grads = _transforms.run(
        "soft_argmax_backward", grad_flow, grad_lse, corr, mask_b, beta, flow, lse, ctx.simple, need_corr, need_mask_b,
        need_beta, index, ctx.sigma,
    )  # fmt: skip
    return (
        grads[0] if need_corr else None,
        grads[1] if need_mask_b else None,
        sum_to_beta(grads[2], beta) if need_beta else None,
        *(None,) * 3,
    )


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_flow, grad_lse, corr, mask_b, beta, _, _, _, *ctx.need, _, ctx.sigma = inputs
    ctx.save_for_backward(grad_flow, grad_lse, corr, mask_b, beta)
    ctx.set_materialize_grads(False)


def _double_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_flow, grad_lse, corr, mask_b, beta = ctx.saved_tensors
    weighs = mask_b is not None and mask_b.is_floating_point()

    def forward(corr: Tensor, beta: Tensor, *mask: Tensor) -> tuple[Tensor, Tensor]:
        return reference.soft_argmax(corr, mask[0] if weighs else mask_b, beta, ctx.sigma)[:2]

    inputs = (corr, beta.expand(corr.shape[0]), *((mask_b,) if weighs else ()))  # the backward gives beta's per image
    gg_corr, gg_mask, gg_beta = (gg if need else None for gg, need in zip(grad_grads, ctx.need, strict=True))
    wanted = (gg_corr, gg_beta, *((gg_mask,) if weighs else ()))
    for_inputs, for_grads = second_derivative(forward, inputs, (grad_flow, grad_lse), wanted)
    for_beta = None if for_inputs[1] is None else sum_to_beta(for_inputs[1], beta)
    for_mask = for_inputs[2] if weighs else None
    return (*for_grads, for_inputs[0], for_mask, for_beta, *(None,) * 8)


if _library.is_available():
    torch.library.register_fake("cosegflow::soft_argmax", _fake)
    torch.library.register_fake("cosegflow::soft_argmax_backward", _fake_backward)
    _transforms.register("soft_argmax", _setup, _backward)
    _transforms.register("soft_argmax_backward", _setup_backward, _double_backward)

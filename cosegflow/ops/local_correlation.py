"""local_correlation: inner products of each feature with a window of features around its match."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosegflow import _library, reference
from cosegflow.ops import _checks, _transforms
from cosegflow.ops._autocast import autocast_dtype, autocast_features, without_autocast
from cosegflow.ops._registration import second_derivative
from cosegflow.ops._trust import SIMPLE, choose

MAX_RADIUS = 16383  # of the kernels: the window's side squared stays within 31 bits


def local_correlation(
    fa: Tensor, fb: Tensor, radius: int, flow: Tensor | None = None, *, normalize: bool = False
) -> Tensor:
    """out[b, k, p] = <fa[b, :, p], fb[b, :, p + flow(p) + d_k]> for the (2r+1)^2 offsets d_k of a window.

    The offsets run row by row from (-r, -r) to (r, r): ``k = (dy + r) * (2 * r + 1) + dx + r``. Without flow it is the
    correlation layer of FlowNet (Dosovitskiy et al. 2015, arXiv 1504.06852, equation 1) for patches of one pixel; with
    flow it is the lookup of RAFT (Teed and Deng 2020, arXiv 2003.12039, section 3.2) at one level, without its volume.
    Features between pixels are bilinear, outside of ``fb`` they are 0. Nothing of the size of the window times the
    channels is stored.

    Args:
        fa: (B, C, Ha, Wa), float16, bfloat16, float32 or float64.
        fb: (B, C, Hb, Wb), the dtype of ``fa``; the size may differ.
        radius: r >= 0, pixels of ``fb``.
        flow: (B, 2, Ha, Wa), floating, pixels of ``fb``; channel 0 is x (to the right), channel 1 is y (down).
            None means no displacement. A non-finite flow counts as outside.
        normalize: divide each feature by max(its L2 norm over C, 1e-12), fused.

    Returns:
        (B, (2r+1)^2, Ha, Wa) in the dtype of the features, accumulated in float32 (float64 for float64). Gradients flow
        to ``fa``, ``fb`` and ``flow``.

    Raises:
        TypeError: a dtype that is not floating, two dtypes, or a radius that is no integer.
        ValueError: a wrong shape or device, or a negative radius.
    """
    _checks.require_pair(fa, fb)
    radius = _as_radius(radius)
    _checks.require_flag("normalize", normalize)
    if flow is not None:
        _checks.require_features("flow", flow, "(B, 2, Ha, Wa)")
        if flow.shape != (fa.shape[0], 2, *fa.shape[2:]):
            raise _checks.wrong_flow("flow", flow, f"{(fa.shape[0], 2, *fa.shape[2:])} for this fa")
        _checks.require_device("flow", flow, "fa", fa)
    _library.require(fa.device)
    dtype = autocast_dtype(fa)
    if flow is not None:
        flow = flow.to(reference.accumulate_dtype(dtype))
    if _transforms.reference_wanted():
        with without_autocast(fa):
            return reference.local_correlation(fa.to(dtype), fb.to(dtype), radius, flow, normalize)
    simple = choose("local_correlation", dtype, fa.device) == SIMPLE
    return _transforms.run("local_correlation", fa, fb, flow, radius, normalize, simple)


def _as_radius(radius: int) -> int:
    """The radius as an int; raises unless it is an integer in 0 .. MAX_RADIUS."""
    if isinstance(radius, bool) or not isinstance(radius, (int, np.integer)):
        raise TypeError(f"radius must be an integer, got {type(radius).__name__}")
    if radius < 0 or radius > MAX_RADIUS:
        raise ValueError(f"radius must be in 0 .. {MAX_RADIUS}, got {radius}")
    return int(radius)


def _fake(
    fa: Tensor, fb: Tensor, flow: Tensor | None, radius: int, normalize: bool = False, simple: bool = False
) -> Tensor:
    return fa.new_empty((fa.shape[0], (2 * radius + 1) ** 2, *fa.shape[2:]))


def _fake_backward(
    grad_out: Tensor,
    fa: Tensor,
    fb: Tensor,
    flow: Tensor | None,
    radius: int,
    normalize: bool,
    deterministic: bool,
    need_fa: bool,
    need_fb: bool,
    need_flow: bool,
    simple: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        fa.new_empty(fa.shape if need_fa else (0,)),
        fb.new_empty(fb.shape if need_fb else (0,)),
        fa.new_empty(
            flow.shape if need_flow and flow is not None else (0,), dtype=reference.accumulate_dtype(fa.dtype)
        ),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    fa, fb, flow, ctx.radius, ctx.normalize, ctx.simple = inputs
    ctx.save_for_backward(fa, fb, flow)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    fa, fb, flow = ctx.saved_tensors
    need = ctx.needs_input_grad[:3]
    deterministic = torch.are_deterministic_algorithms_enabled()
    grads = _transforms.run(
        "local_correlation_backward",
        grad_out,
        fa,
        fb,
        flow,
        ctx.radius,
        ctx.normalize,
        deterministic,
        *need,
        ctx.simple,
    )
    return (*(g if n else None for g, n in zip(grads, need, strict=True)), None, None, None)


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_out, fa, fb, flow, ctx.radius, ctx.normalize, _, *ctx.need, _ = inputs
    ctx.save_for_backward(grad_out, fa, fb, flow)


def _double_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_out, fa, fb, flow = ctx.saved_tensors

    def forward(fa: Tensor, fb: Tensor, flow: Tensor | None = None) -> tuple[Tensor]:
        return (reference.local_correlation(fa, fb, ctx.radius, flow, ctx.normalize),)

    wanted = [gg if need else None for gg, need in zip(grad_grads, ctx.need, strict=True)]
    inputs = (fa, fb) if flow is None else (fa, fb, flow)
    for_inputs, for_grads = second_derivative(forward, inputs, (grad_out,), wanted[: len(inputs)])
    for_flow = None if flow is None else for_inputs[2]
    return (*for_grads, *for_inputs[:2], for_flow, *(None,) * 7)


if _library.is_available():
    torch.library.register_fake("cosegflow::local_correlation", _fake)
    torch.library.register_fake("cosegflow::local_correlation_backward", _fake_backward)
    _transforms.register("local_correlation", _setup, _backward)
    _transforms.register("local_correlation_backward", _setup_backward, _double_backward)
    autocast_features("local_correlation")

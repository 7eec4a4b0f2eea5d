"""warp: an image or feature map seen through a flow."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from cosegflow import _library, reference
from cosegflow.ops import _checks, _transforms
from cosegflow.ops._autocast import without_autocast
from cosegflow.ops._registration import second_derivative
from cosegflow.ops._trust import SIMPLE, choose

Mode = Literal["bilinear", "nearest"]
Padding = Literal["zeros", "border"]


@overload
def warp(
    x: Tensor, flow: Tensor, *, mode: Mode = ..., padding: Padding = ..., return_valid: Literal[False] = ...
) -> Tensor: ...
@overload
def warp(
    x: Tensor, flow: Tensor, *, mode: Mode = ..., padding: Padding = ..., return_valid: Literal[True]
) -> tuple[Tensor, Tensor]: ...
def warp(
    x: Tensor,
    flow: Tensor,
    *,
    mode: Mode = "bilinear",
    padding: Padding = "zeros",
    return_valid: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Samples ``x`` at ``p + flow(p)``: with ``flow = flow_ab``, ``warp(x_b, flow_ab)`` is b seen in a's frame.

    out[b, c, i, j] = x[b, c] interpolated at column ``j + flow[b, 0, i, j]`` and row ``i + flow[b, 1, i, j]``; pixel
    centres are integers (`grid_sample` with ``align_corners=True``, in pixels). This is the spatial transformer of
    Jaderberg et al. 2015 (arXiv 1506.02025, equation 5). Coordinates are float32 whatever the dtype of ``x``
    (float64 for float64). A non-finite flow counts as outside.

    Args:
        x: (B, C, H, W), float16, bfloat16, float32 or float64.
        flow: (B, 2, Ho, Wo), floating, pixels; channel 0 is x (to the right), channel 1 is y (down). The size may
            differ from that of ``x``.
        mode: ``"bilinear"`` or ``"nearest"`` (halves round to even; no gradient to the flow).
        padding: ``"zeros"`` outside the image, or ``"border"``: the nearest pixel of the image.
        return_valid: also return where ``p + flow(p)`` lies within [0, W-1] x [0, H-1].

    Returns:
        (B, C, Ho, Wo) in the dtype of ``x``; with ``return_valid`` a tuple of that and a bool (B, Ho, Wo).

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape, device, mode or padding.
    """
    _checks.require_features("x", x)
    _checks.require_features("flow", flow, "(B, 2, Ho, Wo)")
    if flow.shape[1] != 2 or flow.shape[0] != x.shape[0]:
        raise _checks.wrong_flow("flow", flow, f"({x.shape[0]}, 2, Ho, Wo) for this x")
    _checks.require_device("flow", flow, "x", x)
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode must be 'bilinear' or 'nearest', got {mode!r}")
    if padding not in ("zeros", "border"):
        raise ValueError(f"padding must be 'zeros' or 'border', got {padding!r}")
    _library.require(x.device)
    if _transforms.reference_wanted():
        with without_autocast(x):
            out, valid = reference.warp(x, flow, mode, padding)
    else:
        simple = choose("warp", x.dtype, x.device) == SIMPLE
        out, valid = _transforms.run("warp", x, flow.to(reference.accumulate_dtype(x.dtype)), mode, padding, simple)
    return (out, valid) if return_valid else out


def _empty_like(x: Tensor, height: int, width: int) -> Tensor:
    """Contiguous; on CUDA in the layout of x (csrc/torch/warp_torch.cpp)."""
    last = x.is_cuda and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    result = x.new_empty(*x.shape[:2], height, width)
    return result.contiguous(memory_format=torch.channels_last) if last else result


def _fake(
    x: Tensor, flow: Tensor, mode: str = "bilinear", padding: str = "zeros", simple: bool = False
) -> tuple[Tensor, Tensor]:
    ho, wo = flow.shape[2:]
    return _empty_like(x, ho, wo), x.new_empty(x.shape[0], ho, wo, dtype=torch.bool)


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    flow: Tensor,
    mode: str,
    padding: str,
    need_x: bool,
    need_flow: bool,
    deterministic: bool,
    simple: bool = False,
) -> tuple[Tensor, Tensor]:
    grad_x = _empty_like(x, *x.shape[2:]) if need_x else x.new_empty(0)
    return grad_x, flow.new_empty(flow.shape if need_flow else (0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, flow, ctx.mode, ctx.padding, ctx.simple = inputs
    ctx.save_for_backward(x, flow)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, flow = ctx.saved_tensors
    need_x, need_flow = ctx.needs_input_grad[:2]
    if grad_out is None:
        return None, None, None, None, None
    deterministic = torch.are_deterministic_algorithms_enabled()
    grad_x, grad_flow = _transforms.run(
        "warp_backward", grad_out, x, flow, ctx.mode, ctx.padding, need_x, need_flow, deterministic, ctx.simple
    )
    return grad_x if need_x else None, grad_flow if need_flow else None, None, None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_out, x, flow, ctx.mode, ctx.padding, ctx.need_x, ctx.need_flow, _, _ = inputs
    ctx.save_for_backward(grad_out, x, flow)


def _double_backward(ctx: Any, gg_x: Tensor | None, gg_flow: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_out, x, flow = ctx.saved_tensors
    inputs, outputs = second_derivative(
        lambda x, flow: (reference.warp(x, flow, ctx.mode, ctx.padding)[0],),
        (x, flow),
        (grad_out,),
        (gg_x if ctx.need_x else None, gg_flow if ctx.need_flow else None),
    )
    return outputs[0], inputs[0], inputs[1], *(None,) * 6


if _library.is_available():
    torch.library.register_fake("cosegflow::warp", _fake)
    torch.library.register_fake("cosegflow::warp_backward", _fake_backward)
    _transforms.register("warp", _setup, _backward)
    _transforms.register("warp_backward", _setup_backward, _double_backward)

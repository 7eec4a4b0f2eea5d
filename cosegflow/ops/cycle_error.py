"""cycle_error: how far a pixel of a ends from where it began, carried to b and back."""

from typing import Any

import torch
from torch import Tensor

from cosegflow import _library, reference
from cosegflow.ops import _checks, _transforms
from cosegflow.ops._autocast import without_autocast
from cosegflow.ops._registration import second_derivative
from cosegflow.ops._trust import SIMPLE, choose
from cosegflow.types import CycleError


def cycle_error(flow_ab: Tensor, flow_ba: Tensor) -> CycleError:
    """The length of ``flow_ab(p) + flow_ba(p + flow_ab(p))``: 0 where b's flow leads back to where a's came from.

    ``flow_ba`` is read with bilinear weights. One pass over the pixels: the flow carried back is not stored. This is
    the left-hand side of the forward-backward check of Sundaram et al. 2010 (ECCV) and Meister et al. 2018 (arXiv
    1711.07837, section 3.2). Gradients reach both flows; that of ``flow_ab`` includes the derivative through the
    position where ``flow_ba`` is read. Where the length is 0 its gradient is 0.

    Args:
        flow_ab: (B, 2, Ha, Wa), float16, bfloat16, float32 or float64, pixels of b minus pixels of a.
        flow_ba: (B, 2, Hb, Wb), floating; the size may differ. Of two dtypes, both flows are taken in the wider.

    Returns:
        `CycleError`: ``error`` (B, Ha, Wa), pixels, float32 (float64 for float64 flows), and ``valid`` (B, Ha, Wa)
        bool. Pixels whose ``p + flow_ab(p)`` leaves [0, Wb-1] x [0, Hb-1], or where a flow is not finite, are not
        valid: error 0 and gradient 0, even where the incoming gradient is NaN.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a wrong shape or device.
    """
    _checks.require_features("flow_ab", flow_ab, "(B, 2, Ha, Wa)")
    _checks.require_features("flow_ba", flow_ba, "(B, 2, Hb, Wb)")
    if flow_ab.shape[1] != 2:
        raise _checks.wrong_flow("flow_ab", flow_ab, "(B, 2, Ha, Wa)")
    if flow_ba.shape[1] != 2 or flow_ba.shape[0] != flow_ab.shape[0]:
        raise _checks.wrong_flow("flow_ba", flow_ba, f"({flow_ab.shape[0]}, 2, Hb, Wb)")
    _checks.require_device("flow_ba", flow_ba, "flow_ab", flow_ab)
    _library.require(flow_ab.device)
    dtype = torch.promote_types(flow_ab.dtype, flow_ba.dtype)
    ab, ba = flow_ab.to(dtype), flow_ba.to(dtype)
    if _transforms.reference_wanted():
        with without_autocast(ab):
            return reference.cycle_error(ab, ba)
    simple = choose("cycle_error", dtype, ab.device) == SIMPLE
    return CycleError(*_transforms.run("cycle_error", ab, ba, simple))


def _fake(flow_ab: Tensor, flow_ba: Tensor, simple: bool = False) -> tuple[Tensor, Tensor]:
    shape = (flow_ab.shape[0], *flow_ab.shape[2:])
    error = flow_ab.new_empty(shape, dtype=reference.accumulate_dtype(flow_ab.dtype))
    return error, flow_ab.new_empty(shape, dtype=torch.bool)


def _fake_backward(
    grad_error: Tensor,
    flow_ab: Tensor,
    flow_ba: Tensor,
    need_ab: bool,
    need_ba: bool,
    deterministic: bool,
    simple: bool = False,
) -> tuple[Tensor, Tensor]:
    return flow_ab.new_empty(flow_ab.shape if need_ab else (0,)), flow_ba.new_empty(flow_ba.shape if need_ba else (0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *flows, ctx.simple = inputs
    ctx.save_for_backward(*flows)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_error: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    flow_ab, flow_ba = ctx.saved_tensors
    need_ab, need_ba = ctx.needs_input_grad[:2]
    if grad_error is None:
        return None, None, None
    deterministic = torch.are_deterministic_algorithms_enabled()
    grad_ab, grad_ba = _transforms.run(
        "cycle_error_backward", grad_error, flow_ab, flow_ba, need_ab, need_ba, deterministic, ctx.simple
    )
    return grad_ab if need_ab else None, grad_ba if need_ba else None, None


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_error, flow_ab, flow_ba, ctx.need_ab, ctx.need_ba, _, _ = inputs
    ctx.save_for_backward(grad_error, flow_ab, flow_ba)


def _double_backward(ctx: Any, gg_ab: Tensor | None, gg_ba: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_error, flow_ab, flow_ba = ctx.saved_tensors
    inputs, outputs = second_derivative(
        lambda ab, ba: (reference.cycle_error(ab, ba).error,),
        (flow_ab, flow_ba),
        (grad_error,),
        (gg_ab if ctx.need_ab else None, gg_ba if ctx.need_ba else None),
    )
    return outputs[0], inputs[0], inputs[1], *(None,) * 4


if _library.is_available():
    torch.library.register_fake("cosegflow::cycle_error", _fake)
    torch.library.register_fake("cosegflow::cycle_error_backward", _fake_backward)
    _transforms.register("cycle_error", _setup, _backward)
    _transforms.register("cycle_error_backward", _setup_backward, _double_backward)

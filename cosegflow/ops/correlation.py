"""correlation: the 4D volume of inner products of all pairs of features."""

from typing import Any

import torch
from torch import Tensor

from cosegflow import _library, reference
from cosegflow.ops import _checks, _transforms
from cosegflow.ops._autocast import autocast_dtype, autocast_features, without_autocast
from cosegflow.ops._precision import float32_precision
from cosegflow.ops._registration import second_derivative
from cosegflow.ops._trust import PORTABLE, SIMPLE, choose


def correlation(fa: Tensor, fb: Tensor, *, normalize: bool = False, relu: bool = False) -> Tensor:
    """corr[b, i, j, k, l] = <fa[b, :, i, j], fb[b, :, k, l]>.

    With ``normalize`` and ``relu`` this is the correlation layer of Rocco et al. 2017 (arXiv 1703.05593, equation 1)
    before its normalisation over positions. `match` gives the soft argmax of it without storing it.

    Args:
        fa: (B, C, Ha, Wa), float16, bfloat16, float32 or float64.
        fb: (B, C, Hb, Wb), the dtype of ``fa``; the size may differ.
        normalize: divide each feature by max(its L2 norm over C, 1e-12), fused.
        relu: clip the result at 0, fused.

    Returns:
        (B, Ha, Wa, Hb, Wb) in the dtype of the features, accumulated in float32 (float64 for float64). On CUDA float32
        products follow ``torch.get_float32_matmul_precision()``.

    Raises:
        TypeError: a dtype that is not floating, or two dtypes.
        ValueError: a wrong shape or device.
    """
    _checks.require_pair(fa, fb)
    _checks.require_flag("normalize", normalize)
    _checks.require_flag("relu", relu)
    _library.require(fa.device)
    dtype = autocast_dtype(fa)
    if _transforms.reference_wanted():
        with without_autocast(fa):
            return reference.correlation(fa.to(dtype), fb.to(dtype), normalize, relu)
    precision = float32_precision(dtype, fa.device)
    kernels = choose("correlation", dtype, fa.device, precision)
    return _transforms.run("correlation", fa, fb, normalize, relu, kernels == SIMPLE, precision, kernels == PORTABLE)


def _fake(
    fa: Tensor,
    fb: Tensor,
    normalize: bool = False,
    relu: bool = False,
    simple: bool = False,
    precision: int = 0,
    portable: bool = False,
) -> Tensor:
    return fa.new_empty((fa.shape[0], *fa.shape[2:], *fb.shape[2:]))


def _fake_backward(
    grad_corr: Tensor,
    fa: Tensor,
    fb: Tensor,
    corr: Tensor | None,
    normalize: bool,
    relu: bool,
    simple: bool,
    need_fa: bool,
    need_fb: bool,
    portable: bool = False,
) -> tuple[Tensor, Tensor]:
    return fa.new_empty(fa.shape if need_fa else (0,)), fb.new_empty(fb.shape if need_fb else (0,))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    fa, fb, ctx.normalize, ctx.relu, ctx.simple, _, ctx.portable = inputs
    ctx.save_for_backward(fa, fb, output if ctx.relu else None)


def _backward(ctx: Any, grad_corr: Tensor) -> tuple[Tensor | None, ...]:
    fa, fb, corr = ctx.saved_tensors
    need_fa, need_fb = ctx.needs_input_grad[:2]
    options = (ctx.normalize, ctx.relu, ctx.simple, need_fa, need_fb, ctx.portable)
    grad_fa, grad_fb = _transforms.run("correlation_backward", grad_corr, fa, fb, corr, *options)
    return grad_fa if need_fa else None, grad_fb if need_fb else None, *(None,) * 5


def _setup_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_corr, fa, fb, _, ctx.normalize, ctx.relu, _, *ctx.need, _ = inputs
    ctx.save_for_backward(grad_corr, fa, fb)


def _double_backward(ctx: Any, *grad_grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_corr, fa, fb = ctx.saved_tensors
    wanted = [gg if need else None for gg, need in zip(grad_grads, ctx.need, strict=True)]
    for_inputs, for_grads = second_derivative(
        lambda fa, fb: (reference.correlation(fa, fb, ctx.normalize, ctx.relu),), (fa, fb), (grad_corr,), wanted
    )
    return (*for_grads, *for_inputs, *(None,) * 7)


if _library.is_available():
    torch.library.register_fake("cosegflow::correlation", _fake)
    torch.library.register_fake("cosegflow::correlation_backward", _fake_backward)
    _transforms.register("correlation", _setup, _backward)
    _transforms.register("correlation_backward", _setup_backward, _double_backward)
    autocast_features("correlation")

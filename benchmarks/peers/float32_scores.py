"""Eager torch on half-precision inputs with what has to be exact in float32: our accuracy, in plain torch.

match: scores, probabilities and coordinates are float32, so the volume takes twice the memory. The product takes half
inputs and gives float32 (`out_dtype`), which torch has on CUDA only, without a derivative; its backward rounds the
gradient of the scores to half, as autocast would. warp: image and grid are float32, since grid_sample wants one dtype
and a half grid misses by pixels.
"""

from typing import Any

import torch
from torch import Tensor

from ..case import Case
from ..works.base import Function, Inputs
from .base import Peer, Unavailable
from .eager import log_mask, positions, rows, sample, to_flow, torch_version


def scores(bias: Tensor | None, a: Tensor, b: Tensor, beta: float) -> Tensor:
    """(B, n, m) float32 on CUDA: bias (B or 1, 1, m) + beta a b^T of half a (B, n, C) and b (B, m, C); no derivative.

    Into an output of its own: without one, torch copies the bias once more, also where there is none.
    """
    shape = (len(a), a.shape[1], b.shape[1])
    out = a.new_empty(shape, dtype=torch.float32)
    if bias is not None:
        out.copy_(bias.expand(shape))
    return torch.baddbmm(out, a, b.transpose(1, 2), torch.float32, beta=int(bias is not None), alpha=beta, out=out)


class _Scores(torch.autograd.Function):
    """`scores`, with gradients of a and b."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor | None, a: Tensor, b: Tensor, beta: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.beta = beta
        return scores(bias, a, b, beta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        grad = (grad * ctx.beta).to(a.dtype)
        return None, torch.bmm(grad, b), torch.bmm(grad.transpose(1, 2), a), None


def _match(case: Case, device: torch.device) -> Function:
    if case.dtype not in ("float16", "bfloat16"):
        raise Unavailable("only for half precision: elsewhere `eager` has such scores")
    if device.type != "cuda":
        raise Unavailable("torch has products with out_dtype on CUDA only")

    def match(inputs: Inputs) -> Tensor:
        a, b = rows(inputs["fa"]), rows(inputs["fb"])
        bias = log_mask(inputs, a) if "mask_b" in inputs else None
        p = _Scores.apply(bias, a, b, case.beta).softmax(-1)
        return to_flow(p @ positions(*case.b, p).expand(len(p), -1, -1), case, inputs)

    return match


def _warp(case: Case, device: torch.device) -> Function:
    if case.dtype not in ("float16", "bfloat16"):
        raise Unavailable("only for half precision: elsewhere `eager` has such a grid")
    return lambda inputs: sample(inputs["x"].float(), inputs["flow"]).to(inputs["x"].dtype)


PEER = Peer(
    name="eager-float32",
    summary="eager on half inputs with float32 scores (match) or a float32 grid (warp): our accuracy",
    works={"match": _match, "warp": _warp},
    version=torch_version,
)

"""Eager torch on half-precision features whose scores, probabilities and coordinates are float32.

This is what it costs plain torch to reach the accuracy of float32 scores: the volume takes twice the memory. The
product takes half inputs and gives float32 (`out_dtype`), which torch has on CUDA only, without a derivative; its
backward rounds the gradient of the scores to half, as autocast would.
"""

from typing import Any

import torch
from torch import Tensor

from ..case import Case
from ..works.base import Function, Inputs
from .base import Peer, Unavailable
from .eager import log_mask, positions, rows, to_flow, torch_version


class _Scores(torch.autograd.Function):
    """bias + alpha * a b^T in float32 of half a (B, N, C) and b (B, M, C)."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.alpha = alpha
        return torch.baddbmm(bias, a, b.transpose(1, 2), alpha=alpha, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        grad = (grad * ctx.alpha).to(a.dtype)
        return None, torch.bmm(grad, b), torch.bmm(grad.transpose(1, 2), a), None


def _build(case: Case, device: torch.device) -> Function:
    if case.dtype not in ("float16", "bfloat16"):
        raise Unavailable("only for half precision: elsewhere `eager` has such scores")
    if device.type != "cuda":
        raise Unavailable("torch has products with out_dtype on CUDA only")

    def match(inputs: Inputs) -> Tensor:
        a, b = rows(inputs["fa"]), rows(inputs["fb"])
        bias = log_mask(inputs, a).float().expand(len(a), a.shape[1], b.shape[1])
        p = _Scores.apply(bias, a, b, case.beta).softmax(-1)
        return to_flow(p @ positions(*case.b, p).expand(len(p), -1, -1), case, inputs)

    return match


PEER = Peer(
    name="eager-float32-scores",
    summary="eager on half features with float32 scores: our accuracy",
    works={"match": _build},
    version=torch_version,
)

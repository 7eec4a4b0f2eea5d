"""Plain torch that never stores the volume: some rows of a at a time, recomputed in the backward (as Liger does).

A chunk of scores is about as large as the inputs. Half features give float32 scores on CUDA (where torch has such
products), else half scores. Gradients of b and of values add up over the chunks in their own dtype. Masked rows of a
are computed like the others. This is the strongest form that needs no kernel.
"""

from typing import Any

import torch
from torch import Tensor

from ..case import Case
from ..works.base import Function, Inputs
from . import float32_scores
from .base import Peer
from .eager import log_mask, positions, rows, to_flow, torch_version


def _probabilities(bias: Tensor | None, a: Tensor, b: Tensor, beta: float) -> Tensor:
    """(B, n, Nb) of some rows."""
    if a.dtype in (torch.float16, torch.bfloat16) and a.is_cuda:
        return float32_scores.scores(bias, a, b, beta).softmax(-1)
    ignored = a.new_empty(1, 1, 1)  # with beta=0 nothing of it is read
    found = torch.baddbmm(
        ignored if bias is None else bias, a, b.transpose(1, 2), beta=int(bias is not None), alpha=beta
    )
    return found.softmax(-1)


class _Streamed(torch.autograd.Function):
    """softmax(bias + beta a b^T) v of a (B, Na, C), b (B, Nb, C), v (B, Nb, V)."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, v: Tensor, bias: Tensor | None, beta: float, step: int) -> Tensor:
        out = [_probabilities(bias, part, b, beta).to(v.dtype) @ v for part in a.split(step, 1)]
        result = torch.cat(out, 1)
        ctx.save_for_backward(a, b, v, bias, result)
        ctx.beta, ctx.step = beta, step
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, v, bias, out = ctx.saved_tensors
        grad_a, grad_b = torch.empty_like(a), torch.zeros_like(b)
        grad_v = torch.zeros_like(v) if ctx.needs_input_grad[2] else None
        for start in range(0, a.shape[1], ctx.step):
            part = slice(start, start + ctx.step)
            p = _probabilities(bias, a[:, part], b, ctx.beta)
            g = grad[:, part]
            if grad_v is not None:
                grad_v.baddbmm_(p.to(v.dtype).transpose(1, 2), g)
            delta = (g * out[:, part]).sum(-1, keepdim=True)
            p.mul_((g @ v.transpose(1, 2)).sub_(delta)).mul_(ctx.beta)
            p = p.to(a.dtype)
            grad_a[:, part] = p @ b
            grad_b.baddbmm_(p.transpose(1, 2), a[:, part])
        return grad_a, grad_b, grad_v, None, None, None


def _attend(case: Case, inputs: Inputs, values: Tensor) -> Tensor:
    """(B, Na, V)."""
    a, b = rows(inputs["fa"]).contiguous(), rows(inputs["fb"]).contiguous()
    bias = log_mask(inputs, a) if "mask_b" in inputs else None
    step = max(1, (a.numel() + b.numel()) // (len(a) * b.shape[1]))
    result: Tensor = _Streamed.apply(a, b, values, bias, case.beta, step)
    return result


def _match(case: Case, device: torch.device) -> Function:
    def call(inputs: Inputs) -> Tensor:
        dtype = torch.float64 if case.dtype == "float64" else torch.float32
        values = positions(*case.b, inputs["fb"].new_empty(0, dtype=dtype)).expand(case.batch, -1, -1)
        return to_flow(_attend(case, inputs, values), case, inputs)

    return call


def _transfer(case: Case, device: torch.device) -> Function:
    def call(inputs: Inputs) -> Tensor:
        out = _attend(case, inputs, inputs["values"].flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, case.a)
        return torch.where(inputs["mask_a"].unsqueeze(1) > 0, out, 0.0) if "mask_a" in inputs else out

    return call


PEER = Peer(
    name="chunked",
    summary="plain torch over chunks of rows, recomputed in the backward",
    works={"match": _match, "transfer": _transfer},
    version=torch_version,
)

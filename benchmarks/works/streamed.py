"""The truth of works with a volume inside, in float64 and bounded memory: some rows of sources at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..case import Case
from .base import Exact, Inputs, cotangent

SCORES = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Scores at a time: 32 and 512 MB in float64; about ten such tensors live."""
WORTH = {"cpu": 2e11, "cuda": 5e12}
"""Multiply-adds up to which the truth is computed in whole; beyond, on a few rows and without gradients."""


def exact(
    case: Case,
    inputs: Inputs,
    want_gradients: bool,
    rows_of: Callable[[Inputs, int], Tensor],
    by_row: tuple[str, ...],
    output_dtype: torch.dtype,
    direction: Tensor | None = None,
) -> Exact:
    """Evaluates `rows_of(inputs of some rows of a, their first row)` piece by piece, with gradients.

    Args:
        rows_of: the output (B, K, rows, Wa) in float64, from inputs in float64.
        by_row: the inputs that are cut along their last but one dimension; the others are whole in every piece.
        output_dtype: of the output and of its cotangent.
        direction: the cotangent, where it is not `cotangent` of the output.
    """
    (ha, wa), (hb, wb) = case.a, case.b
    whole = {k: (v.detach().double() if v.is_floating_point() else v) for k, v in inputs.items()}
    device = inputs["fa"].device
    step = max(1, SCORES[device.type] // (case.batch * wa * hb * wb))
    starts = list(range(0, ha, step))
    sampled = case.batch * case.channels * ha * wa * hb * wb > WORTH[device.type]
    if sampled:
        step, starts = 1, sorted({0, ha // 3, ha - 1})
    wanted = [k for k, v in inputs.items() if v.requires_grad] if want_gradients and not sampled else []
    gradients = {k: torch.zeros_like(whole[k]) for k in wanted}
    pieces: list[Tensor] = []
    for start in starts:
        rows = slice(start, min(start + step, ha))
        piece = {k: v[..., rows, :] if k in by_row else v for k, v in whole.items()}
        piece.update({k: piece[k].detach().requires_grad_() for k in wanted})
        with torch.set_grad_enabled(bool(wanted)):
            output = rows_of(piece, start)
        pieces.append(output.detach())
        if wanted:
            if direction is None:
                direction = cotangent(torch.empty((*output.shape[:2], ha, wa), dtype=output_dtype, device=device))
            found = torch.autograd.grad(output, [piece[k] for k in wanted], direction[:, :, rows].double())
            for name, gradient in zip(wanted, found, strict=True):
                target = gradients[name][..., rows, :] if name in by_row else gradients[name]
                target += gradient
    at = torch.cat([torch.arange(s, min(s + step, ha)) for s in starts]).to(device) if sampled else None
    return Exact(torch.cat(pieces, 2), gradients, at)

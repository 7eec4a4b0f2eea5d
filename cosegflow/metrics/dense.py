"""Metrics against exact dense flow: every valid pixel is a key point. Means over pairs (every pair counts the same)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cosegflow.metrics.means import MeanOverPairs


def box_length(mask: Tensor) -> Tensor:
    """(B,): the longer side, in pixels, of the tight box around each mask (B, H, W) bool; 0 for an empty one."""
    rows, columns = mask.any(2), mask.any(1)
    sides = []
    for line in (rows, columns):
        index = torch.arange(line.shape[1], device=line.device)
        last = torch.where(line, index, -1).amax(1)
        first = torch.where(line, index, line.shape[1]).amin(1)
        sides.append((last - first + 1).clamp(min=0))
    return torch.maximum(*sides)


def flow_errors(flow: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """(B, H, W) float64: the end-point error in pixels of flow against truth, both (B, 2, H, W); valid (B, H, W) bool.

    Raises:
        ValueError: the shapes do not fit.
    """
    if flow.shape != truth.shape or flow.dim() != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow: need (B, 2, H, W) of the truth's shape {tuple(truth.shape)}, got {tuple(flow.shape)}")
    if valid.shape != (flow.shape[0], *flow.shape[2:]):
        raise ValueError(f"valid: need (B, H, W) = {(flow.shape[0], *flow.shape[2:])}, got {tuple(valid.shape)}")
    return torch.linalg.vector_norm(flow.double() - truth.double(), dim=1)


def _share(chosen: Tensor, valid: Tensor) -> Tensor:
    """(B,) float64: the sum of `chosen` over the valid pixels over their number; NaN where there is none."""
    return torch.where(valid, chosen.double(), 0.0).sum((1, 2)) / valid.sum((1, 2))


class PCK(MeanOverPairs):
    """Share of correct matches: error <= alpha L, L the longer side of the target's box. One value per alpha.

    All valid pixels are key points (dense truth); the box is that of the object in b. For annotated key points see
    `KeypointPCK`, for TSS `FlowAccuracy`.
    """

    higher_is_better = True

    def __init__(self, alphas: Sequence[float] = (0.05, 0.1, 0.15), **kwargs: Any) -> None:
        super().__init__(len(alphas), **kwargs)
        self.alphas = tuple(alphas)

    def update(self, flow: Tensor, truth: Tensor, valid: Tensor, length: Tensor) -> None:
        """flow, truth (B, 2, H, W) pixels; valid (B, H, W) bool; length (B,), L in pixels."""
        error = flow_errors(flow, truth, valid)
        shares = [_share(error <= alpha * length[:, None, None], valid) for alpha in self.alphas]
        self._add(torch.stack(shares, 1))


class EndPointError(MeanOverPairs):
    """Mean length, in pixels, of the difference of two flows over the valid pixels; a NaN there counts as infinite."""

    higher_is_better = False

    def update(self, flow: Tensor, truth: Tensor, valid: Tensor) -> None:
        """flow, truth (B, 2, H, W) pixels; valid (B, H, W) bool."""
        error = flow_errors(flow, truth, valid)
        self._add(_share(torch.where(error.isnan(), torch.inf, error), valid)[:, None])

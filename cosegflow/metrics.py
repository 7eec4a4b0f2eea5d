"""Metrics of matching and of segmentation, against exact truth; means over pairs (every pair counts the same)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


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


def _errors(flow: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    if flow.shape != truth.shape or flow.dim() != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow: need (B, 2, H, W) of the truth's shape {tuple(truth.shape)}, got {tuple(flow.shape)}")
    if valid.shape != (flow.shape[0], *flow.shape[2:]):
        raise ValueError(f"valid: need (B, H, W) = {(flow.shape[0], *flow.shape[2:])}, got {tuple(valid.shape)}")
    return torch.linalg.vector_norm(flow.double() - truth.double(), dim=1)


class _MeanOverPairs(Metric):
    """Sums one value per pair; pairs that say nothing (no valid pixel) do not count."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, size: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, values: Tensor, counts: Tensor) -> None:
        """values (B, size), counts (B,) bool."""
        self.total += torch.where(counts[:, None], values.double(), 0.0).sum(0)
        self.count += counts.sum()

    def compute(self) -> Tensor:
        """(size,) means, NaN where there was no pair; a 0-dim tensor for size 1."""
        mean = self.total / self.count if self.count > 0 else torch.full_like(self.total, torch.nan)
        return mean if len(mean) > 1 else mean.squeeze(0)


class PCK(_MeanOverPairs):
    """Share of correct matches: error <= alpha L, L the longer side of the target's box. One value per alpha.

    All valid pixels are key points (dense truth), as in TSS; the box is that of the object in b, as in PF-WILLOW.
    """

    higher_is_better = True

    def __init__(self, alphas: Sequence[float] = (0.05, 0.1, 0.15), **kwargs: Any) -> None:
        super().__init__(len(alphas), **kwargs)
        self.alphas = tuple(alphas)

    def update(self, flow: Tensor, truth: Tensor, valid: Tensor, length: Tensor) -> None:
        """flow, truth (B, 2, H, W) pixels; valid (B, H, W) bool; length (B,), L in pixels."""
        error = _errors(flow, truth, valid)
        number = valid.sum((1, 2))
        shares = [
            ((error <= alpha * length[:, None, None]) & valid).sum((1, 2)) / number.clamp(min=1)
            for alpha in self.alphas
        ]
        self._add(torch.stack(shares, 1), number > 0)


class EndPointError(_MeanOverPairs):
    """Mean length, in pixels, of the difference of two flows over the valid pixels."""

    higher_is_better = False

    def update(self, flow: Tensor, truth: Tensor, valid: Tensor) -> None:
        """flow, truth (B, 2, H, W) pixels; valid (B, H, W) bool."""
        error = torch.where(valid, _errors(flow, truth, valid), 0.0)
        number = valid.sum((1, 2))
        self._add((error.sum((1, 2)) / number.clamp(min=1))[:, None], number > 0)


class MaskIoU(_MeanOverPairs):
    """Intersection over union of a mask, thresholded, and the truth; 1 where both are empty."""

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def update(self, mask: Tensor, truth: Tensor) -> None:
        """mask (B, H, W) in [0, 1] or bool; truth (B, H, W) bool."""
        if mask.shape != truth.shape:
            raise ValueError(f"mask: need the truth's shape {tuple(truth.shape)}, got {tuple(mask.shape)}")
        found = mask if mask.dtype == torch.bool else mask >= self.threshold
        union = (found | truth).sum((1, 2))
        both = (found & truth).sum((1, 2))
        iou = torch.where(union > 0, both / union.clamp(min=1), 1.0)
        self._add(iou[:, None], torch.ones_like(union, dtype=torch.bool))

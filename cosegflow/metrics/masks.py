"""Metrics of masks: IoU, and the precision and Jaccard index of the Internet images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cosegflow.metrics.means import MeanOfItems, MeanOverPairs, Means


def _thresholded(mask: Tensor, truth: Tensor, threshold: float) -> Tensor:
    """(B, H, W) bool of a mask that is bool or in [0, 1].

    Raises:
        ValueError: not the truth's shape, or a truth that is not bool (B, H, W).
    """
    if truth.dtype != torch.bool or truth.dim() != 3:
        raise ValueError(f"truth: need (B, H, W) bool, got {tuple(truth.shape)} {truth.dtype}")
    if mask.shape != truth.shape:
        raise ValueError(f"mask: need the truth's shape {tuple(truth.shape)}, got {tuple(mask.shape)}")
    return mask if mask.dtype == torch.bool else mask >= threshold


def intersection_over_union(found: Tensor, truth: Tensor) -> Tensor:
    """(B,) float64 of two bool masks (B, H, W); NaN where both are empty."""
    return (found & truth).sum((1, 2)).double() / (found | truth).sum((1, 2))


class MaskIoU(MeanOverPairs):
    """Intersection over union of a mask, thresholded, and the truth; 1 where both are empty."""

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def update(self, mask: Tensor, truth: Tensor) -> None:
        """mask (B, H, W) in [0, 1] or bool; truth (B, H, W) bool."""
        self._add(intersection_over_union(_thresholded(mask, truth, self.threshold), truth).nan_to_num(1.0)[:, None])


class PrecisionJaccard(MeanOfItems):
    """Precision P and Jaccard index J of co-segmentation (Rubinstein et al., CVPR 2013), means over images.

    P = #{pixels whose label, foreground or background, is right} / #pixels; J = |found & truth| / |found | truth|.
    An image whose truth is empty (the Internet images have some without the object) counts in P and not in J.
    """

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, categories: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(2, categories, **kwargs)
        self.threshold = threshold

    def update(self, mask: Tensor, truth: Tensor, category: str | Sequence[str] | None = None) -> None:
        """mask (B, H, W) in [0, 1] or bool; truth (B, H, W) bool; category: one for all, or one per image."""
        found = _thresholded(mask, truth, self.threshold)
        right = (found == truth).double().mean((1, 2))
        jaccard = torch.where(truth.any(2).any(1), intersection_over_union(found, truth), torch.nan)
        self._add(torch.stack((right, jaccard), 1), self._groups(category, len(truth), truth.device))

    def compute(self) -> Means:
        """The two values are P and J."""
        return self.means()

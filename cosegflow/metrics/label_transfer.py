"""LT-ACC, IoU and LOC-ERR of Caltech-101, in the form that weakalign gave them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import cosegflow
from cosegflow.metrics.masks import intersection_over_union
from cosegflow.metrics.means import MeanOfItems, Means


def _relative(position: Tensor, line: Tensor) -> Tensor:
    """Positions along one axis, from 0, on the scale of the box: (position + 1 - first) / (last - first + 1).

    line: (N,) bool, which rows (columns) the object touches.
    """
    index = line.nonzero()[:, 0]
    first, last = index[0], index[-1]
    return (position + 1 - first).double() / (last - first + 1)


def localisation_error(flow: Tensor, truth: Tensor, other: Tensor) -> Tensor:
    """0-dim float64: the mean L1 distance of positions relative to the objects' boxes.

    Every pixel p of the frame of `truth`, object or not, whose match q = p + flow(p) lies in the other image counts:
    |r_x(p) - r_x'(q)| + |r_y(p) - r_y'(q)|, with r_x(p) = (x + 1 - left) / width of the tight box around the object of
    that image, and r' the same for the other one. q is truncated to whole pixels, as in weakalign, whose positions
    start at 1 while the box's edges start at 0: hence the + 1, which leaves 1/width - 1/width' where the boxes differ.

    Args:
        flow: (2, H, W) pixels, from the frame of `truth` into that of `other`.
        truth: (H, W) bool.
        other: (Ho, Wo) bool.

    Returns:
        NaN where an object is empty or no match lies in the other image.
    """
    height, width = truth.shape
    if not truth.any() or not other.any():
        return torch.full((), torch.nan, dtype=torch.float64, device=flow.device)
    x, y = torch.arange(width, device=flow.device), torch.arange(height, device=flow.device)[:, None]
    x2, y2 = x + flow[0].double(), y + flow[1].double()
    inside = (x2 >= 0) & (x2 <= other.shape[1] - 1) & (y2 >= 0) & (y2 <= other.shape[0] - 1)
    across = _relative(x, truth.any(0)).expand(height, width) - _relative(x2.floor(), other.any(0))
    down = _relative(y, truth.any(1)).expand(height, width) - _relative(y2.floor(), other.any(1))
    return (across.abs() + down.abs())[inside].mean()


class LabelTransfer(MeanOfItems):
    """Label transfer accuracy, IoU and localisation error: a mask carried over by a flow (Kim et al., CVPR 2013).

    The other image's mask is warped (bilinear, 0 outside, > 0.5) into the frame of the flow. LT-ACC = the share of all
    pixels whose label is that of the truth; IoU = that of the two foregrounds; LOC-ERR by `localisation_error`.
    Means over pairs; a pair with an empty object counts in LT-ACC only.
    """

    def __init__(self, categories: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(3, categories, **kwargs)

    def update(self, flow: Tensor, truth: Tensor, other: Tensor, category: str | Sequence[str] | None = None) -> None:
        """Adds pairs.

        Args:
            flow: (B, 2, H, W) pixels, from the frame of `truth` into that of `other` (in the data set's terms from
                the target to the source).
            truth: (B, H, W) bool, the object where labels are wanted.
            other: (B, Ho, Wo) bool, the object whose labels are carried over.
            category: one for all or one per pair; needed where the metric has categories.

        Raises:
            ValueError: the shapes do not fit.
        """
        if flow.dim() != 4 or flow.shape[1] != 2 or truth.shape != (flow.shape[0], *flow.shape[2:]):
            raise ValueError(f"flow: need (B, 2, H, W) over the truth {tuple(truth.shape)}, got {tuple(flow.shape)}")
        if other.dim() != 3 or len(other) != len(truth):
            raise ValueError(f"other: need ({len(truth)}, Ho, Wo), got {tuple(other.shape)}")
        carried = cosegflow.warp(other[:, None].to(flow.dtype), flow)[:, 0] > 0.5
        both = truth.any(2).any(1) & other.any(2).any(1)
        values = torch.stack(
            (
                (carried == truth).double().mean((1, 2)),
                torch.where(both, intersection_over_union(carried, truth), torch.nan),
                torch.stack([localisation_error(*item) for item in zip(flow, truth, other, strict=True)]),
            ),
            1,
        )
        self._add(values, self._groups(category, len(truth), truth.device))

    def compute(self) -> Means:
        """The three values are LT-ACC, IoU and LOC-ERR."""
        return self.means()

"""Flow accuracy of TSS (Taniai, Sinha, Sato, CVPR 2016), by the rules of its evaluation kit."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosegflow.metrics.dense import flow_errors
from cosegflow.metrics.means import MeanOfItems, Means

UNKNOWN_FLOW = 1e9
"""A flow of this size or more in either component is unknown."""


def valid_flow(flow: Tensor) -> Tensor:
    """(B, H, W) bool of a flow (B, 2, H, W): |u| < 1e9 and |v| < 1e9; NaN is not valid."""
    return (flow.abs() < UNKNOWN_FLOW).all(1)


def scale_flow(
    flow: Tensor, size_a: Sequence[int], size_b: Sequence[int], *, from_size_b: Sequence[int] | None = None
) -> Tensor:
    """A flow computed at another resolution, brought to that of the truth by TSS's rule.

    Positions are absolute and start at 1. With x the column on the new grid of a, w_a and w_b the old and W_a and W_b
    the new widths, and u the old flow interpolated bilinearly, u' = (u + x w_a / W_a) W_b / w_b - x; rows likewise.
    Each image is scaled by its own ratio. A pixel that an unknown value would reach becomes unknown (1e10).
    For other purposes `cosegflow.resize_flow`, which keeps pixel centres, is the better choice: from 1-based positions
    identical content does not stay so.

    Args:
        flow: (B, 2, Ha, Wa), pixels of the old grids.
        size_a: (Ha, Wa), the new grid of a.
        size_b: (Hb, Wb), the new grid of b.
        from_size_b: the old grid of b; that of `flow` unless given.

    Returns:
        (B, 2, Ha, Wa) float64.
    """
    old_a = (flow.shape[2], flow.shape[3])
    new_a, new_b = (size_a[0], size_a[1]), (size_b[0], size_b[1])
    old_b = old_a if from_size_b is None else (from_size_b[0], from_size_b[1])
    if old_a == new_a and old_b == new_b:
        return flow.double()
    known = valid_flow(flow)[:, None]
    values = F.interpolate(torch.where(known, flow, 0.0).double(), new_a, mode="bilinear", antialias=True)
    touched = F.interpolate((~known).double(), new_a, mode="bilinear", antialias=True) > 0
    scaled = []
    for channel, side in ((0, 1), (1, 0)):
        here = torch.arange(1, new_a[side] + 1, device=flow.device, dtype=torch.float64)
        here = here[None, None, :] if side else here[None, :, None]
        there = (values[:, channel] + here * old_a[side] / new_a[side]) * new_b[side] / old_b[side]
        scaled.append(there - here)
    return torch.where(touched, 10 * UNKNOWN_FLOW, torch.stack(scaled, 1))


class FlowAccuracy(MeanOfItems):
    """Flow accuracy: 1 - #{valid pixels with error > alpha max(Hb, Wb)} / #valid, a mean over directed pairs.

    Hb and Wb are the size of the *other* image, the one that the flow points into. Valid are the pixels whose true flow
    is known (|u|, |v| < 1e9: the foreground that has a match). A flow that is not finite is wrong.
    """

    higher_is_better = True

    def __init__(self, alphas: Sequence[float] = (0.05,), categories: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(len(alphas), categories, **kwargs)
        self.alphas = tuple(alphas)

    def update(
        self,
        flow: Tensor,
        truth: Tensor,
        size_b: Sequence[int],
        category: str | Sequence[str] | None = None,
        valid: Tensor | None = None,
        from_size_b: Sequence[int] | None = None,
    ) -> None:
        """Adds directed pairs; for both directions call it for each.

        Args:
            flow: (B, 2, H, W) pixels; of another size than the truth it is converted by `scale_flow`.
            truth: (B, 2, Ha, Wa) pixels.
            size_b: (Hb, Wb) of the image that the flow points into.
            category: one for all or one per pair; needed where the metric has categories.
            valid: (B, Ha, Wa) bool, an additional restriction.
            from_size_b: see `scale_flow`.
        """
        known = valid_flow(truth) if valid is None else valid_flow(truth) & valid
        if flow.dim() == 4 and flow.shape[2:] != truth.shape[2:]:
            flow = scale_flow(flow, truth.shape[2:], size_b, from_size_b=from_size_b)
        error = flow_errors(flow, truth, known)
        limit = max(size_b[0], size_b[1])
        number = known.sum((1, 2))
        accuracy = [1 - ((~(error <= alpha * limit)) & known).sum((1, 2)).double() / number for alpha in self.alphas]
        self._add(torch.stack(accuracy, 1), self._groups(category, len(truth), truth.device))

    def compute(self) -> Means:
        """One value per alpha."""
        return self.means()

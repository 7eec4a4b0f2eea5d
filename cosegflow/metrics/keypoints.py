"""PCK of annotated key points: PF-WILLOW, PF-PASCAL, SPair-71k."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

import cosegflow
from cosegflow.metrics.means import MeanOfItems

Threshold = Literal["bbox", "bbox-kp", "img", "scnet"]
THRESHOLDS: tuple[Threshold, ...] = get_args(Threshold)
SCNET_SIDE = 224


def transfer_keypoints(flow: Tensor, points: Tensor) -> Tensor:
    """Where a flow takes key points: p + flow(p), the flow interpolated bilinearly.

    A point outside the image moves by the flow of the nearest pixel; a NaN point stays NaN.

    Args:
        flow: (B, 2, H, W) pixels.
        points: (B, K, 2), x and y in pixels of a; pixel centres are integers.

    Returns:
        (B, K, 2) float32 (float64 for a float64 flow), pixels of b.
    """
    batch, count = points.shape[:2]
    if count == 0:
        return points.to(flow.dtype)
    known = points.isfinite().all(2, keepdim=True)
    here = torch.where(known, points, 0.0).to(flow.dtype)
    grid = torch.stack((torch.arange(count, device=flow.device), torch.zeros(count, device=flow.device)), 1)
    step = (here - grid).transpose(1, 2).reshape(batch, 2, 1, count)
    moved = cosegflow.warp(flow, step, padding="border").reshape(batch, 2, count).transpose(1, 2)
    return torch.where(known, here + moved, torch.nan)


def keypoint_box_length(points: Tensor) -> Tensor:
    """(B,): the longer side of the tight box around key points (B, K, 2); NaN points are left out; 0 for none."""
    if points.shape[1] == 0:
        return points.new_zeros(len(points))
    known = points.isfinite().all(2, keepdim=True)
    most = torch.where(known, points, -torch.inf).amax(1)
    least = torch.where(known, points, torch.inf).amin(1)
    return (most - least).clamp(min=0).amax(1)


def rescale_keypoints(points: Tensor, size: Sequence[int], side: int = SCNET_SIDE) -> Tensor:
    """Key points (B, K, 2) of an image (H, W), for that image stretched to side x side: x side / W, y side / H.

    SCNet's protocol (Han et al., ICCV 2017), as in weakalign; no half pixel is added, and none matters to distances.
    """
    points = points if points.is_floating_point() else points.float()
    return points * points.new_tensor((side / size[1], side / size[0]))


def reference_length(threshold: Threshold, points: Tensor, size: Sequence[int], box: Tensor | None) -> Tensor:
    """(B,), the L of PCK: a point is right when its error is at most alpha L.

    Args:
        threshold: "bbox": longer side of the annotated box; "bbox-kp": longer side of the tight box of the key points;
            "img": longer side of the image; "scnet": 224, for points that were rescaled by `rescale_keypoints`.
        points: (B, K, 2), key points of the image into which points are transferred.
        size: (H, W) of that image.
        box: (B, 4) x0, y0, x1, y1 in that image; needed for "bbox".

    Raises:
        ValueError: an unknown threshold, or "bbox" without boxes.
    """
    if threshold == "bbox-kp":
        return keypoint_box_length(points)
    if threshold == "bbox":
        if box is None:
            raise ValueError("box: threshold 'bbox' needs the annotated box (B, 4), got None")
        return torch.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1])
    if threshold not in ("img", "scnet"):
        raise ValueError(f"threshold: need one of {', '.join(THRESHOLDS)}, got {threshold!r}")
    return points.new_full((len(points),), SCNET_SIDE if threshold == "scnet" else max(size[0], size[1]))


class PCKMeans(NamedTuple):
    """Shares of correct key points for A thresholds, float64, NaN where nothing counted."""

    per_image: Tensor
    """(A,): mean over pairs of each pair's share."""
    per_point: Tensor
    """(A,): share of all points of all pairs."""
    per_image_by_category: Tensor
    """(G, A)."""
    per_point_by_category: Tensor
    """(G, A)."""
    pairs: Tensor
    """(G,) int64: pairs with at least one key point."""
    points: Tensor
    """(G,) int64."""


class KeypointPCK(MeanOfItems):
    """PCK@alpha: the share of key points whose transferred position errs by at most alpha L.

    Yang and Ramanan (PAMI 2013); L by `reference_length`. Per-image means give each pair the same weight (PF-WILLOW,
    PF-PASCAL), per-point means each point (SPair-71k reports both).
    """

    higher_is_better = True
    correct: Tensor
    points: Tensor

    def __init__(
        self, alphas: Sequence[float] = (0.05, 0.1, 0.15), categories: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(len(alphas), categories, **kwargs)
        self.alphas = tuple(alphas)
        self.add_state("correct", torch.zeros(self.total.shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("points", torch.zeros(len(self.total), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, found: Tensor, truth: Tensor, length: Tensor, category: str | Sequence[str] | None = None) -> None:
        """Adds pairs; rows of `truth` with a NaN do not count, a transferred point that is NaN is wrong.

        Args:
            found: (B, K, 2) transferred points, pixels.
            truth: (B, K, 2) annotated points.
            length: (B,), L in pixels.
            category: one for all or one per pair; needed where the metric has categories.

        Raises:
            ValueError: the shapes do not fit.
        """
        if found.shape != truth.shape or found.dim() != 3 or found.shape[2] != 2:
            raise ValueError(
                f"found: need (B, K, 2) of the truth's shape {tuple(truth.shape)}, got {tuple(found.shape)}"
            )
        if length.shape != truth.shape[:1]:
            raise ValueError(f"length: need (B,) = ({len(truth)},), got {tuple(length.shape)}")
        known = truth.isfinite().all(2)
        error = torch.linalg.vector_norm(found.double() - truth.double(), dim=2)
        right = torch.stack([(error <= alpha * length[:, None].double()) & known for alpha in self.alphas], 2).sum(1)
        number = known.sum(1)
        groups = self._groups(category, len(truth), truth.device)
        self._add(right.double() / number[:, None], groups)
        self.correct.index_add_(0, groups, right)
        self.points.index_add_(0, groups, number)

    def compute(self) -> PCKMeans:
        """Per image and per point, overall and per category."""
        means = self.means()
        return PCKMeans(
            means.overall,
            self.correct.sum(0).double() / self.points.sum(),
            means.by_category,
            self.correct.double() / self.points[:, None],
            means.number[:, 0],
            self.points.clone(),
        )

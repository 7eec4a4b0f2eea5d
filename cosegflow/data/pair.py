"""The one pair type that every data set yields and every model takes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Pair(NamedTuple):
    """Two photographs that show objects of one category, with whatever truth is known.

    A single pair has no batch dimension; `collate_pairs` adds it in front of every tensor. Training reads `image_a`,
    `image_b` and `category` only; the other fields are for evaluation and may be None. All coordinates are pixels of
    the photograph as it is here, upright by EXIF; pixel centres are integers.
    """

    image_a: Tensor
    """(3, Ha, Wa) float32 in [0, 1], RGB."""
    image_b: Tensor
    """(3, Hb, Wb) float32 in [0, 1], RGB."""
    category: str | tuple[str, ...] = ""
    """The class label that both images share; one per pair after collation."""
    mask_a: Tensor | None = None
    """(Ha, Wa) bool, the exact foreground of a."""
    mask_b: Tensor | None = None
    """(Hb, Wb) bool, the exact foreground of b."""
    flow_ab: Tensor | None = None
    """(2, Ha, Wa) float32, exact flow from a to b in pixels (pixel of b minus pixel of a; channel 0 is x)."""
    valid_ab: Tensor | None = None
    """(Ha, Wa) bool, where `flow_ab` is known: foreground of a whose match is visible in b."""
    keypoints_a: Tensor | None = None
    """(K, 2) float32 (x, y) pixels of a. NaN rows are absent; a point may lie outside of the image."""
    keypoints_b: Tensor | None = None
    """(K, 2) float32 (x, y) pixels of b; row k shows the same part of the object as row k of `keypoints_a`."""
    box_a: Tensor | None = None
    """(4,) float32 x0, y0, x1, y1: the annotated box of the object in a."""
    box_b: Tensor | None = None
    """(4,) float32 x0, y0, x1, y1: the annotated box of the object in b."""
    name: str | tuple[str, ...] = ""
    """Unique within the data set, for messages and results per pair; one per pair after collation."""


def collate_pairs(pairs: Sequence[Pair]) -> Pair:
    """Stacks pairs of equal sizes into one batched `Pair`; a field that any pair lacks is None.

    Key points become (B, K, 2), K the largest number of any pair; the rows that a pair lacks are NaN.

    Raises:
        ValueError: no pairs, or images of different sizes.
    """
    if not pairs:
        raise ValueError("collate_pairs: needs at least one pair, got none")
    for side in ("image_a", "image_b"):
        sizes = {tuple(getattr(pair, side).shape) for pair in pairs}
        if len(sizes) > 1:
            raise ValueError(f"collate_pairs: {side} must have one size in a batch, got {sorted(sizes)}")
    most = max((len(p) for pair in pairs for p in (pair.keypoints_a, pair.keypoints_b) if p is not None), default=0)

    def stack(name: str) -> Tensor | None:
        values = [getattr(pair, name) for pair in pairs]
        if any(value is None for value in values):
            return None
        if name.startswith("keypoints"):
            values = [F.pad(value, (0, 0, 0, most - len(value)), value=torch.nan) for value in values]
        return torch.stack(values)

    return Pair(
        torch.stack([pair.image_a for pair in pairs]),
        torch.stack([pair.image_b for pair in pairs]),
        tuple(str(pair.category) for pair in pairs),
        stack("mask_a"),
        stack("mask_b"),
        stack("flow_ab"),
        stack("valid_ab"),
        stack("keypoints_a"),
        stack("keypoints_b"),
        stack("box_a"),
        stack("box_b"),
        tuple(str(pair.name) for pair in pairs),
    )

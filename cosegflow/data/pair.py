"""The one pair type that every data set yields and every model takes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Pair(NamedTuple):
    """Two photographs that show objects of one category, with whatever truth is known.

    A single pair has no batch dimension; `collate_pairs` adds it in front of every tensor. Training reads `image_a`,
    `image_b` and `category` only; the other fields are for evaluation and may be None.
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


def collate_pairs(pairs: Sequence[Pair]) -> Pair:
    """Stacks pairs of equal sizes into one batched `Pair`; a field that any pair lacks is None.

    Raises:
        ValueError: no pairs, or images of different sizes.
    """
    if not pairs:
        raise ValueError("collate_pairs: needs at least one pair, got none")
    for side in ("image_a", "image_b"):
        sizes = {tuple(getattr(pair, side).shape) for pair in pairs}
        if len(sizes) > 1:
            raise ValueError(f"collate_pairs: {side} must have one size in a batch, got {sorted(sizes)}")

    def stack(name: str) -> Tensor | None:
        values = [getattr(pair, name) for pair in pairs]
        return None if any(value is None for value in values) else torch.stack(values)

    return Pair(
        torch.stack([pair.image_a for pair in pairs]),
        torch.stack([pair.image_b for pair in pairs]),
        tuple(str(pair.category) for pair in pairs),
        stack("mask_a"),
        stack("mask_b"),
        stack("flow_ab"),
        stack("valid_ab"),
    )

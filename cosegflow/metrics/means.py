"""Means of values over pairs or images, overall and per category, that add up over processes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


class Means(NamedTuple):
    """V means, float64, NaN where nothing counted. torchmetrics makes a tensor of one element 0-dim."""

    overall: Tensor
    """(V,): every item counts the same, whatever its category."""
    by_category: Tensor
    """(G, V), in the order of the metric's `categories`."""
    number: Tensor
    """(G, V) int64: how many items counted."""


class MeanOfItems(Metric):
    """Base: `_add` takes V values per item; a NaN value says nothing and does not count.

    The states are sums, so results of several processes add up (``dist_reduce_fx="sum"``).
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, size: int = 1, categories: Sequence[str] = (), **kwargs: Any) -> None:
        """size: V. categories: names, in the order of the results; none: one group that holds all."""
        super().__init__(**kwargs)
        self.categories = tuple(categories)
        groups = max(1, len(self.categories))
        self.add_state("total", torch.zeros(groups, size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(groups, size, dtype=torch.int64), dist_reduce_fx="sum")

    def _groups(self, category: str | Sequence[str] | None, batch: int, device: torch.device) -> Tensor:
        """(B,) int64: the position of each item's category."""
        if not self.categories:
            return torch.zeros(batch, dtype=torch.int64, device=device)
        names = (category,) * batch if isinstance(category, str) else tuple(category or ())
        if len(names) != batch:
            raise ValueError(f"category: need one of {self.categories} for each of {batch} items, got {category!r}")
        unknown = [name for name in names if name not in self.categories]
        if unknown:
            raise ValueError(f"category: {unknown[0]!r} is none of {self.categories}")
        return torch.tensor([self.categories.index(name) for name in names], device=device)

    def _add(self, values: Tensor, groups: Tensor | None = None) -> None:
        """values (B, V), NaN where there is none; groups (B,) int64."""
        if groups is None:
            groups = torch.zeros(len(values), dtype=torch.int64, device=values.device)
        known = ~values.isnan()
        self.total.index_add_(0, groups, torch.where(known, values.double(), 0.0))
        self.count.index_add_(0, groups, known.long())

    def means(self) -> Means:
        """The means of what this process has added; `compute` adds up over processes first."""
        return Means(self.total.sum(0) / self.count.sum(0), self.total / self.count, self.count.clone())


class CategoryMeans(MeanOfItems):
    """Means of values that are computed elsewhere, one row per item."""

    def update(self, values: Tensor, category: str | Sequence[str] | None = None) -> None:
        """values (B, V), NaN where there is none; category: one for all or one per item."""
        self._add(values, self._groups(category, len(values), values.device))

    def compute(self) -> Means:
        """V values."""
        return self.means()


class MeanOverPairs(MeanOfItems):
    """A mean without categories: `compute` gives (V,) means, NaN where there was no pair; a 0-dim tensor for V = 1."""

    def compute(self) -> Tensor:
        """(V,) float64."""
        return self.means().overall

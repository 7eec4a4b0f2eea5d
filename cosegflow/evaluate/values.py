"""Numbers for JSON: NaN, infinity and what was not computed are null."""

import math
from collections.abc import Sequence

from torch import Tensor


def number(value: float | Tensor | None) -> float | None:
    """A float, or None where the value says nothing."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def by_alpha(alphas: Sequence[float], values: Tensor) -> dict[str, float | None]:
    """One value per alpha, under keys such as "0.05"."""
    return {f"{alpha:g}": number(value) for alpha, value in zip(alphas, values.reshape(-1), strict=True)}

"""The measurements of an ablation's CSV by what they are of, and their means, spreads and differences."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cosegflow.ablation.table import Measurement

MAIN = ("joint", "match-only", "match-only, masks lent", "coseg-only", "supervised", "untrained", "zero-shot")
"""Rows of the main tables; all others leave something out, or change one setting."""
WITHOUT_TRAINING = ("untrained", "zero-shot")
LACKS = {"match-only": "masks", "zero-shot": "masks", "coseg-only": "matching"}
"""What a row has none of: no masks, or descriptors that do not learn."""


@dataclass(frozen=True)
class Metric:
    """A number that is shown, and how."""

    dataset: str
    name: str
    title: str
    of: str
    """"matching" or "masks"."""
    unit: str = "%"
    lower_is_better: bool = False

    def number(self, value: float, sign: bool = False) -> str:
        """The value, without its unit; fractions as per cent."""
        scale, digits = {"%": (100.0, 1), "px": (1.0, 2)}.get(self.unit, (1.0, 3))
        return f"{scale * value:{'+' if sign else ''}.{digits}f}"

    def spread(self, values: Sequence[float], sign: bool = False) -> str:
        """Mean and standard deviation; the latter only where there are two values or more, "-" where there is none."""
        if not values:
            return "-"
        mean, deviation = mean_and_deviation(values)
        return self.number(mean, sign) + ("" if deviation is None else f" ± {self.number(deviation)}")

    @property
    def heading(self) -> str:
        """The title, with the unit where it is not per cent."""
        return self.title + ("" if self.unit == "%" else f", {self.unit}")


def _pck(dataset: str) -> tuple[Metric, ...]:
    return tuple(Metric(dataset, f"pck@{a}", f"PCK@{str(a).removeprefix('0')}", "matching") for a in (0.05, 0.1, 0.15))


STAMPS = (
    *_pck("stamps"),
    Metric("stamps", "end_point_error", "EPE", "matching", "px", True),
    Metric("stamps", "jaccard", "Jaccard", "masks"),
    Metric("stamps", "consistency", "consistency", "masks"),
)
SEGMENTATION = (
    Metric("caltech-101", "lt_acc", "LT-ACC", "matching"),
    Metric("caltech-101", "iou", "IoU", "matching"),
    Metric("caltech-101", "loc_err", "LOC-ERR", "matching", "box lengths", True),
    Metric("caltech-101", "jaccard", "Jaccard", "masks"),
    Metric("weizmann-horse", "precision", "precision", "masks"),
    Metric("weizmann-horse", "jaccard", "Jaccard", "masks"),
)
MATCHING = (
    Metric("tss", "flow_accuracy", "flow accuracy", "matching"),
    Metric("tss", "iou", "IoU", "masks"),
    *_pck("pf-willow"),
)
METRICS = (*STAMPS, *SEGMENTATION, *MATCHING)
NAMES = {
    "stamps": "stamps", "caltech-101": "Caltech-101", "weizmann-horse": "Weizmann", "tss": "TSS",
    "pf-willow": "PF-WILLOW",
}  # fmt: skip
"""How the data sets are called in tables."""


def metric(dataset: str, name: str) -> Metric:
    """The entry of METRICS."""
    return next(m for m in METRICS if (m.dataset, m.name) == (dataset, name))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample's standard deviation (over n - 1), None for one value."""
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None


def conditions(condition: str) -> dict[str, int]:
    """ "clutter=4,masks=0" as {"clutter": 4, "masks": 0}."""
    return {name: int(value) for name, _, value in (part.partition("=") for part in condition.split(",") if part)}


class Results:
    """The measurements that belong together: of each row those with its latest digest; of two, the last."""

    def __init__(self, measured: Iterable[Measurement]) -> None:
        everything = list(measured)
        latest: dict[str, tuple[str, str]] = {}
        for m in everything:
            latest[m.row] = max(latest.get(m.row, ("", "")), (m.date, m.digest))
        chosen = [m for m in everything if m.digest == latest[m.row][1]]
        self.outdated = len(everything) - len(chosen)
        """Measurements of other settings than the row's latest; shown nowhere."""
        self._by: dict[tuple[str, str, str, str], dict[int, Measurement]] = {}
        for m in chosen:
            self._by.setdefault((m.row, m.dataset, m.metric, m.condition), {})[m.seed] = m

    @cached_property
    def measurements(self) -> list[Measurement]:
        """All that count."""
        return [m for seeds in self._by.values() for m in seeds.values()]

    @cached_property
    def rows(self) -> list[str]:
        """The rows' names: the main ones, then the others as they came."""
        names = dict.fromkeys(m.row for m in self.measurements)
        return [*(name for name in MAIN if name in names), *(name for name in names if name not in MAIN)]

    def seeds(self, row: str) -> list[int]:
        """The seeds of a row."""
        return sorted({m.seed for m in self.measurements if m.row == row})

    def settings(self, row: str) -> dict[str, Any]:
        """The settings of a row that differ from the defaults."""
        return next((m.settings for m in self.measurements if m.row == row), {})

    def by_seed(self, row: str, dataset: str, name: str, condition: str = "") -> dict[int, float]:
        """seed -> value; {} where it was not measured."""
        return {seed: m.value for seed, m in sorted(self._by.get((row, dataset, name, condition), {}).items())}

    def pairs(self, row: str, dataset: str) -> int | None:
        """How many pairs of a data set the row's means are over."""
        found = (m.pairs for m in self.measurements if (m.row, m.dataset, m.condition) == (row, dataset, ""))
        return next(found, None)

    def of(self, row: str, what: Metric, condition: str = "") -> dict[int, float]:
        """seed -> value; {} where the row has no such thing (`LACKS`) or it was not measured."""
        return {} if LACKS.get(row) == what.of else self.by_seed(row, what.dataset, what.name, condition)

    def difference(self, row: str, other: str, what: Metric) -> list[float]:
        """row minus other, paired by seed; a row without training is the same for each seed."""
        mine, theirs = self.of(row, what), self.of(other, what)
        if other in WITHOUT_TRAINING:
            theirs = {seed: theirs[0] for seed in mine if 0 in theirs}
        return [mine[seed] - theirs[seed] for seed in mine if seed in theirs]

    def numbers(self, row: str, name: str) -> list[int]:
        """The values of a condition such as "rounds" or "clutter" that a row was measured with on stamps."""
        named = (conditions(m.condition) for m in self.measurements if m.row == row and m.dataset == "stamps")
        return sorted({found[name] for found in named if name in found})

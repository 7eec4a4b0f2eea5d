"""The plots of docs/results.md. What they show (`charts`) is apart from the drawing, which alone needs matplotlib."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cosegflow.ablation.blocks import CLUTTER, CLUTTERED, cluttered_title
from cosegflow.ablation.results import Metric, Results, mean_and_deviation, metric

ROUNDS = tuple(metric("stamps", name) for name in ("pck@0.05", "pck@0.1", "jaccard", "consistency"))
REFINED = ("joint", "without gating", "supervised")
COLOURS = {
    "joint": "#c1121f", "joint, with masks": "#c1121f", "joint, without masks": "#ff8c1a", "match-only": "#1f77b4",
    "without gating": "#444444", "supervised": "#2ca02c",
}  # fmt: skip
MARKERS = dict(zip(COLOURS, "oosD^v", strict=True))


@dataclass(frozen=True)
class Series:
    """Means over seeds in the order of x, with the mean minus and plus the standard deviation."""

    label: str
    x: tuple[int, ...]
    y: tuple[float, ...]
    band: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """One picture: a panel for each metric, its title and its series."""

    name: str
    title: str
    axis: str
    panels: tuple[tuple[str, tuple[Series, ...]], ...]


def _series(label: str, points: Sequence[tuple[int, list[float]]]) -> Series:
    x, y, band = [], [], []
    for at, values in points:
        mean, deviation = mean_and_deviation(values)
        around = deviation or 0.0
        x.append(at)
        y.append(mean)
        band.append((mean - around, mean + around))
    return Series(label, tuple(x), tuple(y), tuple(band))


def _panels(
    shown: Sequence[Metric], lines: Sequence[tuple[str, Callable[[Metric], list[tuple[int, list[float]]]]]]
) -> tuple[tuple[str, tuple[Series, ...]], ...]:
    """A panel for each metric that any line has two points of."""
    panels = []
    for what in shown:
        found = [(label, points(what)) for label, points in lines]
        series = tuple(_series(label, points) for label, points in found if len(points) > 1)
        if series:
            panels.append((what.title, series))
    return tuple(panels)


def charts(results: Results) -> dict[str, Chart]:
    """The charts that the results have data for, by the name of their block."""

    def along(row: str, name: str, ending: str) -> Callable[[Metric], list[tuple[int, list[float]]]]:
        def points(what: Metric) -> list[tuple[int, list[float]]]:
            found = ((n, results.of(row, what, f"{name}={n}{ending}")) for n in results.numbers(row, name))
            return [(n, list(values.values())) for n, values in found if values]

        return points

    cluttered = [(cluttered_title(row, masks), along(row, "clutter", f",masks={masks}")) for row, masks in CLUTTERED]
    refined = [(row, along(row, "rounds", "")) for row in REFINED]
    made = (
        Chart("clutter", "Quality against clutter", "distractors in each image", _panels(CLUTTER, cluttered)),
        Chart("rounds", "Quality against rounds of refinement", "gated rounds", _panels(ROUNDS, refined)),
    )
    return {chart.name: chart for chart in made if chart.panels}


def draw(chart: Chart) -> Any:
    """The chart as a matplotlib Figure; bands are standard deviations over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 2.9 * len(chart.panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(chart.panels), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for at, (title, series) in zip(axes, chart.panels, strict=True):
        for one in series:
            style = {"color": COLOURS[one.label], "marker": MARKERS[one.label], "linewidth": 1.8, "markersize": 5}
            handles[one.label] = at.plot(one.x, [100 * v for v in one.y], label=one.label, **style)[0]
            low, high = ([100 * v for v in side] for side in zip(*one.band, strict=True))
            at.fill_between(one.x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        at.set_title(title, fontsize=10)
        at.set_xticks(sorted({x for one in series for x in one.x}))
        at.set_xlabel(chart.axis, fontsize=9)
        at.tick_params(labelsize=8)
        at.grid(visible=True, color="#dddddd", linewidth=0.6)
        at.set_axisbelow(True)
    axes[0].set_ylabel("%", fontsize=9)
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=9)
    return figure

"""Plots of result rows: time, memory and fraction of the limit against N and C, and the largest size that survives.

What is plotted (`charts`) is apart from the drawing: it needs no matplotlib, and its digest tells whether a picture
that was drawn elsewhere shows these rows.
"""

import hashlib
import io
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from .case import Case
from .rows import Row
from .table import OURS, Group, Line, group

ORDER = (
    OURS, "two-calls", "eager", "eager-float32", "unfold", "compile", "sdpa", "flex", "chunked",
    "spatial-correlation-sampler", "kornia",
)  # fmt: skip
"""Contestants with a colour of their own; others get one of the rest by their name."""
COLOURS = (
    "#c1121f", "#444444", "#8c8c8c", "#b8860b", "#1f77b4", "#2ca02c", "#9467bd", "#ff8c1a", "#17a2b8", "#e377c2",
    "#6b4f3a", "#7fb3d5", "#82c99d", "#c5a3e0", "#ffbf80", "#a0d8e0",
)  # fmt: skip
MARKERS = "osD^vP*X<>hdp8"


@dataclass(frozen=True)
class Series:
    """One contestant: points in the order of x."""

    peer: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    band: tuple[tuple[float, float], ...]
    """p20 and p80 at each x; empty where the quantity has none."""
    wrong: tuple[bool, ...]


@dataclass(frozen=True)
class Bar:
    """How far one contestant gets: numbers of tokens, 0 for none."""

    peer: str
    survived: int
    failed: int


@dataclass(frozen=True)
class Chart:
    """One picture: a panel for each direction, or bars."""

    name: str
    title: str
    axis: str
    quantity: str
    ticks: tuple[tuple[float, str], ...]
    panels: tuple[tuple[str, tuple[Series, ...]], ...]
    bars: tuple[Bar, ...] = ()


QUANTITIES = {
    "time": "median ms (band: p20 to p80)",
    "memory": "peak MB beyond inputs and outputs",
    "limit": "% of limit",
}
AXES = {"n": "tokens of a (= b)", "c": "channels"}
SWEEPS = (("time", "n"), ("time", "c"), ("memory", "n"), ("limit", "n"), ("limit", "c"))


def _value(line: Line, quantity: str) -> float | None:
    if quantity == "time":
        return line.row.get("median_ms")
    if quantity == "memory":
        return line.row.get("memory_mb")
    fraction = line.row.get("limit_fraction")
    return None if fraction is None else 100 * fraction


def _split(case: Case, axis: str) -> tuple[Case, int, str] | None:
    """The case without what varies along an axis; what varies, and its label. None: not on this axis."""
    if axis == "c":
        return replace(case, channels=0), case.channels, str(case.channels)
    if case.a != case.b:
        return None
    height, width = case.a
    return replace(case, a=(0, 0), b=(0, 0)), height * width, f"{height}x{width}"


def _fixed(case: Case, axis: str) -> str:
    """What stays the same, as text."""
    parts = str(case).split(",")
    return ", ".join(p for p in parts if not p.startswith("C=" if axis == "c" else "N="))


def _longest(groups: Sequence[Group], axis: str, states: tuple[str, ...]) -> tuple[Case, dict[int, str]] | None:
    """The setting with the most values along the axis at which any contestant has one of the states."""
    found: dict[Case, dict[int, str]] = {}
    for one in groups:
        split = _split(one.case, axis)
        if split and any(line.row.get("status") in states for line in one.lines):
            found.setdefault(split[0], {})[split[1]] = split[2]
    best = max(found.items(), key=lambda item: len(item[1]), default=None)
    return best if best and len(best[1]) > 1 else None


def _series(groups: Sequence[Group], setting: Case, axis: str, quantity: str) -> tuple[Series, ...]:
    """Of one direction."""
    points: dict[str, list[tuple[float, float, tuple[float, float] | None, bool]]] = {}
    for one in groups:
        split = _split(one.case, axis)
        if split is None or split[0] != setting:
            continue
        for line in one.lines:
            value = _value(line, quantity) if line.ok else None
            # A logarithm has no place for nothing.
            if value is None or not (value > 0 or quantity == "limit"):
                continue
            low, high = (line.row.get(k) for k in ("p20_ms", "p80_ms"))
            band = (low, high) if quantity == "time" and low is not None and high is not None else None
            points.setdefault(line.peer, []).append((split[1], value, band, line.wrong))
    series = []
    for peer in sorted(points, key=_rank):
        x, y, bands, wrong = zip(*sorted(points[peer], key=lambda p: p[0]), strict=True)
        series.append(Series(peer, x, y, () if None in bands else bands, wrong))
    return tuple(series)


def _bars(groups: Sequence[Group], setting: Case) -> tuple[Bar, ...]:
    """The largest number of tokens that each contestant did, and the smallest at which its memory was not enough."""
    done: dict[str, list[int]] = {}
    failed: dict[str, list[int]] = {}
    for one in groups:
        split = _split(one.case, "n")
        if split is None or split[0] != setting:
            continue
        for line in one.lines:
            if line.ok:
                done.setdefault(line.peer, []).append(split[1])
            elif line.row.get("status") == "out of memory":
                failed.setdefault(line.peer, []).append(split[1])
    return tuple(
        Bar(peer, max(done.get(peer, [0])), min(failed.get(peer, [0]))) for peer in sorted({*done, *failed}, key=_rank)
    )


def charts(rows: Sequence[Row]) -> list[Chart]:
    """What there is to plot, by work, dtype and device; nothing with fewer than two points on its axis."""
    found: dict[tuple[str, str, str], list[Group]] = {}
    for one in group(rows):
        found.setdefault((one.work, one.case.dtype, one.where), []).append(one)
    made: list[Chart] = []
    for (work, dtype, where), groups in found.items():
        stem = re.sub(r"\W+", "_", f"{work}_{dtype}_{where}")
        for quantity, axis in SWEEPS:
            longest = _longest(groups, axis, ("ok",))
            if longest is None:
                continue
            setting, values = longest
            panels = []
            for direction in dict.fromkeys(g.direction for g in groups):
                series = _series([g for g in groups if g.direction == direction], setting, axis, quantity)
                if len({x for s in series for x in s.x}) > 1:
                    panels.append((direction, series))
            if panels:
                title = f"{work}: {quantity} against {axis.upper()} ({where}; {_fixed(setting, axis)})"
                made.append(Chart(
                    f"{stem}_{quantity}_{axis}", title, axis, quantity, tuple(sorted(values.items())), tuple(panels),
                ))  # fmt: skip
        made += _survival(work, where, stem, groups)
    return made


def _survival(work: str, where: str, stem: str, groups: Sequence[Group]) -> list[Chart]:
    """The chart of the largest sizes, in the direction that needs the most."""
    direction = next(d for d in ("both", "backward", "forward") if any(g.direction == d for g in groups))
    groups = [g for g in groups if g.direction == direction]
    longest = _longest(groups, "n", ("ok", "out of memory"))
    if longest is None:
        return []
    setting, values = longest
    title = f"{work}, {direction}: largest size that survives ({where}; {_fixed(setting, 'n')})"
    ticks = tuple(sorted(values.items()))
    return [Chart(f"{stem}_survival", title, "n", "survival", ticks, (), _bars(groups, setting))]


def digest(chart: Any) -> str:
    """SHA-256 of what a chart (a dataclass) shows."""
    return hashlib.sha256(json.dumps(asdict(chart), sort_keys=True).encode()).hexdigest()


def _rank(peer: str) -> tuple[int, str]:
    return (ORDER.index(peer) if peer in ORDER else len(ORDER), peer)


def _style(peer: str) -> dict[str, Any]:
    """Colour, marker and width of a contestant, the same in every plot."""
    known, rest = peer in ORDER, len(COLOURS) - len(ORDER)
    index = ORDER.index(peer) if known else len(ORDER) + zlib.crc32(peer.encode()) % rest
    ours = peer == OURS
    return {
        "color": COLOURS[index],
        "marker": MARKERS[index % len(MARKERS)],
        "linewidth": 3.0 if ours else 1.4,
        "markersize": 6.0 if ours else 5.0,
        "zorder": 4 if ours else 3,
    }


def draw(chart: Chart) -> Any:
    """The chart as a matplotlib Figure."""
    from matplotlib.figure import Figure

    if chart.bars:
        figure = Figure(figsize=(8.5, 1.6 + 0.36 * len(chart.bars)), layout="constrained")
        _draw_bars(figure.subplots(), chart)
    else:
        figure = Figure(figsize=(1.9 + 3.7 * len(chart.panels), 4.0), layout="constrained")
        axes = figure.subplots(1, len(chart.panels), sharey=chart.quantity == "limit", squeeze=False)[0]
        for at, (direction, series) in zip(axes, chart.panels, strict=True):
            _draw_panel(at, chart, direction, series)
        axes[0].set_ylabel(QUANTITIES[chart.quantity])
        handles = {line.get_label(): line for at in axes for line in at.get_lines() if line.get_label()[0] != "_"}
        names = sorted(handles, key=_rank)
        figure.legend([handles[n] for n in names], names, loc="outside right upper", frameon=False, fontsize=9)
        if any(any(s.wrong) for _, series in chart.panels for s in series):
            figure.supxlabel("hollow: error over 10 times the smallest, or not a number", fontsize=8, color="#666666")
    # Two lines: what is shown, then where and at what setting.
    figure.suptitle(chart.title.replace(" (", "\n(", 1), fontsize=10)
    return figure


def _ticks(at: Any, chart: Chart) -> None:
    """Labels at the measured sizes; those too near their neighbour on the logarithmic axis are left out."""
    shown: list[tuple[float, str]] = []
    span = max(chart.ticks[-1][0] / chart.ticks[0][0], 2.0) ** (1 / 14)
    for value, label in chart.ticks:
        if not shown or value / shown[-1][0] >= span:
            shown.append((value, label))
    at.set_xscale("log")
    at.set_xticks([v for v, _ in shown], [t for _, t in shown], rotation=45, ha="right", rotation_mode="anchor")
    at.set_xticks([], minor=True)
    at.tick_params(labelsize=8)
    at.grid(alpha=0.25, which="major")
    for side in ("top", "right"):
        at.spines[side].set_visible(False)


def _draw_panel(at: Any, chart: Chart, direction: str, series: Sequence[Series]) -> None:
    """Lines of one direction."""
    for one in series:
        style = _style(one.peer)
        at.plot(one.x, one.y, label=one.peer, **style)
        hollow = [(x, y) for x, y, wrong in zip(one.x, one.y, one.wrong, strict=True) if wrong]
        if hollow:
            kept = {k: v for k, v in style.items() if k in ("color", "marker", "markersize")}
            at.plot(*zip(*hollow, strict=True), linestyle="", markerfacecolor="white", zorder=5, label="_", **kept)
        if one.band:
            low, high = zip(*one.band, strict=True)
            at.fill_between(one.x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    _ticks(at, chart)
    if chart.quantity == "limit":
        at.set_ylim(bottom=0)
    else:
        at.set_yscale("log")
    at.set_xlabel(AXES[chart.axis], fontsize=9)
    at.set_title(direction, fontsize=10)


def _draw_bars(at: Any, chart: Chart) -> None:
    """One bar for each contestant; a cross where its memory was not enough."""
    labels = dict(chart.ticks)
    left = chart.ticks[0][0] / 2
    for index, bar in enumerate(chart.bars):
        if bar.survived:
            at.barh(index, bar.survived - left, left=left, height=0.6, color=_style(bar.peer)["color"])
            inside = {"ha": "right", "color": "white"}
            at.text(bar.survived / 1.06, index, labels[bar.survived], va="center", fontsize=8, **inside)
        if bar.failed:
            at.plot([bar.failed], [index], marker="x", color="#c1121f", markersize=8, markeredgewidth=2)
            at.text(bar.failed * 1.1, index, "out of memory", va="center", fontsize=8, color="#c1121f")
        elif bar.survived:
            at.text(bar.survived * 1.06, index, "none larger was tried", va="center", fontsize=8, color="#666666")
    _ticks(at, chart)
    at.set_xlim(left, chart.ticks[-1][0] * 3)
    at.set_yticks(range(len(chart.bars)), [bar.peer for bar in chart.bars])
    at.invert_yaxis()
    at.grid(visible=False, axis="y")
    at.set_xlabel(AXES["n"], fontsize=9)


def plots(rows: Sequence[Row]) -> list[tuple[str, str, Any]]:
    """Every chart of the rows as (name, title, matplotlib Figure)."""
    return [(chart.name, chart.title, draw(chart)) for chart in charts(rows)]


def svg(chart: Chart) -> str:
    """The chart as SVG with its digest in the metadata; the same rows under one matplotlib give the same text."""
    return figure_svg(draw(chart), digest(chart))


def figure_svg(figure: Any, shown: str) -> str:
    """A matplotlib Figure as SVG, without a time; `shown` is the digest of what it shows."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "cosegflow"}):
        metadata = {"Date": None, "Creator": None, "Description": f"sha256 of the data: {shown}"}
        figure.savefig(text, format="svg", metadata=metadata)
    # matplotlib leaves blanks at the ends of lines.
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def digest_in(picture: str) -> str | None:
    """The digest that an SVG carries."""
    found = re.search(r"sha256 of the data: ([0-9a-f]{64})", picture)
    return found[1] if found else None

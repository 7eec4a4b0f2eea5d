"""The generated tables and lines of docs/results.md."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cosegflow.ablation.results import (
    MAIN,
    MATCHING,
    METRICS,
    NAMES,
    SEGMENTATION,
    STAMPS,
    WITHOUT_TRAINING,
    Metric,
    Results,
    mean_and_deviation,
    metric,
)
from cosegflow.benchmarks.documents import markdown_table

ALONE = {"matching": "match-only", "masks": "coseg-only"}
SUMMARY = (
    *(metric("stamps", name) for name in ("pck@0.05", "pck@0.1", "end_point_error", "jaccard", "consistency")),
    metric("caltech-101", "lt_acc"),
    metric("caltech-101", "jaccard"),
    metric("weizmann-horse", "jaccard"),
    metric("tss", "flow_accuracy"),
    metric("pf-willow", "pck@0.1"),
)
"""What the tables of other rows show."""
MASKS = (
    metric("stamps", "consistency"),
    metric("stamps", "jaccard"),
    metric("caltech-101", "jaccard"),
    metric("weizmann-horse", "jaccard"),
    metric("tss", "iou"),
)


def _named(what: Metric) -> str:
    return f"{NAMES[what.dataset]} {what.heading}"


def _pairs(results: Results, shown: Sequence[Metric]) -> str:
    """How many pairs the values are means over."""
    parts = []
    for dataset in dict.fromkeys(what.dataset for what in shown):
        numbers = sorted({n for row in results.rows if (n := results.pairs(row, dataset)) is not None})
        if numbers:
            parts.append(f"{NAMES[dataset]} {' or '.join(map(str, numbers))}")
    return f"\n\nPairs: {', '.join(parts)}." if parts else ""


def main_table(results: Results, shown: Sequence[Metric], rows: Sequence[str] = MAIN) -> str:
    """Mean and deviation over the seeds of the rows that were measured."""
    body = [
        (row, str(len(results.seeds(row))), *(what.spread(list(results.of(row, what).values())) for what in shown))
        for row in rows
        if row in results.rows
    ]
    table = markdown_table(("", "seeds", *map(_named, shown)), body)
    return table + _pairs(results, shown)


def consistency(results: Results) -> str:
    """What the masks are worth in every row that learns them."""
    rows = [row for row in results.rows if row not in WITHOUT_TRAINING and any(results.of(row, what) for what in MASKS)]
    return main_table(results, MASKS, rows)


def _better(what: Metric, differences: Sequence[float]) -> str:
    """In how many seeds the first row is better."""
    good = sum(d < 0 if what.lower_is_better else d > 0 for d in differences)
    return f"{good} of {len(differences)}"


def compared(results: Results, row: str, others: Mapping[str, str], shown: Sequence[Metric] = METRICS) -> str:
    """A row against others, metric by metric, paired by seed.

    others: whom it is compared with in what is of "matching" and of "masks".
    """
    body = []
    for what in shown:
        other = others[what.of]
        found = results.difference(row, other, what)
        if not found:
            continue
        mine, theirs = (list(results.of(name, what).values()) for name in (row, other))
        lowest, highest = what.number(min(found), True), what.number(max(found), True)
        span = f"{lowest} to {highest}" if len(found) > 1 else ""
        body.append((
            _named(what) + (" (lower is better)" if what.lower_is_better else ""), what.spread(mine),
            f"{what.spread(theirs)} ({other})", what.spread(found, True), span, _better(what, found),
        ))  # fmt: skip
    if not body:
        return f"Not measured yet: {row} beside {' or '.join(dict.fromkeys(others.values()))}."
    header = ("", row, "the other", "difference", "over seeds", f"{row} is better in")
    return f"{markdown_table(header, body)}\n\nDifferences are of runs with the same seed."


def _changes(results: Results, row: str) -> str:
    """What a row's settings have that those of joint have not."""
    if row in WITHOUT_TRAINING:
        return "no training"
    own, base = results.settings(row), results.settings("joint")
    return ", ".join(
        f"{name} {_plain(own[name]) if name in own else 'default'}"
        for name in sorted({*own, *base})
        if own.get(name, "default") != base.get(name, "default")
    )


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def without(results: Results) -> str:
    """All other rows: what changes, and the difference from joint."""
    names = [row for row in results.rows if row not in MAIN]
    shown = [what for what in SUMMARY if results.of("joint", what)]
    own = [what.spread(list(results.of("joint", what).values())) for what in shown]
    body = [["joint", "", str(len(results.seeds("joint"))), *own]]
    for row in names:
        cells = [what.spread(results.difference(row, "joint", what), True) for what in shown]
        body.append([row, _changes(results, row), str(len(results.seeds(row))), *cells])
    if not names or not shown:
        return "Not measured yet: rows that leave something out, beside joint."
    reverse = ", ".join(_named(what) for what in shown if what.lower_is_better)
    lower = f" (less is better: {reverse})" if reverse else ""
    table = markdown_table(("", "changed", "seeds", *map(_named, shown)), body)
    return (
        f"{table}\n\nThe first line is joint itself; below it are differences from joint, of runs with the same seed. "
        f"Where more is better, a minus says that what was left out helps{lower}."
    )


def settings(results: Results) -> str:
    """The rows: how they differ from joint, and joint from the defaults."""
    body = []
    for row in results.rows:
        own = results.settings(row)
        text = (
            ", ".join(f"{k} {_plain(v)}" for k, v in sorted(own.items())) if row == "joint" else _changes(results, row)
        )
        body.append((row, text, ", ".join(map(str, results.seeds(row)))))
    table = markdown_table(("row", "settings", "seeds"), body)
    return f"{table}\n\nSettings of joint: what differs from the defaults; of the others: what differs from joint."


def by_rounds(results: Results) -> str:
    """Quality of joint against the number of gated rounds."""
    rounds = results.numbers("joint", "rounds")
    if not rounds:
        return "Not measured yet."
    body = [
        (str(k), *(what.spread(list(results.of("joint", what, f"rounds={k}").values())) for what in STAMPS))
        for k in rounds
    ]
    return f"{markdown_table(('gated rounds', *(w.heading for w in STAMPS)), body)}\n\nJoint, on stamps."


CLUTTER = tuple(metric("stamps", name) for name in ("pck@0.05", "pck@0.1", "jaccard"))
CLUTTERED = (("joint", 1), ("joint", 0), ("match-only", 0))
"""Rows, and whether the masks gate the matching."""


def cluttered_title(row: str, masks: int) -> str:
    """How tables and plots call an entry of CLUTTERED."""
    return row if row == "match-only" else f"{row}, {'with' if masks else 'without'} masks"


def by_clutter(results: Results) -> str:
    """PCK and Jaccard against the number of distractors."""
    amounts = results.numbers("joint", "clutter")
    if not amounts:
        return "Not measured yet."
    body = []
    for what in CLUTTER:
        for row, masks in CLUTTERED:
            found = [results.of(row, what, f"clutter={n},masks={masks}") for n in amounts]
            if not any(found):
                continue
            first, last = found[0], found[-1]
            change = [last[seed] - first[seed] for seed in first if seed in last]
            cells = (what.spread(list(values.values())) for values in found)
            body.append((what.heading, cluttered_title(row, masks), *cells, what.spread(change, True)))
    header = ("", "", *(f"{n} distractors" for n in amounts), f"from {amounts[0]} to {amounts[-1]}")
    return (
        f"{markdown_table(header, body)}\n\nOn stamps, with exactly so many distractors in each image. With masks: "
        "after the last round; without: the matching before the first mask gates it, and the masks that follow."
    )


def targets(results: Results) -> str:
    """The figures that were asked for beforehand, and what was measured."""
    goals = (
        ("joint minus zero-shot", metric("pf-willow", "pck@0.1"), "zero-shot", 0.08),
        ("joint minus match-only", metric("stamps", "pck@0.05"), "match-only", 0.03),
        ("joint minus coseg-only", metric("stamps", "jaccard"), "coseg-only", 0.05),
        ("joint", metric("weizmann-horse", "jaccard"), None, 0.60),
    )
    body = []
    for title, what, other, least in goals:
        found = results.difference("joint", other, what) if other else list(results.of("joint", what).values())
        sign = other is not None
        verdict = ("met" if mean_and_deviation(found)[0] >= least else "missed") if found else "not measured"
        body.append(
            (f"{title}: {_named(what)}", f"at least {what.number(least, sign)}", what.spread(found, sign), verdict)
        )
    minutes = [seconds / 60 for seconds in results.by_seed("joint", "", "train_seconds").values()]
    spent = f"{max(minutes):.1f} min (longest of {len(minutes)})" if minutes else "-"
    verdict = ("met" if max(minutes) < 25 else "missed") if minutes else "not measured"
    body.append(("one training run of joint", "under 25 min", spent, verdict))
    return markdown_table(("figure", "goal", "measured", ""), body)


def provenance(results: Results) -> str:
    """Where, when and with what; how many runs, and how long they took."""
    found = results.measurements
    days = sorted({m.date[:10] for m in found})
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    commits = ", ".join(dict.fromkeys(m.commit[:9] for m in found if m.commit)) or "unknown"
    local = " with local changes" if any(m.modified for m in found) else ""

    def each(name: str) -> str:
        return " or ".join(dict.fromkeys(str(getattr(m, name)) for m in found))

    spent = [m.value for m in found if (m.dataset, m.metric) == ("", "train_seconds")]
    text = (
        f"Measured on {when}: {each('cpu')}, {each('threads')} thread(s) a run, torch {each('torch')}, cosegflow "
        f"{each('version')}, commit {commits}{local}. {len(spent)} training runs"
        + (f", {sum(spent) / 60:.0f} minutes of training in all." if spent else ".")
    )
    parts = []
    for name, unit in (("steps", "steps"), ("train_seconds", "minutes"), ("step_seconds", "seconds a step")):
        values = [v / 60 if unit == "minutes" else v for v in results.by_seed("joint", "", name).values()]
        if values:
            mean = math.fsum(values) / len(values)
            parts.append(
                f"{mean:.0f} {unit}" if unit == "steps" else f"{mean:.{1 if unit == 'minutes' else 2}f} {unit}"
            )
    if parts:
        text += f" A run of joint: {', '.join(parts)}."
    if results.outdated:
        text += f" {results.outdated} measurements of older settings in the file are left out."
    return text


MAIN_TABLES = {"main_stamps": STAMPS, "main_segmentation": SEGMENTATION, "main_matching": MATCHING}

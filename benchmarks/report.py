"""Result rows as one HTML file that needs nothing else: provenance, method, tables, plots, and what failed."""

import base64
import math
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from . import plots
from .rows import PROVENANCE, Row
from .table import HEADER, HINT, OURS, Group, Line, cells, group, reason_text, significant

METHOD = """\
Inputs are random. Every contestant of one size runs in one process, in turn with the others, warmed up, until each
has 50 readings or its time budget is over; the tables hold the median and the 20th and 80th percentile. On a GPU: CUDA
events around one call, the L2 cache overwritten before each, inputs rotating. On the CPU: torch.utils.benchmark. The
error is the largest absolute difference from a float64 evaluation of the definition, of the output or (backward, both)
of any gradient. Memory is the peak beyond inputs, outputs and input gradients: of the CUDA allocator, or of a child
process. The limit is the time that the busiest unit alone needs for the bytes, products and exponentials that any
algorithm needs, at rates measured in the same run."""

STYLE = """\
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
h1, h2, h3, p { overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: .5em 0 1.5em; font-variant-numeric: tabular-nums }
th, td { padding: .2em .8em; text-align: right; border-bottom: 1px solid #e4e4e4 }
th { cursor: pointer; border-bottom: 2px solid #888; white-space: nowrap }
td:first-child, th:first-child, td.text { text-align: left }
tr.ours { font-weight: bold } tr.refused { color: #946200 } td.wrong { color: #c1121f; font-weight: bold }
img { max-width: 100%; display: block; margin: 1em 0 }
@media (max-width: 700px) { img { max-width: none } }
.note { color: #555; max-width: 60em }"""

SCRIPT = """\
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex, up = head.dataset.up !== "1";
  head.dataset.up = up ? "1" : "0";
  const key = row => { const cell = row.cells[column], number = parseFloat(cell?.dataset.value);
    return isNaN(number) ? cell?.textContent ?? "" : number; };
  const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
  [...body.rows].sort((a, b) => (up ? 1 : -1) * order(key(a), key(b))).forEach(row => body.append(row));
});"""


def provenance(rows: Sequence[Row]) -> dict[str, str]:
    """Each column of provenance: its values in the order in which they come; of dates, the first and the last."""
    found: dict[str, str] = {}
    for name in PROVENANCE:
        values = [str(row[name]) for row in rows if row.get(name) not in (None, "")]
        if name == "date" and values:
            values = [min(values), max(values)]
        if values:
            found[name] = (" to " if name == "date" else ", ").join(dict.fromkeys(values))
    return found


def rates(rows: Sequence[Row]) -> str:
    """The ceilings that the rows were compared with."""
    units = (
        ("copy_gb_s", "copy {} GB/s"),
        ("matrix_tflop_s", "{dtype} products {} TFLOP/s"),
        ("exp_g_s", "exp {} G/s"),
    )
    found = [
        text.format(significant(row[column]), dtype=row["dtype"])
        for column, text in units
        for row in rows
        if row.get(column) is not None
    ]
    return ", ".join(dict.fromkeys(found))


def _origin(rows: Sequence[Row]) -> dict[str, str]:
    """What the page says about where its numbers come from."""
    versions = dict.fromkeys(f"{row['peer']} {row['peer_version']}" for row in rows if row.get("peer_version"))
    return {**provenance(rows), "ceilings": rates(rows), "contestants": ", ".join(versions)}


def _cell(text: str, value: float | None = None, kind: str = "") -> str:
    """A cell; `value` is what it is sorted by."""
    number = "" if value is None or not math.isfinite(value) else f' data-value="{value!r}"'
    return f"<td{number}{kind and f' class={kind}'}>{escape(text)}</td>"


def _row(one: Group, line: Line) -> str:
    """A line of a group, its size first."""
    row = line.row
    size = _cell(str(one.case), kind="text")
    if not line.ok:
        refusal = f'<td class=text colspan="{len(HEADER) - 1}">{escape(reason_text(row))}</td>'
        return f"<tr class=refused>{size}{_cell(line.peer, kind='text')}{refusal}</tr>"
    values = (None, row["median_ms"], line.ratio, row.get("error_max"), row.get("memory_mb"), row.get("limit_fraction"))
    texts = cells(line, one.best)
    body = [
        _cell(text, value, "text" if i == 0 else "wrong" if line.wrong and HEADER[i] == "error" else "")
        for i, (text, value) in enumerate(zip(texts, values, strict=True))
    ]
    ours = " class=ours" if line.peer == OURS else ""
    return f"<tr{ours}>{size}{''.join(body)}</tr>"


def _table(header: Iterable[str], body: Iterable[str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    rows = "\n".join(body)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>"


def _tables(groups: Sequence[Group]) -> Iterable[str]:
    """One table for each work, direction and device."""
    titled: dict[str, list[Group]] = {}
    for one in groups:
        titled.setdefault(one.title, []).append(one)
    for title, members in titled.items():
        yield f"<h3>{escape(title)}</h3>"
        yield _table(("size", *HEADER), (_row(one, line) for one in members for line in one.lines))


def _pictures(rows: Sequence[Row]) -> Iterable[str]:
    """The plots, embedded."""
    try:
        for chart in plots.charts(rows):
            data = base64.b64encode(plots.svg(chart).encode()).decode()
            picture = f'<img alt="{escape(chart.title)}" src="data:image/svg+xml;base64,{data}">'
            yield f"<div class=wide>{picture}</div>"
    except ImportError:
        yield "<p>No plots: matplotlib is not installed.</p>"


def _refused(groups: Sequence[Group]) -> str:
    """What has no time, and why."""
    body = [
        f"<tr>{_cell(one.title, kind='text')}{_cell(str(one.case), kind='text')}{_cell(line.peer, kind='text')}"
        f"{_cell(reason_text(line.row), kind='text')}</tr>"
        for one in groups
        for line in one.lines
        if not line.ok
    ]
    return _table(("work", "size", "contestant", "reason"), body) if body else "<p>Nothing.</p>"


def html(rows: Sequence[Row]) -> str:
    """The page."""
    groups = group(rows)
    origin = [f"<tr>{_cell(name)}{_cell(text, kind='text')}</tr>" for name, text in _origin(rows).items()]
    pictures = list(_pictures(rows))
    return "\n".join([
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8"><title>cosegflow: benchmarks</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>\n{STYLE}\n</style></head><body>", "<h1>cosegflow: benchmarks</h1>",
        _table(("measured on", ""), origin) if rows else "<p>No rows.</p>",
        f"<h2>Method</h2><p class=note>{escape(METHOD)}</p>",
        f"<h2>Results</h2><p class=note>{escape(HINT)} A click on a heading sorts.</p>",
        *_tables(groups), "<h2>Plots</h2>", *(pictures or ["<p>No work has two sizes on one axis.</p>"]),
        "<h2>Without a time</h2>", _refused(groups), f"<script>\n{SCRIPT}\n</script>", "</body></html>\n",
    ])  # fmt: skip


def write_report(rows: Sequence[Row], path: Path) -> None:
    """Writes the page beside and renames it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(html(rows), encoding="utf-8")
    os.replace(temporary, path)

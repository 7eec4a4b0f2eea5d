"""Result rows as a table: contestants of one work, direction and size together, ours first, wrong answers marked."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .case import Case
from .rows import Row

OURS = "cosegflow"
WRONG = 10.0
"""A contestant whose error is larger than the smallest of its group by more than this factor is marked ..."""
ROUNDING = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 1e-2, "float16": 1e-2}
"""... unless its relative error is below this: less exact, then, but not wrong."""

HEADER = ("contestant", "ms (p20..p80)", "x ours", "error", "MB", "% of limit")
HINT = (
    "x ours: median over that of cosegflow; for cosegflow, the fastest right peer over ours. error: largest absolute "
    "difference from float64; !: over 10 times the smallest and beyond rounding, or not a number. MB: peak "
    "beyond inputs and outputs."
)


@dataclass(frozen=True)
class Line:
    """One contestant."""

    row: Row
    ratio: float | None
    """Its time over ours; for ours, the time of the best peer over ours."""
    wrong: bool

    @property
    def peer(self) -> str:
        return str(self.row["peer"])

    @property
    def ok(self) -> bool:
        return self.row.get("status") == "ok" and self.row.get("median_ms") is not None


@dataclass(frozen=True)
class Group:
    """The contestants of one work, direction, device and case: ours, then by time, then those without a time."""

    work: str
    direction: str
    where: str
    """The device, and on the CPU its threads."""
    case: Case
    lines: tuple[Line, ...]
    best: str | None
    """The fastest peer that is not marked wrong."""

    @property
    def title(self) -> str:
        return f"{self.work}, {self.direction} ({self.where})"

    def line(self, peer: str) -> Line | None:
        """The line of a contestant, if it is here and has a time."""
        return next((line for line in self.lines if line.peer == peer and line.ok), None)


def case_of(row: Row) -> Case:
    """The size of a row."""
    grids = [tuple(int(n) for n in str(row[k]).split("x")) for k in ("a", "b")]
    others = {k: row[k] for k in ("batch", "channels", "dtype", "foreground", "layout", "beta", "flow", "radius")}
    return Case(a=(grids[0][0], grids[0][1]), b=(grids[1][0], grids[1][1]), **others)


def is_wrong(error: float | None, errors: Iterable[float]) -> bool:
    """Whether an error stands out of those of its group; one that was not measured does not."""
    if error is None:
        return False
    if not math.isfinite(error):
        return True
    return not error <= WRONG * min((e for e in errors if math.isfinite(e)), default=math.inf)


def _rounding(row: Row) -> bool:
    """Whether the relative error is known and no more than rounding explains."""
    relative = row.get("error_rel")
    return relative is not None and relative <= ROUNDING[row["dtype"]] and math.isfinite(row["error_max"])


def group(rows: Sequence[Row]) -> list[Group]:
    """Rows in groups, by work, direction and device in the order of coming; of equal rows the first that is ok."""
    found: dict[tuple[str, str, str], dict[Case, dict[str, Row]]] = {}
    for row in rows:
        where = f"{row['device']}, {row.get('threads')} threads" if row["device"] == "cpu" else str(row["device"])
        cases = found.setdefault((row["work"], row["direction"], where), {})
        peers = cases.setdefault(case_of(row), {})
        # Slow peers are measured in steps of their own, with ours beside them: what was measured first stays.
        if peers.get(row["peer"], {}).get("status") != "ok":
            peers[row["peer"]] = row
    return [
        Group(*key, case, *_lines(list(peers.values())))
        for key, cases in found.items()
        for case, peers in cases.items()
    ]


def _lines(rows: list[Row]) -> tuple[tuple[Line, ...], str | None]:
    """The lines of one group and its best peer."""
    plain = [Line(row, None, False) for row in rows]
    errors = [line.row["error_max"] for line in plain if line.ok and line.row.get("error_max") is not None]
    marked = [
        Line(x.row, None, x.ok and is_wrong(x.row.get("error_max"), errors) and not _rounding(x.row)) for x in plain
    ]
    right = [x for x in marked if x.ok and not x.wrong and x.peer != OURS and x.row.get("error_max") is not None]
    best = min(right, key=lambda x: x.row["median_ms"], default=None)
    own = next((x.row["median_ms"] for x in marked if x.ok and x.peer == OURS), None)

    def ratio(line: Line) -> float | None:
        if not line.ok or not own:
            return None
        if line.peer == OURS:
            return best.row["median_ms"] / own if best else None
        return float(line.row["median_ms"] / own)

    lines = [Line(x.row, ratio(x), x.wrong) for x in marked]
    lines.sort(key=lambda x: (x.peer != OURS, not x.ok, x.row["median_ms"] if x.ok else 0.0))
    return tuple(lines), best.peer if best else None


def significant(value: float | None, digits: int = 3) -> str:
    """A number with three digits that count and no exponent; '-' where there is none."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value) or value == 0:
        return f"{value:g}"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):.{max(0, decimals)}f}"


def error_text(line: Line) -> str:
    """The largest error with its mark."""
    error = line.row.get("error_max")
    if error is None:
        return "-"
    return ("NaN" if math.isnan(error) else f"{error:.1e}") + (" !" if line.wrong else "")


def limit_text(row: Row) -> str:
    """The fraction of the limit and what the limit is."""
    fraction = row.get("limit_fraction")
    if fraction is None or math.isnan(fraction):
        return "-"
    return f"{significant(100 * fraction, 2)} {row.get('limit_by') or ''}".strip()


def reason_text(row: Row, longest: int = 300) -> str:
    """Why there is no time, on one line."""
    reason = " ".join(str(row.get("reason") or "").split())
    if len(reason) > longest:
        reason = reason[: longest - 3] + "..."
    status = str(row.get("status") or "no status")
    return f"{status}: {reason}" if reason else status


def cells(line: Line, best: str | None) -> tuple[str, ...]:
    """A line that has a time as text, under HEADER."""
    row = line.row
    times = [significant(row.get(k)) for k in ("median_ms", "p20_ms", "p80_ms")]
    ratio = significant(line.ratio)
    if line.peer == OURS and line.ratio is not None:
        ratio += f" {best}"
    return (
        line.peer,
        f"{times[0]} ({times[1]}..{times[2]})",
        ratio,
        error_text(line),
        significant(row.get("memory_mb")),
        limit_text(row),
    )


def _widths(groups: Sequence[Group]) -> list[int]:
    """Of the columns; the first also holds the names of those without a time."""
    texts = [HEADER, *(cells(line, g.best) for g in groups for line in g.lines if line.ok)]
    widths = [max(len(text[i]) for text in texts) for i in range(len(HEADER))]
    widths[0] = max(widths[0], *(len(line.peer) for g in groups for line in g.lines))
    return widths


def plain(rows: Sequence[Row]) -> str:
    """The table in fixed width; ASCII but for what the rows themselves hold."""
    groups = group(rows)
    if not groups:
        return "no rows"
    widths = _widths(groups)
    lines: list[str] = []

    def add(text: tuple[str, ...]) -> None:
        padded = [t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(text, widths, strict=True))]
        lines.append("    " + "  ".join(padded))

    title = ""
    for one in groups:
        if one.title != title:
            title = one.title
            lines += ["", title]
            add(HEADER)
        lines.append(f"  {one.case}")
        for line in one.lines:
            if line.ok:
                add(cells(line, one.best))
            else:
                lines.append(f"    {line.peer.ljust(widths[0])}  {reason_text(line.row)}")
    return "\n".join([*lines, "", HINT]).lstrip("\n")


def print_table(rows: Sequence[Row], console: Any = None) -> None:
    """Prints the table; in colour where rich is installed and the terminal has any.

    Args:
        console: a `rich.console.Console`; None: the terminal.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(plain(rows))
        return
    console = console or Console()
    groups = group(rows)
    if not groups:
        console.print("no rows")
        return
    widths = _widths(groups)
    fits = sum(widths) + 2 * len(widths) <= console.width

    def show(lines: Sequence[Sequence[Text]]) -> None:
        # A table for each size, with columns of one width, so that sizes can stand between as headings.
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for i, width in enumerate(widths):
            table.add_column(
                min_width=width if fits else None,
                no_wrap=HEADER[i] == "error",  # the mark stays with its number
                overflow="fold",
                justify="left" if i == 0 else "right",
            )
        for line in lines:
            table.add_row(*line)
        console.print(table)

    def styled(line: Line, best: str | None) -> list[Text]:
        # Text, not str: a name or a reason may hold what looks like markup.
        texts = [Text(text, style="bold" if line.peer == OURS else "") for text in cells(line, best)]
        if line.wrong:
            texts[HEADER.index("error")].stylize("bold red")
        return texts

    title = ""
    for one in groups:
        if one.title != title:
            title = one.title
            console.print(Text("\n" + title, style="bold underline"))
            show([[Text(name, style="dim") for name in HEADER]])
        console.print(Text(str(one.case), style="cyan"))
        show([styled(line, one.best) for line in one.lines if line.ok])
        for line in one.lines:
            if not line.ok:
                console.print(Text(f"{line.peer.ljust(widths[0])}  {reason_text(line.row)}", style="yellow"))
    console.print(Text("\n" + HINT, style="dim"))

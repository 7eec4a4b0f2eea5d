"""Regenerates the tables and plots of README and docs from the result files under benchmarks/results/.

    python -m benchmarks.publish           # writes
    python -m benchmarks.publish --check   # prints what differs and fails

In the documents, what is between `<!-- measured: NAME -->` and `<!-- end -->` is generated; NAME is a key of BLOCKS.
A picture is not compared byte by byte, since that depends on matplotlib's version, but by the digest of what it shows.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import documents, plots, rows
from .case import Case
from .report import provenance
from .rows import Row
from .table import HEADER, OURS, Group, Line, cells, error_text, group, reason_text, significant

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("benchmarks", "results")
PICTURES = Path("docs", "images", "bench")
DOCUMENTS = (Path("README.md"), Path("docs", "benchmarks.md"))


@dataclass(frozen=True)
class Spec:
    """What a block shows: rows of the newest result file, and how."""

    files: tuple[str, ...]
    """Patterns under benchmarks/results/; the first that finds rows of the device counts."""
    device: str
    render: Callable[[Sequence[Row]], str]
    absent: str
    """The text where there is no such file."""
    works: tuple[str, ...] = ()
    """Empty: all, as with those below."""
    directions: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    pictures: bool = False
    """The block shows the plots of its rows."""

    def select(self, found: Sequence[Row]) -> list[Row]:
        """The rows that the block shows."""
        wanted = {"device": (self.device,), "work": self.works, "direction": self.directions, "dtype": self.dtypes}
        return [row for row in found if all(not valid or row[key] in valid for key, valid in wanted.items())]


def newest(root: Path, spec: Spec) -> list[Row]:
    """The rows, of the spec's device, of the fullest file of the latest day; never of a rehearsal."""
    for pattern in spec.files:
        dated = []
        for path in (root / RESULTS).glob(pattern):
            found = [row for row in rows.read(path) if row["device"] == spec.device]
            if found and not any("--quick" in str(row.get("command")).split() for row in found):
                date = max(str(row["date"]) for row in found)
                dated.append((date[:10], len(found), date, path.name, found))
        if dated:
            return max(dated, key=lambda item: item[:4])[4]
    return []


def _size(case: Case) -> str:
    """A case for people: the grid, the channels, and what is not as usual."""
    return str(case).replace(",", ", ")


def origin(found: Sequence[Row]) -> str:
    """One sentence on where and with what the rows were made."""
    what = provenance(found)
    commits = dict.fromkeys(str(row["commit"])[:9] for row in found if row.get("commit"))
    changed = any(str(row.get("modified")) == "True" for row in found)
    days = sorted({str(row["date"])[:10] for row in found})
    dates = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    machine = what.get("device_name", "?")
    if found[0]["device"] == "cpu":
        machine += f", {what.get('threads', '?')} threads"
    for name, text in (("driver", "driver"), ("cuda", "CUDA")):
        if name in what:
            machine += f", {text} {what[name]}"
    commit = f"commit {', '.join(commits) or 'unknown'}{' with local changes' if changed else ''}"
    command = " ".join(what.get("command", "?").replace("`", "'").split())
    command = re.sub(r"(?<!\S)/\S*/", "", command)  # whose folders they were means nothing here
    return f"Measured on {dates}: {machine}, torch {what.get('torch', '?')}; {commit}; `{command}`."


def _eager(one: Group) -> Line | None:
    """The fastest eager form that has a time."""
    lines = [line for line in one.lines if line.ok and line.peer.startswith("eager")]
    return min(lines, key=lambda line: (line.wrong, line.row["median_ms"]), default=None)


def compact(found: Sequence[Row]) -> str:
    """One line for each size: eager and ours."""
    header = ("", "eager", OURS, "ratio", "error: eager", "ours", "peak MB: eager", "ours")
    body = []
    for one in group(found):
        eager, ours = _eager(one), one.line(OURS)
        by = "" if one.best is None or (eager and one.best == eager.peer) else f" ({one.best})"
        pair = (eager, ours)
        body.append((
            f"{one.work}, {one.direction}, {_size(one.case)}",
            f"{significant(eager.row['median_ms'])} ms" if eager else _refusal(one, "eager"),
            f"{significant(ours.row['median_ms'])} ms" if ours else _refusal(one, OURS),
            significant(ours.ratio) + by if ours and ours.ratio is not None else "-",
            *(error_text(line) if line else "-" for line in pair),
            *(significant(line.row.get("memory_mb")) if line else "-" for line in pair),
        ))  # fmt: skip
    note = (
        "Medians. Ratio: the fastest peer with a right answer (named where it is not eager) over cosegflow. Error: the "
        "largest absolute difference from float64, !: over 10 times the smallest of all contestants, or not a number. "
        "Peak memory: beyond inputs and outputs."
    )
    return f"{origin(found)}\n\n{documents.markdown_table(header, body)}\n\n{note}"


def _refusal(one: Group, peer: str) -> str:
    """The status of a side, by how its name begins, that has no time."""
    refused = [line for line in one.lines if line.peer.startswith(peer) and not line.ok]
    return str(refused[0].row.get("status")) if refused else "-"


def full(found: Sequence[Row]) -> str:
    """Every contestant, by work; then those without a time, by reason."""
    parts = [origin(found)]
    titled: dict[str, dict[str, list[Group]]] = {}
    for one in group(found):
        titled.setdefault(one.work, {}).setdefault(one.title, []).append(one)
    for work, tables in titled.items():
        parts.append(f"### {work}")
        refused: dict[tuple[str, str], list[str]] = {}
        for title, groups in tables.items():
            body = []
            for one in groups:
                shown = [line for line in one.lines if line.ok]
                body += [(_size(one.case) if i == 0 else "", *cells(line, one.best)) for i, line in enumerate(shown)]
                for line in (line for line in one.lines if not line.ok):
                    refused.setdefault((line.peer, reason_text(line.row, 120)), []).append(f"{title}: {one.case}")
            if body:
                parts.append(f"{title}:\n\n{documents.markdown_table(('size', *HEADER), body)}")
        if refused:
            lines = [(peer, why, _places(places)) for (peer, why), places in refused.items()]
            parts.append(f"Without a time:\n\n{documents.markdown_table(('contestant', 'reason', 'where'), lines)}")
    return "\n\n".join(parts)


def _places(places: Sequence[str]) -> str:
    """The first place, and how many more there are."""
    return places[0] + (f" and {len(places) - 1} more" if len(places) > 1 else "")


def pictures(found: Sequence[Row]) -> str:
    """Links to the plots."""
    links = [f"![{c.title}](images/bench/{c.name}.svg)" for c in plots.charts(found)]
    return "\n\n".join([origin(found), *(links or ["No work in the file has two sizes on one axis."])])


CPU, GPU = ("bench_cpu_*.csv",), ("gpu_check_*.json", "bench_*.csv")
SWEEPS = ("sweep_*.csv",)
NO_CPU = "Not measured yet: no result file of `cosegflow bench` on a CPU is committed."
NO_GPU = "No GPU result is committed yet."
NO_PLOTS = "No plots yet."
BLOCKS: dict[str, Spec] = {
    "match_cpu": Spec(CPU, "cpu", compact, NO_CPU, works=("match",), directions=("forward", "both")),
    "works_cpu": Spec(CPU, "cpu", full, NO_CPU),
    "plots_cpu": Spec((*SWEEPS, *CPU), "cpu", pictures, NO_PLOTS, works=("match",), dtypes=("float32",), pictures=True),
    "works_gpu": Spec(GPU, "cuda", full, NO_GPU),
    "plots_gpu": Spec((*SWEEPS, *GPU), "cuda", pictures, NO_PLOTS, works=("match", "warp"), pictures=True),
}


def expected(root: Path) -> tuple[dict[Path, str], list[plots.Chart]]:
    """The documents as they should be, and the plots that they show.

    Raises:
        ValueError: a document is missing, names an unknown block or leaves one open; a result file cannot be read.
    """
    filled: dict[Path, str] = {}
    shown: dict[str, plots.Chart] = {}

    def render(name: str) -> str:
        spec = BLOCKS[name]
        chosen = spec.select(newest(root, spec))
        if spec.pictures:
            shown.update((chart.name, chart) for chart in plots.charts(chosen))
        return spec.render(chosen) if chosen else spec.absent

    for path in DOCUMENTS:
        if not (root / path).is_file():
            raise documents.DocumentError(f"{root}: need a checkout of cosegflow, found no {path}")
        filled[path] = documents.fill((root / path).read_text(encoding="utf-8"), path, list(BLOCKS), render)
    return filled, list(shown.values())


def check(root: Path) -> list[str]:
    """What differs from the result files, as lines to print."""
    filled, shown = expected(root)
    differences: list[str] = []
    for path, text in filled.items():
        differences += documents.changed_lines((root / path).read_text(encoding="utf-8"), text, path)
    names = {f"{chart.name}.svg": chart for chart in shown}
    for name, chart in names.items():
        path = PICTURES / name
        if not (root / path).is_file():
            differences.append(f"{path}: missing")
        elif plots.digest_in((root / path).read_text(encoding="utf-8")) != plots.digest(chart):
            differences.append(f"{path}: shows other data than the results")
    return differences + [f"{PICTURES / path.name}: no document shows it" for path in _stale(root, names)]


def _stale(root: Path, names: Sequence[str] | dict[str, plots.Chart]) -> list[Path]:
    """Pictures that are shown no more."""
    return sorted(path for path in (root / PICTURES).glob("*.svg") if path.name not in names)


def publish(root: Path) -> list[Path]:
    """Writes documents and pictures; the paths, below `root`, of those whose content is new."""
    filled, shown = expected(root)
    texts = {**filled, **{PICTURES / f"{chart.name}.svg": plots.svg(chart) for chart in shown}}
    changed = [path for path, text in texts.items() if documents.write(root / path, text)]
    for path in _stale(root, [p.name for p in texts]):
        path.unlink()
        changed.append(path.relative_to(root))
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where --check finds a difference; 2 where there is nothing to work with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a document or plot differs")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    options = parser.parse_args(arguments)
    compared = (lambda: check(options.root)) if options.check else None
    advice = "README, docs and results disagree: run `make bench-report`"
    return documents.run(compared, lambda: publish(options.root), advice, "publish")


if __name__ == "__main__":
    sys.exit(main())

"""Regenerates docs/results.md and its plots from the ablation's committed CSV.

    cosegflow ablate --report benchmarks/results/ablation_cpu_DATE.csv   # writes
    python -m cosegflow.ablation.report                                  # the same with the newest committed one
    python -m cosegflow.ablation.report --check                          # prints what differs and fails

Generated is what stands between `<!-- measured: NAME -->` and `<!-- end -->`, NAME a key of BLOCKS; all else is
prose. Plots are compared by the digest of what they show, since their bytes depend on matplotlib's version. The
pictures of pairs need the trained models: `cosegflow.ablation.pictures` makes them, and the list of them that the
block "pictures" is made of.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cosegflow.ablation import blocks, charts, picture_list
from cosegflow.ablation.errors import AblationError
from cosegflow.ablation.results import Results
from cosegflow.ablation.rows import LENT
from cosegflow.ablation.table import read_table
from cosegflow.benchmarks import documents, plots

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = Path("results.md")
PLOTS = Path("images", "results")
ABSENT = "Not measured yet: no result file of `cosegflow ablate` is committed."
PLOTTED = ("clutter", "rounds")
TABLES: dict[str, Callable[[Results], str]] = {
    **{name: partial(blocks.main_table, shown=shown) for name, shown in blocks.MAIN_TABLES.items()},
    "targets": blocks.targets,
    "joint_against_alone": lambda results: blocks.compared(results, "joint", blocks.ALONE),
    "joint_against_supervised": lambda results: blocks.compared(
        results, "joint", {"matching": "supervised", "masks": "supervised"}
    ),
    "joint_against_lent": lambda results: blocks.compared(results, "joint", {"matching": LENT, "masks": LENT}),
    "joint_against_untrained": lambda results: blocks.compared(
        results, "joint", {"matching": "untrained", "masks": "untrained"}
    ),
    "consistency": blocks.consistency,
    "without": blocks.without,
    "clutter_table": blocks.by_clutter,
    "rounds_table": blocks.by_rounds,
    "settings": blocks.settings,
    "provenance": blocks.provenance,
}
BLOCKS = (*TABLES, *(f"{name}_plot" for name in PLOTTED), "pictures")


def newest(root: Path = ROOT) -> Path | None:
    """The committed result file of the latest day, or None."""
    return max((root / "benchmarks" / "results").glob("ablation_cpu_*.csv"), default=None, key=lambda path: path.name)


def expected(csv: Path | None, docs: Path) -> tuple[str, dict[Path, charts.Chart]]:
    """The document as it should be, and its plots by their paths below `docs`.

    Raises:
        AblationError: the CSV cannot be read or is empty, or there is no document.
        DocumentError: unknown or open blocks.
    """
    if not (docs / DOCUMENT).is_file():
        raise AblationError(f"docs: {docs}: need a checkout of cosegflow, found no {DOCUMENT} there")
    measured = read_table(csv) if csv is not None else []
    if csv is not None and not measured:
        raise AblationError(f"{csv}: holds no measurement")
    results = Results(measured) if measured else None
    plotted = charts.charts(results) if results else {}

    def render(block: str) -> str:
        if block == "pictures":
            return picture_list.markdown(docs)
        if results is None:
            return ABSENT
        if block in TABLES:
            return TABLES[block](results)
        chart = plotted.get(block.removesuffix("_plot"))
        if chart is None:
            return "Not measured yet."
        return f"![{chart.title}]({(PLOTS / chart.name).as_posix()}.svg)\n\nBands: standard deviation over seeds."

    text = (docs / DOCUMENT).read_text(encoding="utf-8")
    filled = documents.fill(text, DOCUMENT, BLOCKS, render)
    return filled, {PLOTS / f"{chart.name}.svg": chart for chart in plotted.values()}


def _stale(docs: Path, shown: Sequence[Path]) -> list[Path]:
    """Plots that nothing shows any more, below `docs`."""
    return sorted(path for found in (docs / PLOTS).glob("*.svg") if (path := found.relative_to(docs)) not in shown)


def check(csv: Path | None, docs: Path) -> list[str]:
    """What differs from the results, as lines to print; see `expected` for what is raised."""
    filled, shown = expected(csv, docs)
    lines = documents.changed_lines((docs / DOCUMENT).read_text(encoding="utf-8"), filled, DOCUMENT)
    for path, chart in shown.items():
        if not (docs / path).is_file():
            lines.append(f"{path}: missing")
        elif plots.digest_in((docs / path).read_text(encoding="utf-8")) != plots.digest(chart):
            lines.append(f"{path}: shows other data than the results")
    lines += [f"{path}: no result belongs to it" for path in _stale(docs, list(shown))]
    return lines + picture_list.problems(docs)


def publish(csv: Path | None, docs: Path) -> list[Path]:
    """Writes the document and its plots; the paths, below `docs`, of what is new. See `expected` for what is raised.

    csv: the ablation's; None fills the blocks with a sentence that says that nothing was measured.
    """
    filled, shown = expected(csv, docs)
    texts = {DOCUMENT: filled}
    texts |= {path: plots.figure_svg(charts.draw(chart), plots.digest(chart)) for path, chart in shown.items()}
    changed = [path for path, text in texts.items() if documents.write(docs / path, text)]
    for path in _stale(docs, list(shown)):
        (docs / path).unlink()
        changed.append(path)
    return changed


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where --check finds a difference; 2 where there is nothing to work with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", nargs="?", type=Path, help="the ablation's CSV (default: the newest committed one)")
    parser.add_argument(
        "--docs", type=Path, default=ROOT / "docs", help="the folder of results.md (default: this checkout's)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the document or a plot differs")
    options = parser.parse_args(arguments)
    csv = options.csv or newest()
    docs = options.docs
    compared = (lambda: check(csv, docs)) if options.check else None
    advice = "docs/results.md and the results disagree: run `make ablate-report`"
    return documents.run(compared, lambda: [docs / path for path in publish(csv, docs)], advice, "cosegflow: error")


if __name__ == "__main__":
    sys.exit(main())

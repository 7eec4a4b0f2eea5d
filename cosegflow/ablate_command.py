"""``cosegflow ablate``: trains and evaluates the rows of the ablation; makes docs/results.md of a CSV."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cosegflow.ablation.evaluate import Constants
    from cosegflow.ablation.job import Job
    from cosegflow.ablation.table import Measurement

DESCRIPTION = """Trains every configuration of the ablation with several seeds, and evaluates each on held-out composed
pairs and on the data sets of photographs that are there. Started again, it makes only the runs that are missing, and
goes on with one that was stopped."""
EPILOG = """examples:
  cosegflow ablate --out ablation                           # everything; hours
  cosegflow ablate --out ablation --rows main --seeds 3     # the main rows
  cosegflow ablate --out ablation --rows joint,match-only --set train.steps=500
  cosegflow ablate --quick                                  # does it work here? its numbers mean nothing
  cosegflow ablate --report ablation/ablation.csv           # docs/results.md from a CSV
"""
QUICK_ROWS, QUICK_STEPS = "joint,match-only", 4
CSV_NAME = "ablation.csv"


def _count(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"need a whole number above 0, got {text!r}")
    return int(text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command; imports nothing heavy."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.allow_abbrev = False
    what = parser.add_argument_group("what is run")
    what.add_argument("-o", "--out", type=Path, default=Path("ablation"), help="folder of the runs (default: ablation)")
    what.add_argument("--rows", metavar="ROWS", help="main, all, or names separated by commas (default: all)")
    what.add_argument("--seeds", type=_count, metavar="N", help="seeds of the main rows (default: 3)")
    what.add_argument("--other-seeds", type=_count, metavar="N", help="seeds of the other rows (default: 1)")
    what.add_argument("--steps", type=_count, metavar="N", help="steps of each training (default: the recipe's)")
    what.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.NAME=VALUE",
        help="a setting of `cosegflow fit` for every row; may come several times",
    )  # fmt: skip
    what.add_argument(
        "--quick", action="store_true",
        help=f"a check that it works: {QUICK_ROWS}, one seed, {QUICK_STEPS} steps, few pairs, in OUT/quick",
    )  # fmt: skip
    where = parser.add_argument_group("where")
    where.add_argument(
        "--data", metavar="FOLDER",
        help="folder with stamps, backgrounds and Caltech-101, Weizmann-horse, TSS, PF-WILLOW, as far as they are "
        "there; 'none' for scikit-image's photographs alone (default: look)",
    )  # fmt: skip
    where.add_argument("--jobs", type=_count, default=2, metavar="N", help="runs at once (default: 2)")
    results = parser.add_argument_group("results, instead of runs")
    results.add_argument("--report", type=Path, metavar="CSV", help="make DOCS/results.md and its plots from a CSV")
    results.add_argument("--pictures", type=Path, metavar="OUT", help="make the pictures of DOCS/results.md from runs")
    results.add_argument("--docs", type=Path, default=Path("docs"), help="folder of results.md (default: docs)")


def _find_data(data: str | None) -> tuple[str | None, Path | None]:
    """Where stamps are looked for, as `load_library` takes it, and the folder of the photographs' data sets."""
    from cosegflow.ablation.errors import AblationError
    from cosegflow.data.sources import usual_folders

    if data == "none":
        return data, None
    if data is None:
        return None, next((folder.resolve() for folder in usual_folders() if folder.is_dir()), None)
    folder = Path(data).expanduser().resolve()
    if not folder.is_dir():
        raise AblationError(f"--data: need an existing folder or 'none', got {data!r}")
    return str(folder), folder


def _constants(arguments: argparse.Namespace, size: int, root: Path | None) -> "Constants":
    from dataclasses import replace

    from cosegflow.ablation.evaluate import FOLDERS, QUICK, Constants, datasets_here

    here = datasets_here(root)
    for name in FOLDERS:
        if name not in here:
            place = "--data is none" if root is None else f"no {root / FOLDERS[name]}"
            print(f"{name}: not evaluated ({place})")
    return replace(QUICK if arguments.quick else Constants(), size=size, datasets=here)


def make_jobs(arguments: argparse.Namespace) -> "list[Job]":
    """All runs that the options ask for, the main rows' first seeds first; composes the pairs to evaluate on.

    Raises:
        AblationError, ConfigurationError, DatasetError: one line that names the option.
    """
    from cosegflow.ablation.composed import ComposedCache, library_digest
    from cosegflow.ablation.job import Job, threads_for
    from cosegflow.ablation.rows import choose_rows, configuration, parse_overrides
    from cosegflow.data.sources import load_library
    from cosegflow.report import check_output

    rows = choose_rows(arguments.rows or (QUICK_ROWS if arguments.quick else "all"))
    overrides: dict[str, Any] = dict(parse_overrides(arguments.overrides))
    steps = arguments.steps or (QUICK_STEPS if arguments.quick else None)
    if steps is not None:
        overrides |= {"train.steps": str(steps), "train.epochs": "null"}
    out = check_output(arguments.out, "--out").resolve() / ("quick" if arguments.quick else "")
    data, root = _find_data(arguments.data)
    base = configuration(rows[0], overrides, data, out, 0)
    constants = _constants(arguments, base.data.size, root)
    library = load_library(data)
    cache = ComposedCache(out / "cache", library.split()[1], constants.size)
    digest = library_digest(library)
    main_seeds, other_seeds = arguments.seeds or (1 if arguments.quick else 3), arguments.other_seeds or 1
    jobs = [
        Job(row, seed, out, overrides, data, root, constants, digest, threads_for(arguments.jobs))
        for row in rows
        for seed in range(1 if row.method != "trained" else main_seeds if row.main else other_seeds)
    ]
    for job in jobs:
        _ = job.config  # whatever cannot be used is said now, not after hours
    print("the pairs to evaluate on ...", flush=True)
    for count, clutter in ((constants.pairs, None), *((constants.clutter_pairs, n) for n in constants.clutter)):
        cache.make(count, clutter)
    return sorted(jobs, key=lambda job: (job.row.method == "trained", not job.row.main, job.seed))


def _run(arguments: argparse.Namespace) -> int:
    from cosegflow.ablation.job import finished, move_aside
    from cosegflow.ablation.schedule import run_jobs
    from cosegflow.ablation.table import read_table, write_table

    jobs = make_jobs(arguments)
    path = jobs[0].out / CSV_NAME
    measured = read_table(path) if path.is_file() else []
    wanted = [job for job in jobs if not finished(job, measured)]
    replaced = {(job.row.name, job.seed) for job in wanted} & {(m.row, m.seed) for m in measured}
    if replaced:
        names = ", ".join(f"{row} {seed}" for row, seed in sorted(replaced))
        kept = move_aside(path, jobs[0].out)
        print(f"{path} has other settings' results of {names}; the old file is kept as {kept}")
        measured = [m for m in measured if (m.row, m.seed) not in replaced]
        write_table(path, measured)
    print(f"{len(jobs)} runs, {len(jobs) - len(wanted)} of them in {path} already")

    def keep(job: "Job", found: "list[Measurement]") -> None:
        fresh = {(m.row, m.seed) for m in found}
        measured[:] = [m for m in measured if (m.row, m.seed) not in fresh] + found
        write_table(path, measured)

    try:
        failures = run_jobs(wanted, arguments.jobs, keep)
    except KeyboardInterrupt:
        done = sum(finished(job, measured) for job in jobs)
        command = shlex.join(["cosegflow", *sys.argv[1:]])
        raise KeyboardInterrupt(
            f"interrupted; {done} of {len(jobs)} runs are in {path}; go on with: {command}"
        ) from None
    if arguments.quick:
        print("--quick: the numbers above mean nothing; it works, that is all")
    for failure in failures:
        log = failure.job.folder / "log.txt"
        print(f"cosegflow: {failure.job.name} failed: {failure.reason} (see {log})", file=sys.stderr)
    print(os.path.relpath(path) if path.is_file() else f"{path}: not written, no run was finished")
    return 1 if failures else 0


def main(arguments: argparse.Namespace) -> int:
    """Runs the command; 0, or 1 where a run failed.

    Raises:
        ValueError (of cosegflow): an option that cannot be used; one line.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    if arguments.report is None and arguments.pictures is None:
        return _run(arguments)
    if arguments.pictures is not None:
        from cosegflow.ablation.pictures import publish_pictures

        for path in publish_pictures(arguments.pictures, arguments.docs):
            print(arguments.docs / path)
    if arguments.report is not None:
        from cosegflow.ablation.report import publish

        for path in publish(arguments.report, arguments.docs):
            print(arguments.docs / path)
    return 0

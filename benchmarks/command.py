"""`cosegflow bench`: what it measures, where it writes, what it prints."""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch

from . import progress, report, rows, table
from .case import DIRECTIONS, DTYPES, Case, parse
from .measure import ceilings
from .options import DEFAULT_BUDGET_S, QUICK_BUDGET_S, SETS
from .peers import PEERS
from .provenance import provenance
from .runner import Step, plan, run
from .works import WORKS


class BenchError(ValueError):
    """An option that cannot be used; one line that lists the valid ones."""


def _choose(text: str | None, valid: Sequence[str], option: str) -> list[str]:
    names = [n.strip() for n in (text or "all").split(",") if n.strip()]
    unknown = [n for n in names if n not in valid and n != "all"]
    if unknown or not names:
        raise BenchError(f"{option}: unknown {', '.join(unknown) or repr(text)}; valid: all, {', '.join(valid)}")
    return [n for n in valid if n in names or "all" in names]


def choose_device(text: str | None) -> torch.device:
    """The device.

    Raises:
        BenchError: it is none that torch sees here.
    """
    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if text is None:
        return torch.device(names[-1] if len(names) == 2 else ("cuda:0" if len(names) > 2 else "cpu"))
    if text == "cuda" and len(names) > 1:
        text = "cuda:0"
    if text not in names:
        raise BenchError(f"--device: need one of {', '.join(names)}, got {text!r}")
    return torch.device(text)


def _with_dtype(case: Case, dtype: str | None) -> Case:
    return parse(dtype, case) if dtype else case


def choose_steps(options: argparse.Namespace, device: torch.device) -> list[Step]:
    """What is measured."""
    works = _choose(options.works, list(WORKS), "--works")
    directions = _choose(options.directions, DIRECTIONS, "--directions")
    if options.dtype is not None and options.dtype not in DTYPES:
        raise BenchError(f"--dtype: need one of {', '.join(DTYPES)}, got {options.dtype!r}")
    sizes = options.sizes or ["quick" if options.quick else ("gpu" if device.type == "cuda" else "cpu")]
    steps: list[Step] = []
    for text in sizes:
        for work in works:
            try:
                cases = WORKS[work].cases[text] if text in SETS else (parse(text),)
            except ValueError as error:
                raise BenchError(f"--sizes: {error}; or a set: {', '.join(SETS)}") from None
            cases = tuple(WORKS[work].own(_with_dtype(case, options.dtype)) for case in cases)
            try:
                steps += plan([work], cases, directions, options.peers)
            except ValueError as error:
                raise BenchError(str(error)) from None
    steps = [s for s in dict.fromkeys(steps) if s.peers]
    if not steps:
        raise BenchError(f"--peers: none of {options.peers} does any of {', '.join(works)}")
    return steps


def listing() -> str:
    """Works with their sizes, and peers."""
    lines = ["works and their sizes:"]
    for work in WORKS.values():
        lines.append(f"  {work.name}: {work.summary}")
        lines += [f"    {name}: {'; '.join(map(str, cases))}" for name, cases in work.cases.items()]
    lines.append("peers (+: by default):")
    for peer in PEERS.values():
        mark = "+" if peer.default else " "
        lines.append(f"  {mark} {peer.name}: {peer.summary} [{', '.join(peer.works)}]")
    return "\n".join(lines)


def _csv_path(options: argparse.Namespace, device: torch.device, name: str) -> Path:
    """Where the rows go; the folder is tried out before anything is measured."""
    from cosegflow.report import check_output

    short = re.sub(r"\W+", "-", name).strip("-").lower() if device.type == "cuda" else "cpu"
    path: Path = options.csv or options.out / f"bench_{short}_{datetime.now().strftime('%Y-%m-%d_%H%M%S')}.csv"
    if path.is_dir():
        raise BenchError(f"--csv: need a file, got the folder {path}")
    for folder, option in ((options.out, "--out"), (path.parent, "--csv")):
        check_output(folder, option).mkdir(parents=True, exist_ok=True)
    return path


def main(options: argparse.Namespace) -> int:
    """Measures, writing each row as it comes; 0, or 130 after Ctrl-C, when what was measured is kept.

    Raises:
        BenchError: an option that cannot be used.
    """
    if options.list:
        print(listing())
        return 0
    for name in ("threads", "budget", "repeats"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise BenchError(f"--{name}: need a number above 0, got {value}")
    device = choose_device(options.device)
    steps = choose_steps(options, device)
    if options.threads:
        torch.set_num_threads(options.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    origin = provenance(device, " ".join(["cosegflow", *sys.argv[1:]]))
    path = _csv_path(options, device, origin["device_name"])
    print(f"{origin['device_name']}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    budget = options.budget or (QUICK_BUDGET_S if options.quick else DEFAULT_BUDGET_S)
    limits = ceilings.measure(device, {s.case.dtype for s in steps}, 0.1 if options.quick else 0.5)
    print(limits)
    measured: list[rows.Row] = []
    with_memory = not options.no_memory and not (options.quick and device.type == "cpu")
    interrupted = False
    with progress.bar(len(steps)) as advance:
        try:
            for step, found in run(steps, device, origin, limits, budget, options.repeats, with_memory):
                measured += found
                rows.write(measured, path)
                advance(str(step))
        except KeyboardInterrupt:
            interrupted = True
    table.print_table(measured)
    print(f"{path}: {len(measured)} rows")
    if interrupted:
        print("interrupted: the rows above are kept", file=sys.stderr)
        return 130
    report.write_report(measured, options.out / "report.html")
    print(options.out / "report.html")
    return 0

"""`make gpu-check`: its options, what it would do (--dry-run), and the run itself."""

import argparse
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from . import packages
from .packages import ROOT, SetupError
from .process import Clock, execute

DESCRIPTION = """One command that settles everything on a machine with a GPU: the fast kernels against the simple ones,
the test suite on `cuda`, compute-sanitizer over small shapes, then the benchmarks by priority, within --minutes. Any
python3 with torch >= 2.10 and pytest; installs nothing. What finished is kept in --out: the same command again goes on
from there. Exit code: 0 passed, 1 something failed, 2 bad arguments, 3 not finished (call again)."""


class Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"gpu_check: {message}\n")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"need a number above 0, got {text!r}")
    return value


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = Parser(prog="gpu_check", description=DESCRIPTION, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--wheel", type=Path, help="a prebuilt wheel (default: the checkout if built, else a new one)")
    which.add_argument("--installed", action="store_true", help="the cosegflow that is installed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal without a GPU")
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="time budget (default: 8)")
    parser.add_argument("--only", choices=("tests", "sanitize", "bench"), help="one stage alone")
    parser.add_argument("--peers", default="default", help="default, all or names (default: default)")
    parser.add_argument("--select", metavar="EXPRESSION", help="pytest -k for the tests")
    parser.add_argument("--sanitizer", type=Path, metavar="PATH", help="compute-sanitizer (default: found)")
    parser.add_argument("--out", type=Path, help="result file (default: in benchmarks/results, by device and commit)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, for a rehearsal")
    parser.add_argument("--fresh", action="store_true", help="start again although the result file is there")
    parser.add_argument("--dry-run", action="store_true", help="print every step after checking that its files exist")
    return parser


def architecture(device: str) -> str | None:
    """Such as "sm_90"; None without a GPU. In a build that is not for 9.0a a Hopper GPU is "sm_90 without 9.0a"."""
    import torch

    from cosegflow import _library

    if device != "cuda" or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(0)
    lacks = (major, minor) == (9, 0) and not _library.HAS_SM90A
    return f"sm_{major}{minor}{' without 9.0a' if lacks else ''}"


def identity(options: argparse.Namespace, home: Path, origin: dict[str, Any]) -> dict[str, Any]:
    """What a result is of."""
    return {
        "commit": origin["commit"],
        "device_name": origin["device_name"],
        "torch": origin["torch"],
        "arch": architecture(options.device),
        "device": options.device,
        "quick": options.quick,
        "select": options.select,
        "build": packages.build_digest(home),
        # What ran says nothing of kernels that it was not built from.
        "kernels": None if packages.other_sources(home) else packages.kernel_digest(),
    }  # fmt: skip


def default_out(origin: dict[str, Any], quick: bool) -> Path:
    """By device and commit, so that a later call finds it; rehearsals do not go among the results."""
    name = re.sub(r"\W+", "-", origin["device_name"]).strip("-").lower()
    which = origin["commit"][:10] or origin["date"][:10]
    folder = ROOT / ("benchmarks/results" if origin["device"] == "cuda" and not quick else "build")
    return folder / f"gpu_check_{name}_{which}.json"


def dry_run(options: argparse.Namespace, home: Path | None) -> int:
    """Prints every step; 2 where a file, a test or a module that it names does not exist."""
    from . import sanitize_stage, self_check, stages, tests_stage
    from .result import Result

    missing: list[str] = []
    environment = packages.environment_of(home or ROOT)

    def show(section: str, command: list[str] | str) -> None:
        print(f"{section}: {command if isinstance(command, str) else shlex.join(command)}")

    for name in ("self_check", "small_shapes", "bench_stage"):
        if importlib.util.find_spec(f"benchmarks.check.{name}") is None:
            missing.append(f"benchmarks.check.{name}")
    wanted = stages.STAGES if options.only is None else (options.only, "self_check")
    arch = architecture(options.device)
    for key in self_check.all_keys(arch):
        show("self_check", key)
    if "tests" in wanted:
        files = tests_stage.files()
        missing += [str(f.relative_to(ROOT)) for f in files if not f.is_file()]
        for file in files:
            report = Path(file.name + ".xml")
            command = tests_stage.command_of(file, report, options.select, options.device)
            for key in tests_stage.steps_of(file.name, arch):
                show("tests", ["COSEGFLOW_PORTABLE=1", *command] if key != file.name else command)
        present = [f for f in files if f.is_file()]
        done = execute(tests_stage.collect_command(present, options.select), 120, environment, ROOT / "tests")
        found = tests_stage.collected(done)
        print(f"tests: {sum(found.values())} tests in {len(found)} files")
        if done.exit not in (0, tests_stage.NOTHING_COLLECTED):
            missing.append(f"tests (pytest --collect-only: {' | '.join(done.tail(2))})")
        elif not options.select:
            missing += [f"tests in {f.name}" for f in present if f.name not in (*found, tests_stage.SMOKE)]
    if "sanitize" in wanted:
        tool = sanitize_stage.find_tool(options.sanitizer)
        print(f"sanitize: compute-sanitizer: {tool or 'not found here: its rows will say refused'}")
        context, cleanup = stages.make_context(
            device=options.device, quick=options.quick, select=None, peers="", sanitizer=options.sanitizer,
            environment=environment, result=Result.__new__(Result), command="",
        )  # fmt: skip
        for command in stages.sanitize_commands(context, tool, "").values():
            show("sanitize", command)
        cleanup()
    if "bench" in wanted:
        from . import bench_stage

        for key, step in bench_stage.steps(options.device, options.quick, options.peers).items():
            show("bench", f"{key}: {', '.join(step.peers)}")
    for what in missing:
        print(f"gpu_check: missing: {what}", file=sys.stderr)
    return 2 if missing else 0


def run(options: argparse.Namespace, home: Path, clock: Clock) -> int:
    """Everything but a dry run; the exit code.

    Raises:
        SetupError, OSError, ValueError: something that one line can say.
    """
    import torch

    from . import stages, summary
    from .result import Result

    if options.device == "cuda" and not torch.cuda.is_available():
        raise SetupError("torch sees no CUDA device; --device cpu rehearses without one, --dry-run lists the steps")
    from cosegflow import _library

    from ..provenance import provenance

    if not _library.is_available():
        raise SetupError(f"cosegflow in {home} cannot be loaded: {_library.load_error()}")
    if options.only in (None, "bench"):
        from . import bench_stage

        bench_stage.steps(options.device, options.quick, options.peers)  # an unknown peer is found now
    command = shlex.join(["python", "benchmarks/gpu_check.py", *sys.argv[1:]])
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    origin = provenance(device, command)
    origin["commit"] = origin["commit"] or packages.build_info(home).get("commit") or ""  # a copy without .git
    path = (options.out or default_out(origin, options.quick)).resolve()
    try:
        result = Result(path, identity(options, home, origin), origin, options.fresh)
    except OSError as error:
        raise SetupError(f"--out: cannot write {path}: {error.strerror}") from None
    print(f"{origin['device_name']}, torch {origin['torch']}: {path}", flush=True)
    if result.note:
        print(result.note, flush=True)
    if why := packages.other_sources(home):
        print(f"the cosegflow of {home} {why}: this result verifies no kernel", flush=True)
    environment = {**packages.environment_of(home), "COSEGFLOW_COMMIT": origin["commit"]}
    context, cleanup = stages.make_context(
        device=options.device, quick=options.quick, select=options.select, peers=options.peers,
        sanitizer=options.sanitizer, environment=environment, result=result, command=command,
    )  # fmt: skip
    try:
        stages.run_stages(context, options.only, clock.left())
    finally:
        cleanup()
        result.save()
    print("\n" + summary.text(result))
    return summary.exit_code(result)


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    options = make_parser().parse_args(arguments)
    clock = Clock(60 * options.minutes)
    temporary = None
    try:
        if options.sanitizer is not None:
            options.sanitizer = options.sanitizer.resolve()
            if not os.access(options.sanitizer, os.X_OK):
                raise SetupError(f"--sanitizer: no such program: {options.sanitizer}")
        if options.dry_run and options.wheel is None and not options.installed and not packages.is_built(ROOT):
            print("build:", shlex.join(packages.build_command(packages.BUILT)))
            home = ROOT
        else:
            home, temporary = packages.locate(
                options.wheel, options.installed, options.fresh, clock.left(), dict(os.environ)
            )
        if home != ROOT:
            sys.path.insert(0, str(home))  # before anything imports cosegflow
        return dry_run(options, home) if options.dry_run else run(options, home, clock)
    except (SetupError, OSError, ValueError) as error:
        print(f"gpu_check: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu_check: interrupted; what finished is kept", file=sys.stderr)
        return 130
    finally:
        if temporary is not None:
            temporary.cleanup()

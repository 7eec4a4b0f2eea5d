"""The test suite on one backend: which files, their command lines, and what their reports say."""

import collections
import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from cosegflow.ops import _self_check

from .process import Done, last_lines

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
WORKERS = 4
"""Of pytest-xdist, for each file."""
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Each worker computes what is right on the CPU: more threads than cores would only wait for each other."""
NOTHING_COLLECTED = 5
SMOKE = "smoke.py"


def files() -> list[Path]:
    """The tests that run on the backends, those of CUDA alone and of Hopper, and the smoke test; the shortest first."""
    found = [f for f in TESTS.glob("test_*.py") if re.search(r"def test_\w+\((?:\w+, )*backend\b", f.read_text())]
    found += TESTS.glob("test_cuda_*.py")
    found += [f for f in TESTS.glob("test_*_hopper.py") if '"cuda"' in f.read_text()]
    return [TESTS / SMOKE, *sorted(set(found), key=lambda f: f.stat().st_size)]


def steps_of(name: str, architecture: str | None) -> list[str]:
    """A file's runs: where the architecture has kernels of its own for the operation, one more without them."""
    op = name.removeprefix("test_").removesuffix(".py")
    own = architecture and any(_self_check.own_path(op, architecture, *case) for case in _self_check.TOLERANCES)
    return [name, f"{name} {_self_check.PORTABLE}"] if own else [name]


def command_of(file: Path, report: Path, select: str | None, device: str) -> list[str]:
    """How a file is run; in a folder elsewhere, so that the source folder does not shadow the wheel."""
    if file.name == SMOKE:
        return [sys.executable, str(file)]
    command = [sys.executable, "-m", "pytest", str(file), "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += ["--junitxml", str(report), "-o", "junit_logging=no"]
    if device == "cuda":
        command += ["-p", "benchmarks.check.pytest_without_hostsim"]
    if device == "cuda" and importlib.util.find_spec("xdist"):
        command += ["-n", str(WORKERS)]
    return [*command, *(["-k", select] if select else [])]


def collect_command(chosen: list[Path], select: str | None) -> list[str]:
    """Lists the tests without running any."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    return [*command, *(str(f) for f in chosen if f.name != SMOKE), *(["-k", select] if select else [])]


def collected(done: Done) -> dict[str, int]:
    """Tests by file name, from the output of `collect_command`."""
    names = re.findall(r"^\S*?(test_\w+\.py)::", done.output, re.MULTILINE)
    return dict(collections.Counter(names))


def judge(done: Done, report: Path, select: str | None) -> dict[str, Any]:
    """A row from how pytest ended: 'passed', 'failed' or 'timeout', counts, failures with their last lines."""
    row: dict[str, Any] = {"exit": done.exit, "seconds": round(done.seconds, 1)}
    counts = {"passed": 0, "failed": 0, "errors": 0, "skipped": 0}
    failures: list[dict[str, Any]] = []
    skips: collections.Counter[str] = collections.Counter()
    for case in _cases(report):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        skip = case.find("skipped")
        if bad is not None:
            counts["failed" if bad.tag == "failure" else "errors"] += 1
            failures.append({"test": name, "last": last_lines(bad.text or bad.get("message") or "", 4)})
        elif skip is not None:
            counts["skipped"] += 1
            skips[skip.get("message") or "no reason"] += 1
        else:
            counts["passed"] += 1
    if done.exit is None:
        status = "timeout"
    elif done.exit == 0 or (done.exit == NOTHING_COLLECTED and select):
        status = "passed"
    else:
        status = "failed"
    row.update(status=status, counts=counts, failures=failures[:20], skips=dict(skips))
    if status != "passed":
        row["tail"] = done.tail(8)
    return row


def judge_smoke(done: Done) -> dict[str, Any]:
    """The smoke test's row."""
    status = "timeout" if done.exit is None else ("passed" if done.exit == 0 else "failed")
    counts = {"passed": int(status == "passed"), "failed": int(status == "failed"), "errors": 0, "skipped": 0}
    row: dict[str, Any] = {"exit": done.exit, "seconds": round(done.seconds, 1), "status": status, "counts": counts}
    return {**row, "failures": [], "skips": {}, **({} if status == "passed" else {"tail": done.tail(8)})}


def _cases(report: Path) -> list[ElementTree.Element]:
    """The test cases of a JUnit report; none where pytest did not get to write it."""
    try:
        return list(ElementTree.parse(report).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return []

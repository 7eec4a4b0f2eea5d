"""Would the tests notice? Breaks one place of the kernels and runs a check against the simulated result.

    outcome = mutation.run(
        file="csrc/cuda/warp/warp_kernels.cuh", old="if (x < width)", new="if (x <= width)",
        op="warp", test="tests/test_warp.py::test_against_reference", variant="asan",
    )
    assert outcome.caught, outcome.output

The mutated sources are a copy; only what depends on the changed file is compiled again. The check is a pytest node id
(`test`) or Python code (`snippet`, with `sim` and `np` defined) that fails when it sees the fault. It runs in a process
of its own, which finds the mutated module through the environment variable COSEGFLOW_HOSTSIM_MODULE.
`baseline(...)` runs the same check on the original: a mutation test means nothing if that fails.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import forked

REPO = Path(__file__).resolve().parents[1]

_spec = importlib.util.spec_from_file_location("hostsim_build", REPO / "csrc" / "hostsim" / "build.py")
hostsim_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostsim_build)

PRELUDE = """
import importlib.util, os
import numpy as np
_spec = importlib.util.spec_from_file_location("hostsim_build", {build!r})
_build = importlib.util.module_from_spec(_spec); _spec.loader.exec_module(_build)
sim = _build.import_module(os.environ["COSEGFLOW_HOSTSIM_MODULE"])
"""


@dataclass(frozen=True)
class Outcome:
    caught: bool  # the check failed (or crashed, or hung)
    output: str


@functools.cache
def _base(variant: str) -> Path:
    """The build of the original sources, whose objects the mutants reuse."""
    return hostsim_build.build(variant)


def _check(module: Path, variant: str, test: str | None, snippet: str | None, timeout: float) -> Outcome:
    if (test is None) == (snippet is None):
        raise ValueError("give either test, a pytest node id, or snippet, Python code")
    environment = {**os.environ, "COSEGFLOW_HOSTSIM_MODULE": str(module)}
    code = None if snippet is None else PRELUDE.format(build=hostsim_build.__file__) + snippet
    arguments = ["-q", "-x", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", str(test)]
    if variant == "asan":  # which has to be loaded before everything else
        environment.update(hostsim_build.sanitizer_env())
        command = [sys.executable, *(["-m", "pytest", *arguments] if code is None else ["-c", code])]
        try:
            done = subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return Outcome(True, f"no end after {timeout} s")
        status, output = done.returncode, done.stdout + done.stderr
    else:
        ended, output = forked.run(arguments if code is None else code, environment, timeout)
        if ended is None:
            return Outcome(True, f"no end after {timeout} s")
        status = ended
    if test is not None and status in (4, 5):  # pytest: usage error, no tests collected
        raise ValueError(f"pytest found no test to run for {test!r}:\n{output}")
    if test is not None and status == 0 and " passed" not in output:
        raise ValueError(f"every test of {test!r} was skipped:\n{output}")
    return Outcome(status != 0, output)


def run(
    file: str,
    old: str,
    new: str,
    *,
    op: str,
    test: str | None = None,
    snippet: str | None = None,
    variant: str = "plain",
    timeout: float = 300,
) -> Outcome:
    """Replaces `old`, which must occur exactly once in `file` (relative to the repository), by `new` and checks.

    A mutant that does not compile raises RuntimeError: it tests nothing.
    """
    relative = Path(file).relative_to("csrc")
    base = _base(variant).parent
    with tempfile.TemporaryDirectory(prefix="cosegflow-mutant-") as folder:
        root = Path(folder) / "csrc"
        shutil.copytree(REPO / "csrc", root)
        text = (root / relative).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{old!r} occurs {text.count(old)} times in {file}, must be once")
        (root / relative).write_text(text.replace(old, new))
        kind = "quick" if variant == "plain" else variant
        module = hostsim_build.build(kind, root, Path(folder) / "build", [op], reuse=base, changed=[relative])
        return _check(module, variant, test, snippet, timeout)


def baseline(
    *, test: str | None = None, snippet: str | None = None, variant: str = "plain", timeout: float = 300
) -> Outcome:
    """The same check on the original sources: `caught` must be False."""
    return _check(_base(variant), variant, test, snippet, timeout)

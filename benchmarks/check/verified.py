"""Writes cosegflow/ops/_verified.py from the committed results: `python -m benchmarks.check.verified [--check]`.

A path of an operation counts as verified on an architecture where the newest result that ran the self-check and all
tests there says that it agreed in every dtype and precision that it takes and that no test failed, and where the
kernels' sources are still those of that result: a change of a kernel takes its verification away. The tests take the
architecture's own kernels where it has some; the portable ones need the run of the operation's tests without those
(`tests_stage.steps_of`). A result of binaries that were built from other sources than its checkout's names no kernels,
and does not count.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cosegflow.ops._self_check import CASES, PORTABLE, case_name

from .packages import ROOT, kernel_digest

TARGET = ROOT / "cosegflow" / "ops" / "_verified.py"
RESULTS = ROOT / "benchmarks" / "results"
DOC = '''"""Which fast paths a committed result of `make gpu-check` has verified on hardware; not written by hand but by

python -m benchmarks.check.verified
"""

# (operation, path: "portable" or "hopper", architecture such as "sm_90")
'''


def verdict(result: dict[str, Any], kernels: str) -> set[tuple[str, str]] | None:
    """The (operation, path) that a result verifies; None where it says nothing of these kernels."""
    checks, tests = result.get("self_check") or {}, result.get("tests") or {}
    complete = all(not row["status"].startswith("not run") for row in (*checks.values(), *tests.values()))
    partial = result.get("select") or result.get("quick") or not checks or not tests or not complete
    if not result.get("arch") or result.get("kernels") != kernels or partial:
        return None
    if any(row["status"] != "passed" or not row["counts"]["passed"] for row in tests.values()):
        return set()
    agreed: dict[tuple[str, str], set[str]] = {}
    for row in checks.values():
        cases = agreed.setdefault((row["op"], row["path"]), set())
        cases |= {row["case"]} if row["status"] == "agrees" else set()
    found = set()
    for (op, path), cases in agreed.items():
        shadowed = path == PORTABLE and any(o == op and p != PORTABLE for o, p in agreed)
        tested = not shadowed or f"test_{op}.py {PORTABLE}" in tests
        if tested and cases >= {case_name(*case) for case in CASES[op, path]}:
            found.add((op, path))
    return found


def verified(folder: Path, kernels: str) -> list[tuple[str, str, str]]:
    """(operation, path, architecture), sorted, from every gpu_check_*.json in a folder."""
    newest: dict[str, set[tuple[str, str]]] = {}
    results = [json.loads(path.read_text()) for path in folder.glob("gpu_check_*.json")]
    for result in sorted(results, key=lambda r: str(r.get("provenance", {}).get("date", ""))):
        paths = verdict(result, kernels)
        if paths is not None:
            newest[result["arch"]] = paths
    return sorted((op, path, arch) for arch, paths in newest.items() for op, path in paths)


def source(entries: list[tuple[str, str, str]]) -> str:
    """The file's text, as the formatter writes it."""
    if not entries:
        return f"{DOC}VERIFIED: frozenset[tuple[str, str, str]] = frozenset()\n"
    lines = "".join(f'        ("{op}", "{path}", "{arch}"),\n' for op, path, arch in entries)
    return f"{DOC}VERIFIED: frozenset[tuple[str, str, str]] = frozenset(\n    {{\n{lines}    }}\n)\n"


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 where --check finds another text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    options = parser.parse_args(arguments)
    text = source(verified(RESULTS, kernel_digest()))
    if TARGET.read_text() == text:
        return 0
    if options.check:
        print(f"{TARGET} is out of date: python -m benchmarks.check.verified", file=sys.stderr)
        return 1
    temporary = TARGET.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(TARGET)
    print(f"written: {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

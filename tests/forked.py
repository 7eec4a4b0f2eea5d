"""Python in processes of their own that need not import torch again: each is forked from one that has."""

import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["numpy", "pytest", "torch", "cosegflow", "cosegflow.reference"])


def _child(output: str, environment: dict[str, str], what: list[str] | str) -> None:
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPO)
    if isinstance(what, str):
        exec(compile(what, "<snippet>", "exec"), {"__name__": "__main__"})
    else:
        raise SystemExit(int(pytest.main(what)))


def run(what: Sequence[str] | str, environment: Mapping[str, str], timeout: float) -> tuple[int | None, str]:
    """Runs Python code (a string) or pytest with these arguments; the exit status and what it printed.

    The status is negative where a signal ended the process, and None where it had not ended after `timeout` seconds.
    The processes share no state with the caller, but they inherit one that has imported torch and cosegflow: variables
    that those read when they are imported have no effect.
    """
    with tempfile.TemporaryDirectory(prefix="cosegflow-forked-") as folder:
        output = Path(folder) / "output"
        what = what if isinstance(what, str) else list(what)
        process = _CONTEXT.Process(target=_child, args=(str(output), dict(environment), what), daemon=True)
        process.start()
        process.join(timeout)
        status = process.exitcode
        if status is None:
            process.kill()
            process.join()
        process.close()
        return status, output.read_text(errors="replace") if output.exists() else ""

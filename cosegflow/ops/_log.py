"""COSEGFLOW_LOG=1: one line on stderr for each path that a call takes and the reason why, once a process.

csrc/common/log.h says what the launch functions choose; these lines say what they were asked for.
"""

import functools
import os
import sys

_said: set[tuple[str, str, str]] = set()


def is_set(variable: str) -> bool:
    """Whether an environment variable is neither empty nor 0."""
    return os.environ.get(variable, "") not in ("", "0")


@functools.cache
def wanted() -> bool:
    """Whether there are lines at all; the variable is read once, as in C++."""
    return is_set("COSEGFLOW_LOG")


def log_path(operation: str, path: str, reason: str) -> None:
    """Says that `operation` takes `path` for `reason`."""
    line = (operation, path, reason)
    if wanted() and line not in _said:
        _said.add(line)
        print(f"cosegflow: {operation}: {path}: {reason}", file=sys.stderr, flush=True)

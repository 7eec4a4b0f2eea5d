"""The table, the progress bar and the JSON file."""

import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cosegflow.atomic_file import replaced
from cosegflow.evaluate.errors import EvaluationError

PLAIN_SECONDS = 10.0
"""Without a terminal a line of progress comes this often."""


def check_output_file(path: Path, argument: str) -> None:
    """Checks, before any work, that the file can be written; leaves nothing behind.

    Raises:
        EvaluationError: it is a folder, or its folder is missing or cannot be written.
    """
    target = _target(path)
    folder = target.parent
    if os.path.isdir(target):
        raise EvaluationError(f"{argument}: {path}: is a folder, need a file")
    if not os.path.isdir(folder):
        raise EvaluationError(f"{argument}: {path}: {folder} is not an existing folder")
    if _is_special(target):
        if not os.access(target, os.W_OK):
            raise EvaluationError(f"{argument}: {path}: cannot be written")
        return
    try:
        if not os.path.lexists(target):
            os.stat(target)  # an error other than that there is no such file: the name is too long
    except FileNotFoundError:
        pass
    except OSError as error:
        raise EvaluationError(f"{argument}: {path}: cannot write ({error.strerror or error})") from None
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise EvaluationError(f"{argument}: {path}: cannot write to {folder} ({error.strerror or error})") from None


def write_json(path: Path, content: dict[str, Any], argument: str) -> None:
    """Writes to a temporary file beside `path`, then renames it; an interrupted run leaves the old file whole.

    A link's target is written; a device or pipe, such as /dev/stdout, is written to and stays what it is. Bytes of file
    names that are not UTF-8 become JSON's escapes of lone surrogates, as Python reads such names.

    Raises:
        EvaluationError: it cannot be written.
    """
    target = _target(path)
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    data = text.encode("utf-8", "backslashreplace")
    try:
        if _is_special(target):
            target.write_bytes(data)
            return
        with replaced(target) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise EvaluationError(f"{argument}: {path}: cannot write ({error.strerror or error})") from None


def _target(path: Path) -> Path:
    """Without ~ and links, except for a device or pipe: /dev/stdout leads to a name that cannot be opened."""
    written = Path(os.path.expanduser(path))
    return written if _is_special(written) else Path(os.path.realpath(written))


def _is_special(path: Path) -> bool:
    """A device, pipe or socket: renaming a file to it would destroy it."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def print_any_name() -> None:
    """Lets stdout escape what it cannot encode (a file name that is not UTF-8), as stderr does, in place of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def table_rows(result: dict[str, Any], columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """The heading and the rows: all pairs, then each category; a column with several alphas becomes several."""
    names, picks = ["", "pairs"], []
    for column in columns:
        value = result.get(column)
        if isinstance(value, dict):
            names += [f"{column}@{key}" for key in value]
            picks += [(column, key) for key in value]
        else:
            names.append(column)
            picks.append((column, None))

    def cells(name: str, values: dict[str, Any]) -> list[str]:
        numbers = [values.get(column) if key is None else (values.get(column) or {}).get(key) for column, key in picks]
        return [name, str(values["pairs"]), *("-" if v is None else f"{v:.3f}" for v in numbers)]

    rows = [cells(name, values) for name, values in result["per_category"].items()]
    return names, [cells("all", result), *(rows if len(rows) > 1 else [])]


def print_table(title: str, result: dict[str, Any], columns: Sequence[str]) -> None:
    """Prints with rich where it is installed, plainly otherwise."""
    names, rows = table_rows(result, columns)
    print(title)
    try:
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError:
        widths = [max(len(line[i]) for line in (names, *rows)) for i in range(len(names))]
        for line in (names, *rows):
            first, *others = (cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(line))
            print("  ".join((first, *others)).rstrip())
        return
    table = Table()
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for number, line in enumerate(rows):
        table.add_row(*line, end_section=number == 0 and len(rows) > 1)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(120, *(sum(len(cell) + 3 for cell in line) + 2 for line in (names, *rows))))
    console.print(table, markup=False)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """Yields a function to call after each of `total` items; a bar with the time left on a terminal, else lines."""
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ModuleNotFoundError:
        bar = None
    else:
        console = Console(stderr=True)
        parts = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        bar = Progress(*parts, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True)
        bar = bar if console.is_terminal else None
    if bar is not None:
        with bar:
            task = bar.add_task(description, total=total)
            yield lambda: bar.advance(task)
        return
    yield _plain_progress(description, total)


def _plain_progress(description: str, total: int) -> Callable[[], None]:
    start = shown = time.monotonic()
    done = 0

    def advance() -> None:
        nonlocal done, shown
        done += 1
        now = time.monotonic()
        if now - shown >= PLAIN_SECONDS:
            shown = now
            left = (now - start) / done * (total - done)
            print(f"{description}: {done}/{total}, about {left:.0f} s left", file=sys.stderr, flush=True)

    return advance

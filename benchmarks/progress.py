"""A progress bar on stderr, with the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def bar(steps: int) -> Iterator[Callable[[str], None]]:
    """Yields the function to call after each step with the step's name."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as shown:
        task = shown.add_task("", total=steps)
        yield lambda name: shown.update(task, advance=1, description=name)

"""Child processes with a time limit, killed with everything they started; and children that report step by step."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Clock:
    """Seconds that are left of a budget."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Never negative."""
        return max(0.0, self._end - time.monotonic())

    def share(self, fraction: float) -> "Clock":
        """A clock for a part of what is left."""
        return Clock(self.left() * fraction)


def kill_group(process: "subprocess.Popen[Any]") -> None:
    """Kills a process that was started in a session of its own, and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    exit: int | None
    """None: it ran past its limit."""
    output: str
    """stdout and stderr together."""
    seconds: float

    def tail(self, lines: int = 5) -> list[str]:
        """The last lines that are not empty."""
        return last_lines(self.output, lines)


def last_lines(text: str, count: int = 5) -> list[str]:
    """The last lines that say something (no empty ones, no rows of carets), cut at 300 characters."""
    return [line.strip()[:300] for line in text.splitlines() if line.strip(" ^~")][-count:]


def execute(command: Sequence[str], limit_s: float, environment: Mapping[str, str], cwd: Path | str) -> Done:
    """Runs a command; at the limit, or when this process is interrupted, its whole group is killed.

    Raises:
        OSError: the command cannot be started.
    """
    started = time.monotonic()
    # A file, not a pipe: a grandchild that survives would keep a pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=cwd, env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
        code: int | None = None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            kill_group(process)
        output.seek(0)
        return Done(code, output.read(), time.monotonic() - started)


class Report(NamedTuple):
    """What became of one step of a child."""

    key: str
    status: str
    """'done', 'failed' (the child died at it), 'timeout' (it took longer than a step may) or 'out of time'."""
    value: Any
    """What the child reported; for a failure, its last lines."""


def conduct(
    module: str,
    request: Mapping[str, Any],
    keys: Sequence[str],
    clock: Clock,
    limit_s: float,
    environment: Mapping[str, str],
    cwd: Path | str,
) -> Iterator[Report]:
    """Runs `python -m module` over `keys`; a child that dies or hangs at a step is replaced for the steps after it.

    Args:
        request: what the child reads, as JSON with the keys still to do.
        limit_s: how long one step may take, and the time before the first one.
    """
    left = list(keys)
    while left and clock.left() > 0:
        done = 0
        for report in _one_child(module, {**request, "keys": left[:]}, clock, limit_s, environment, cwd):
            if report.status == "out of time":
                break
            key = report.key or left[0]
            left.remove(key)
            done += 1
            yield report._replace(key=key)
            if not report.key:  # it died before its first step: so would the next one
                for other in left:
                    yield report._replace(key=other)
                return
        if not done:
            break
    for key in left:
        yield Report(key, "out of time", [])


def _one_child(
    module: str,
    request: Mapping[str, Any],
    clock: Clock,
    limit_s: float,
    environment: Mapping[str, str],
    cwd: Path | str,
) -> Iterator[Report]:
    """The reports of one child until it ends; the last one may be a failure, with '' as key where no step had begun."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            cwd=cwd, env=dict(environment), start_new_session=True,
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request))
            process.stdin.close()
        current, begun = "", False
        try:
            while True:
                wait = min(limit_s, clock.left())
                try:
                    line = lines.get(timeout=wait)
                except queue.Empty:
                    kill_group(process)
                    status = "timeout" if wait >= limit_s else "out of time"
                    yield Report(current, status, [f"killed after {limit_s:.0f} s", *_tail(errors)])
                    return
                if line is None:
                    break
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # it was killed while it wrote
                if "start" in event:
                    current, begun = event["start"], True
                else:
                    yield Report(event["done"], "done", event["value"])
                    current = ""
            try:
                code = process.wait(10)
            except subprocess.TimeoutExpired:
                code = 0  # it closed its output after the last step: nothing is left to hear
            if code != 0 and (current or not begun):
                yield Report(current, "failed", [f"the process ended with {code}", *_tail(errors)])
        finally:
            kill_group(process)
            reader.join(10)
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close() if pipe is not None else None


def _tail(errors: Any) -> list[str]:
    errors.seek(0)
    return last_lines(errors.read())


def serve(prepare: Callable[[dict[str, Any]], Callable[[str], Any]]) -> None:
    """The child's side of `conduct`: reads the request, then reports each key's start and value on the real stdout."""
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)  # whatever a library prints goes to stderr

        def say(event: dict[str, Any]) -> None:
            channel.write(json.dumps(event) + "\n")
            channel.flush()

        request = json.load(sys.stdin)
        step = prepare(request)
        for key in request["keys"]:
            say({"start": key})
            say({"done": key, "value": step(key)})

"""Makes many runs at once, each in a process of its own, with a progress bar over all of them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from cosegflow.ablation.errors import AblationError
from cosegflow.ablation.job import LOG_NAME, RESULT_NAME, Job
from cosegflow.ablation.table import Measurement, read_table

POLL_SECONDS = 0.2
PLAIN_SECONDS = 60.0
"""Without a terminal a line of progress comes this often."""
GRACE_SECONDS = 5.0
TRAINING_SHARE = 0.9
"""About so much of a run is training; the bar needs no more than that."""
STEP = re.compile(rb"training:[^\r\n]*?(\d+)/(\d+) \[")


@dataclass(frozen=True)
class Failure:
    """A run that gave no measurements."""

    job: Job
    reason: str


class _Process:
    """A run at work."""

    def __init__(self, job: Job) -> None:
        self.job, self.start = job, time.monotonic()
        path = job.write()
        self.log: IO[bytes] = (job.folder / LOG_NAME).open("ab")
        self.before = self.log.tell()  # what runs that were stopped have written
        threads = {name: str(job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cosegflow.ablation.run", str(path)],
            stdin=subprocess.PIPE,  # it ends with this process: see run.py
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **threads, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops it
        )

    def progress(self) -> tuple[float, str]:
        """Which part of the run is done, about, and the same as text; read from the end of its log."""
        try:
            with (self.job.folder / LOG_NAME).open("rb") as file:
                file.seek(max(self.before, os.fstat(file.fileno()).st_size - 2000))
                found = STEP.findall(file.read())
        except OSError:
            found = []
        if not found:
            return 0.0, self.job.name
        done, total = (int(number) for number in found[-1])
        return TRAINING_SHARE * done / max(1, total), f"{self.job.name} {done}/{total}"

    def reason(self) -> str:
        """Why it failed: our own error, else the last line that it wrote, else how it ended."""
        lines = (self.job.folder / LOG_NAME).read_bytes()[self.before :].decode(errors="replace").split("\n")
        said = [line.rpartition("\r")[2].strip() for line in lines if line.strip()]
        ours = [line.removeprefix("cosegflow: error: ") for line in said if line.startswith("cosegflow: error: ")]
        code = self.process.returncode
        ended = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
        return (ours or said or [ended])[-1] if code >= 0 else ended

    def close(self) -> None:
        """Closes the pipe and the log."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.log.close()

    def stop(self, number: int) -> None:
        """Sends a signal to it and to its workers."""
        if self.process.poll() is None or number == signal.SIGKILL:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)


class Progress:
    """A bar on a terminal, else a line now and then, on stderr."""

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self.start = self.shown = time.monotonic()
        self.total, self.bar = total, None
        if sys.stderr.isatty():
            form = "{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed} left {remaining}{postfix}]"
            self.bar = tqdm(total=total, desc="ablation", bar_format=form, leave=False)

    def show(self, done: float, what: Sequence[str]) -> None:
        """done: runs, with parts of those at work; what: those at work."""
        now = time.monotonic()
        if self.bar is not None:
            self.bar.n = done
            self.bar.set_postfix_str(", ".join(what), refresh=True)
        elif now - self.shown >= PLAIN_SECONDS:
            self.shown = now
            spent = now - self.start
            left = f", about {spent / done * (self.total - done) / 60:.0f} min left" if done > 0 else ""
            print(f"ablation: {done:.1f}/{self.total} runs{left}; {', '.join(what)}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.bar is not None:
            self.bar.write(text, file=sys.stdout)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Removes the bar."""
        if self.bar is not None:
            self.bar.close()


def _stop(running: Sequence[_Process]) -> None:
    """Ends processes and their workers; checkpoints are written aside and renamed, so none is damaged."""
    for one in running:
        one.stop(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline and any(one.process.poll() is None for one in running):
        time.sleep(0.05)
    for one in running:
        one.stop(signal.SIGKILL)
        one.process.wait()
        one.close()


def run_jobs(
    jobs: Sequence[Job], at_once: int, keep: Callable[[Job, list[Measurement]], None], progress: Any = None
) -> list[Failure]:
    """Makes the runs, `at_once` at a time, in their order.

    Args:
        jobs: what to run.
        at_once: how many processes.
        keep: called with the measurements of each run when it is done.
        progress: a `Progress`; None makes one.

    Returns:
        The runs that failed; the others go on.

    Raises:
        KeyboardInterrupt: after the processes were stopped.
    """
    shown = Progress(len(jobs)) if progress is None else progress
    waiting, running, failures, done = list(jobs), list[_Process](), list[Failure](), 0
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                try:
                    running.append(_Process(job))
                except (AblationError, OSError) as error:
                    failures.append(Failure(job, str(error)))
                    shown.say(f"{job.name}: FAILED: {error}")
                    done += 1
            time.sleep(POLL_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                one.close()
                done += 1
                minutes = (time.monotonic() - one.start) / 60
                try:
                    if one.process.returncode:
                        raise AblationError(one.reason())
                    measured = read_table(one.job.folder / RESULT_NAME)
                    keep(one.job, measured)
                except AblationError as error:
                    failures.append(Failure(one.job, str(error)))
                    shown.say(f"{one.job.name}: FAILED: {error}")
                else:
                    shown.say(f"{one.job.name}: {describe(measured)} ({minutes:.1f} min)")
            parts = [one.progress() for one in running]
            shown.show(done + sum(part for part, _ in parts), [text for _, text in parts])
    finally:
        _stop(running)
        shown.close()
    return failures


HEADLINES = (("pck@0.05", "PCK@.05"), ("pck@0.1", "PCK@.1"), ("jaccard", "Jaccard"))


def describe(measured: Sequence[Measurement]) -> str:
    """The chief numbers on stamps, on one line."""
    values = {m.metric: m.value for m in measured if m.dataset == "stamps" and not m.condition}
    return ", ".join(f"{title} {values[name]:.3f}" for name, title in HEADLINES if name in values)

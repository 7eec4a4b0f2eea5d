"""Times of several contestants, taken in turn (A B A B ...), so that a change of the machine's state meets them all.

CUDA: the time of the GPU, by events around one call on the current stream. Before each call 256 MB are overwritten, so
that the L2 cache holds nothing of use, and the GPU is kept busy until the host has enqueued the call, so that what
Python and the dispatcher take is not counted unless it is longer than that. CPU: `torch.utils.benchmark`, which sets
the threads, repeats short statements within one reading and takes the overhead of a reading into account; a turn holds
several readings. Inputs rotate from turn to turn; the garbage collector rests.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

from ..options import REPEATS
from .job import Job

FLUSH_BYTES = 256 << 20
BUSY_CYCLES = 4_000_000
"""Of the GPU's clock, about 2 ms: longer than the host needs to enqueue any contestant's launches."""
TURNS = {"cpu": 5, "cuda": 1}
"""At least so many, also where the first holds enough readings: a turn is many readings on the CPU, one on CUDA."""


class Timing(NamedTuple):
    """Seconds."""

    p20: float
    median: float
    p80: float
    repeats: int


@dataclass
class Readings:
    """Of one contestant."""

    seconds: list[float] = field(default_factory=list)
    failure: BaseException | None = None

    def timing(self) -> Timing:
        """Quantiles by nearest rank."""
        ordered = sorted(self.seconds)
        last = len(ordered) - 1
        p20, median, p80 = (ordered[round(q * last)] for q in (0.2, 0.5, 0.8))
        return Timing(p20, median, p80, len(ordered))


def in_turn(jobs: Sequence[Job], device: torch.device, budget_s: float, repeats: int = REPEATS) -> dict[str, Readings]:
    """Readings by name, until each has `repeats` or `budget_s` seconds for each contestant are over; at least one.

    A contestant that raises keeps its exception and takes no further turn.
    """
    found = {job.name: Readings() for job in jobs}
    turn = _turn_cuda if device.type == "cuda" else _turn_cpu
    turns = TURNS[device.type]
    stop = time.monotonic() + budget_s * len(jobs)
    index = 0
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        while True:
            well = [job for job in jobs if found[job.name].failure is None]
            left = [job for job in well if index < turns or len(found[job.name].seconds) < repeats]
            if not left or (index > 0 and time.monotonic() >= stop):
                return found
            for job in left:
                try:
                    found[job.name].seconds += turn(job, index, budget_s / (2 * turns), device)
                except Exception as failure:  # whatever a peer may raise is its row
                    # Its traceback would keep the frames' tensors alive while the others take their turns.
                    found[job.name].failure = forget(failure)
            index += 1
    finally:
        if collects:
            gc.enable()


def forget(failure: BaseException) -> BaseException:
    """The exception without its tracebacks and causes."""
    failure.__cause__ = failure.__context__ = None
    return failure.with_traceback(None)


def _turn_cpu(job: Job, index: int, seconds: float, device: torch.device) -> list[float]:
    """Several readings of one contestant on one set of inputs."""
    state = job.prepare(index)
    timer = Timer("run(state)", globals={"run": job.run, "state": state}, num_threads=torch.get_num_threads())
    return list(timer.blocked_autorange(min_run_time=seconds).times)


_flush: dict[torch.device, torch.Tensor] = {}


def _turn_cuda(job: Job, index: int, seconds: float, device: torch.device) -> list[float]:
    """One reading, after a warm-up in the first turn."""
    if device not in _flush:
        _flush[device] = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    state = job.prepare(index)
    if index == 0:
        for _ in range(3):
            job.run(state)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    _flush[device].zero_()
    torch.cuda._sleep(BUSY_CYCLES)
    begin.record()
    job.run(state)
    end.record()
    end.synchronize()
    return [begin.elapsed_time(end) * 1e-3]

"""Times of several contestants, taken in turn (A B A B ...), so that a change of the machine's state meets them all.

CUDA: events around one call on the current stream; before each, 256 MB are overwritten, so that the L2 cache holds
nothing of use, and the inputs rotate. CPU: `torch.utils.benchmark`, which sets the threads, repeats short statements
within one reading and takes the overhead of a reading into account; a turn holds several readings.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

from ..options import REPEATS
from .job import Job

FLUSH_BYTES = 256 << 20


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
    stop = time.monotonic() + budget_s * len(jobs)
    index = 0
    while True:
        left = [j for j in jobs if found[j.name].failure is None and len(found[j.name].seconds) < repeats]
        if not left or (index > 0 and time.monotonic() >= stop):
            return found
        for job in left:
            try:
                found[job.name].seconds += turn(job, index, budget_s / 5, device)
            except Exception as failure:  # whatever a peer may raise is its row
                found[job.name].failure = failure
        index += 1


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
    begin.record()
    job.run(state)
    end.record()
    end.synchronize()
    return [begin.elapsed_time(end) * 1e-3]

"""The benchmarks, by priority: a child process that measures, and the only place that knows the runner."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ..case import DIRECTIONS
from ..measure import ceilings
from ..options import QUICK_BUDGET_S, REPEATS
from ..peers import PEERS
from ..provenance import provenance
from ..runner import Step, choose_peers, plan, run
from ..table import OURS
from ..works import WORKS
from .process import serve

BUDGET_S = 0.5
"""Of timing for each contestant in each step: a GPU minute buys many sizes, each still the median of its readings."""
CEILINGS = "ceilings"
"""The key of the step that measures what the machine can do at most; every other step needs its value."""
ORDER = ("forward", "both", "backward")


def steps(device: str, quick: bool, peers: str) -> dict[str, Step]:
    """What is measured, by key, the most wanted first: the first size of every work, then the second ones, ...

    Peers that are slow to compile come after all others, each in a step of its own beside ours. A key names the peers
    unless they are the default ones, so that a later call with others finds what is left.

    Raises:
        ValueError: an unknown peer.
    """
    sizes = "gpu" if device == "cuda" and not quick else "quick"
    found: list[tuple[tuple[bool, int, int, int], Step]] = []
    for at, (name, work) in enumerate(WORKS.items()):
        for step in plan([name], sizes, DIRECTIONS, peers):
            place = work.cases[sizes].index(step.case), ORDER.index(step.direction), at
            quick_ones = tuple(p for p in step.peers if PEERS[p].default)
            if quick_ones:
                found.append(((False, *place), dataclasses.replace(step, peers=quick_ones)))
            for slow in (p for p in step.peers if not PEERS[p].default):
                found.append(((True, *place), dataclasses.replace(step, peers=(OURS, slow))))
    found.sort(key=lambda pair: pair[0])
    return {_key(step): step for _, step in found}


def _key(step: Step) -> str:
    usual = step.peers == choose_peers("default", step.work)
    return str(step) if usual else f"{step} [{','.join(step.peers)}]"


def prepare(request: dict[str, Any]) -> Callable[[str], Any]:
    """The measurements of a request: device, quick, peers, command, and ceilings once they are known."""
    device = torch.device("cuda", 0) if request["device"] == "cuda" else torch.device("cpu")
    todo = steps(request["device"], request["quick"], request["peers"])
    origin = provenance(device, request["command"])
    limits = ceilings.Ceilings(**request["ceilings"]) if request["ceilings"] else None
    budget = QUICK_BUDGET_S / 2 if request["quick"] else BUDGET_S

    def measure(key: str) -> Any:
        nonlocal limits
        if key == CEILINGS:
            seconds = 0.05 if request["quick"] else 0.5
            limits = ceilings.measure(device, {s.case.dtype for s in todo.values()}, seconds)
            return dataclasses.asdict(limits)
        if limits is None:
            raise RuntimeError("the ceilings were not measured")
        memory = device.type == "cuda"
        ((_, rows),) = run([todo[key]], device, origin, limits, budget, 5 if request["quick"] else REPEATS, memory)
        return rows

    return measure


if __name__ == "__main__":
    serve(prepare)

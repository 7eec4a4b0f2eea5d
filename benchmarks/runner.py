"""Measures steps (a work at a case in a direction, all its peers in turn) and yields one row per contestant."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .case import Case, columns
from .measure import ceilings, job, memory, timing
from .options import REPEATS
from .peers import PEERS
from .peers.base import Unavailable
from .rows import Row
from .works import WORKS
from .works.base import Exact, Inputs

ROTATE_BYTES = {"cpu": 64 << 20, "cuda": 256 << 20}
"""Inputs rotate until so many bytes are in use: more than the last-level caches hold."""
MOST_SETS = 4


@dataclass(frozen=True)
class Step:
    """What is measured together."""

    work: str
    case: Case
    direction: str
    peers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.work} {self.direction} {self.case}"


def choose_peers(peers: str, work: str) -> tuple[str, ...]:
    """'default', 'all', or names separated by commas; of those, the ones that do this work.

    Raises:
        ValueError: an unknown name; the message lists the valid ones.
    """
    names = [p.strip() for p in peers.split(",") if p.strip()]
    unknown = [n for n in names if n not in PEERS and n not in ("default", "all")]
    if unknown or not names:
        raise ValueError(
            f"--peers: unknown peer {', '.join(unknown) or repr(peers)}; valid: all, default, {', '.join(PEERS)}"
        )
    return tuple(
        name
        for name, peer in PEERS.items()
        if work in peer.works and (name in names or "all" in names or ("default" in names and peer.default))
    )


def plan(
    works: Sequence[str], cases: str | Sequence[Case], directions: Sequence[str], peers: str = "default"
) -> list[Step]:
    """The steps; `cases`: the name of a set of sizes, or sizes for each work."""
    return [
        Step(work, case, direction, choose_peers(peers, work))
        for work in works
        for case in (WORKS[work].cases[cases] if isinstance(cases, str) else cases)
        for direction in directions
    ]


def _error(results: tuple[Tensor, dict[str, Tensor]], exact: Exact | str, direction: str) -> Row:
    """Largest absolute and relative error of the gradients, or of the output (forward, or too large a case).

    NaN where anything is not a number; nothing where there is no truth to compare with.
    """
    if isinstance(exact, str):
        return {}
    output, gradients = results
    if direction == "forward":
        pairs = [(output if exact.rows is None else output[..., exact.rows, :], exact.output)]
    elif exact.rows is not None and direction == "both":
        pairs = [(output[..., exact.rows, :], exact.output)]
    else:
        pairs = [(gradients[k], v) for k, v in exact.gradients.items()]
    if not pairs:
        return {}
    differences = [(got.double() - want, want) for got, want in pairs]
    # Python's max() loses a NaN that comes second; a tensor's does not.
    largest = torch.stack([d.abs().max() for d, _ in differences]).max()
    relative = torch.stack([d.norm() / want.norm().clamp(min=1e-300) for d, want in differences]).max()
    return {"error_max": largest.item(), "error_rel": relative.item()}


def _refusal(failure: BaseException, peer: str) -> Row:
    """Status and reason of a contestant without a time."""
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0][:300]
    if isinstance(failure, Unavailable):
        return {"status": "unsupported" if PEERS[peer].version() else "missing", "reason": reason}
    if isinstance(failure, TimeoutError):
        return {"status": "out of time", "reason": reason}
    if memory.is_out_of_memory(failure):
        return {"status": "out of memory", "reason": reason}
    return {"status": "failed", "reason": f"{type(failure).__name__}: {reason}"}


def run(
    steps: Sequence[Step],
    device: torch.device,
    provenance: Row,
    limits: ceilings.Ceilings,
    budget_s: float,
    repeats: int = REPEATS,
    with_memory: bool = True,
) -> Iterator[tuple[Step, list[Row]]]:
    """Measures step by step; after each, its rows.

    Args:
        provenance: columns that every row gets.
        budget_s: seconds of timing for each contestant in each step.
    """
    for step in steps:
        yield step, measure(step, device, provenance, limits, budget_s, repeats, with_memory)


def measure(
    step: Step,
    device: torch.device,
    provenance: Row,
    limits: ceilings.Ceilings,
    budget_s: float,
    repeats: int,
    with_memory: bool,
) -> list[Row]:
    """The rows of one step."""
    work, case = WORKS[step.work], step.case
    cost = work.cost(case, step.direction)
    limit_s, limit_by = limits.limit(cost, case.dtype)
    common: dict[str, Any] = {
        **columns(case), **cost._asdict(), "work": step.work, "direction": step.direction,
        "copy_gb_s": limits.copy / 1e9, "matrix_tflop_s": limits.matrix.get(case.dtype, math.nan) / 1e12,
        "exp_g_s": (limits.exp or math.nan) / 1e9, "limit_ms": limit_s * 1e3, "limit_by": limit_by, **provenance,
    }  # fmt: skip
    rows: dict[str, Row] = {}
    for name in step.peers:
        rows[name] = {**common, "peer": name}
        if step.direction not in PEERS[name].directions:
            rows[name] |= {"status": "unsupported", "reason": "no backward"}
    try:
        inputs = _inputs(step, device)
    except Exception as failure:  # too large for this machine, most likely
        return [_rounded({**_refusal(failure, name), **row}) for name, row in rows.items()]
    exact: Exact | str | None = None
    jobs = []
    for name in step.peers:
        if "status" in rows[name]:
            continue
        try:
            one = job.make(PEERS[name], step.work, case, step.direction, inputs, device)
            # First of all: on the CPU, a contestant that runs out of memory does so in a child of its own.
            if device.type == "cpu" and ((with_memory and step.direction != "backward") or memory.is_large(case)):
                graph = "forward" if step.direction == "forward" else "both"
                peak = memory.peak_cpu(step.work, case, graph, name)
            elif with_memory and step.direction != "backward":
                one.results()  # handles and workspaces of libraries are made once
                peak = memory.peak_cuda(lambda one=one: _flat(one.results()), device)  # type: ignore[misc]
            if with_memory and step.direction != "backward":
                rows[name]["memory_mb"] = peak / 1e6
            started = time.monotonic()
            results = one.results()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if time.monotonic() - started > 60:
                raise TimeoutError(f"one call took {time.monotonic() - started:.0f} s")
            if exact is None:
                exact = _truth(step, inputs[0])
            rows[name] |= _error(results, exact, step.direction)
            del results
            jobs.append(one)
        except Exception as failure:  # whatever a peer may raise is its row
            rows[name] |= _refusal(timing.forget(failure), name)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for name, readings in timing.in_turn(jobs, device, budget_s, repeats).items():
        if readings.failure is not None:
            rows[name] |= _refusal(readings.failure, name)
            continue
        taken = readings.timing()
        rows[name] |= {
            "status": "ok", "p20_ms": taken.p20 * 1e3, "median_ms": taken.median * 1e3, "p80_ms": taken.p80 * 1e3,
            "repeats": taken.repeats, "limit_fraction": limit_s / taken.median,
        }  # fmt: skip
    for name, row in rows.items():
        row["peer_version"] = PEERS[name].version()  # now it is known which kernels ran
    return [_rounded(row) for row in rows.values()]


def _truth(step: Step, inputs: Inputs) -> Exact | str:
    """The truth, or why there is none: that is no contestant's fault."""
    try:
        return WORKS[step.work].exact(step.case, inputs, step.direction != "forward")
    except (NotImplementedError, RuntimeError, MemoryError) as failure:
        return str(failure)


def _flat(results: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, ...]:
    return (results[0], *results[1].values())


def _inputs(step: Step, device: torch.device) -> list[Inputs]:
    """Sets of inputs that rotate."""
    first = WORKS[step.work].inputs(step.case, device, 0)
    count = min(MOST_SETS, max(2, math.ceil(ROTATE_BYTES[device.type] / memory.size_of(*first.values()))))
    return [first, *(WORKS[step.work].inputs(step.case, device, seed) for seed in range(1, count))]


def _rounded(row: Row) -> Row:
    """Four significant digits are more than any of this is good for."""
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}

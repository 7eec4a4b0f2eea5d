"""`cosegflow.match` on the CPU against eager PyTorch: time, error and peak memory.

    python -m benchmarks.match_cpu [--quick] [--threads 2] [--repeats 9] [--output benchmarks/results/match_cpu.json]

Both sides are timed in turn in one process (A B A B ...), the median of each is printed, and their ratio: on a shared
machine the times mean little and the ratio much. Errors are against `cosegflow.reference` in float64.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import cosegflow
from benchmarks import eager
from benchmarks.provenance import cpu_name, save
from cosegflow import reference

BETA = 50.0


class Case(NamedTuple):
    """One row of the table; `goals` are issue 2's smallest ratios, forward and forward + backward (0: none)."""

    channels: int
    side: int
    masked: bool = False
    goals: tuple[float, float] = (0.0, 0.0)


CASES = [
    Case(16, 64),
    Case(64, 64, goals=(3.5, 0.0)),
    Case(64, 64, masked=True),
    Case(256, 64, goals=(1.5, 1.1)),
    Case(1024, 32, goals=(1.0, 0.0)),
]


def interleaved(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median seconds of each, after one call of each that is not counted."""
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, sink in zip((first, second), times, strict=True):
            started = time.perf_counter()
            function()
            sink.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def gradients(flow: Tensor, inputs: tuple[Tensor, Tensor], weight: Tensor) -> tuple[Tensor, ...]:
    """The gradients of (flow * weight).sum()."""
    return torch.autograd.grad(flow, inputs, weight.to(flow.dtype))


def largest_error(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    """Largest absolute difference."""
    return max((g.double() - w).abs().max().item() for g, w in zip(got, want, strict=True))


def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    """Forward and forward + backward of one case, one row each."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, case.channels, case.side, case.side)
    fa, fb = (torch.randn(shape, generator=generator).requires_grad_() for _ in range(2))
    weight = torch.randn((1, 2, case.side, case.side), generator=generator)
    # Eager has no use for an excluded target, so the masked case compares soft weights that exclude nothing.
    mask = torch.rand((1, case.side, case.side), generator=generator) * 0.9 + 0.1 if case.masked else None

    def ours() -> Tensor:
        return cosegflow.match(fa, fb, None, mask, beta=BETA).flow

    def theirs() -> Tensor:
        return eager.match(fa, fb, None if mask is None else mask.log(), BETA)

    a, b = (f.detach().double().requires_grad_() for f in (fa, fb))
    exact = reference.match(a, b, None, mask, torch.tensor(BETA, dtype=torch.float64)).flow
    exact_gradients = gradients(exact, (a, b), weight)
    exact = exact.detach()

    def without_gradient(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(function)

    def with_gradient(function: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
        return lambda: gradients(function(), (fa, fb), weight)

    rows = []
    for index, direction in enumerate(("forward", "forward + backward")):
        wrap: Any = (without_gradient, with_gradient)[index]
        eager_s, ours_s = interleaved(wrap(theirs), wrap(ours), repeats)
        errors = [
            largest_error((f().detach(),), (exact,)) if index == 0 else largest_error(wrap(f)(), exact_gradients)
            for f in (theirs, ours)
        ]
        rows.append(
            {
                "direction": direction,
                "channels": case.channels,
                "positions": f"{case.side}x{case.side}",
                "mask": case.masked,
                "eager_ms": eager_s * 1e3,
                "ours_ms": ours_s * 1e3,
                "ratio": eager_s / ours_s,
                "goal": case.goals[index],
                "eager_error": errors[0],
                "ours_error": errors[1],
            }
        )
    return rows


def high_water_kib(field: str) -> int | None:
    """VmHWM (the peak since it was last reset) or VmRSS of this process, where the kernel tells."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    except OSError:
        pass
    return None


def peak_extra_mb(side: int, channels: int) -> float:
    """Peak resident memory of one forward + backward above what was resident before, inputs not counted, in MB."""
    fa, fb = (torch.randn(1, channels, side, side).requires_grad_() for _ in range(2))

    def step(x: Tensor, y: Tensor) -> None:
        flow, lse, _ = cosegflow.match(x, y, beta=BETA)
        (flow.square().sum() + lse.sum()).backward()

    step(*(torch.randn(1, channels, 8, 8).requires_grad_() for _ in range(2)))  # loads what is loaded once
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM = VmRSS
        before = high_water_kib("VmRSS")
    except OSError:
        before = None
    if before is None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(fa, fb)
    after = high_water_kib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (after - before) * 1024 / 1e6


def memory_in_child(side: int, channels: int, threads: int) -> float:
    """`peak_extra_mb` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.match_cpu", "--threads", str(threads), "--peak", f"{side},{channels}"]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Appends rows to the table."""
    for row in rows:
        goal = f">= {row['goal']:.1f}" if row["goal"] else ""
        print(
            f"{row['direction']:<19} {row['channels']:>5} {row['positions']:>7} {'soft' if row['mask'] else 'none':>5}"
            f" {row['eager_ms']:>9.1f} {row['ours_ms']:>9.1f} {row['ratio']:>7.2f} {goal:>7}"
            f" {row['eager_error']:>12.1e} {row['ours_error']:>12.1e}",
            flush=True,
        )


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five repeats, no masked case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="also write the figures and where they come from, as JSON")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        side, channels = map(int, arguments.peak.split(","))
        print(peak_extra_mb(side, channels))
        return

    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32, B = 1, beta = {BETA}")
    print(
        f"{'':<19} {'C':>5} {'a = b':>7} {'mask':>5} {'eager ms':>9} {'ours ms':>9} {'ratio':>7} {'goal':>7}"
        f" {'eager error':>12} {'our error':>12}"
    )
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if arguments.quick and case.masked:
            continue
        measured = measure(case, 5 if arguments.quick else max(5, arguments.repeats))
        print_rows(measured)
        rows += measured
    peak = memory_in_child(128, 16, arguments.threads)
    volume = 128**4 * 4 / 1e6
    print(f"peak extra memory, forward + backward, 128x128, C = 16: {peak:.0f} MB (goal < 250; a volume: {volume:.0f})")
    if arguments.output:
        result = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": "python -m benchmarks.match_cpu " + " ".join(sys.argv[1:]),
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cosegflow": cosegflow.__version__,
            "rows": rows,
            "peak_extra_mb": peak,
        }
        save(result, arguments.output)


if __name__ == "__main__":
    main()

"""What this machine can do at most, measured in the same run: bytes copied, products, exponentials per second."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..works.base import Cost

LONGEST_CALL_S = 2.0
"""Some CPUs multiply half-precision matrices very slowly."""
CHAIN = 64
"""Exponentials per element of the CUDA kernel that measures their rate."""


@dataclass(frozen=True)
class Ceilings:
    """Rates per second; a rate that could not be measured is missing and its reason is in `notes`."""

    copy: float
    """Bytes read plus bytes written."""
    matrix: dict[str, float]
    """Floating-point operations of torch.mm, by dtype."""
    exp: float | None
    notes: dict[str, str] = field(default_factory=dict)

    def limit(self, cost: Cost, dtype: str) -> tuple[float, str]:
        """The time in seconds that the busiest unit alone needs, and that unit: 'copy', 'matrix' or 'exp'."""
        times = {"copy": cost.bytes / self.copy}
        if cost.flops and dtype in self.matrix:
            times["matrix"] = cost.flops / self.matrix[dtype]
        if cost.exps and self.exp:
            times["exp"] = cost.exps / self.exp
        unit = max(times, key=lambda k: times[k])
        return times[unit], unit


def best(run: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest time of a call, over `seconds` of calls (three at least) after one that is not counted."""
    run()
    shortest, stop, count = float("inf"), time.monotonic() + seconds, 0
    while count < 3 or time.monotonic() < stop:
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            taken = begin.elapsed_time(end) * 1e-3
        else:
            started = time.perf_counter()
            run()
            taken = time.perf_counter() - started
        shortest, count = min(shortest, taken), count + 1
    return shortest


def _exp_cuda(device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """A call that is bound by its exponentials, and how many it computes."""
    source = f"""template <typename T> T chain(T x) {{
        #pragma unroll
        for (int i = 0; i < {CHAIN}; i++) x = exp2f(-x);
        return x;
    }}"""
    chain = torch.cuda.jiterator._create_jit_fn(source)  # compiled at run time: the wheel holds no such kernel
    x = torch.rand(1 << 24, device=device)
    return lambda: chain(x), CHAIN * x.numel()


def _exp_cpu() -> tuple[Callable[[], Tensor], int]:
    """The same on the CPU: tensors that stay in the caches."""
    x = torch.rand(1 << 20)
    out = torch.empty_like(x)
    return lambda: torch.exp(x, out=out), x.numel()


def _exp_rate_cpu(run: Callable[[], Tensor], exps: int, seconds: float) -> float:
    """One thread's rate times the threads: a parallel region this short would measure how busy the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return threads * exps / best(run, torch.device("cpu"), seconds)
    finally:
        torch.set_num_threads(threads)


def _matrix_rate(dtype: torch.dtype, largest: int, device: torch.device, seconds: float) -> float:
    """Operations per second of torch.mm on squares, doubled in size while calls stay below `LONGEST_CALL_S`."""
    n, rate = largest // 8, 0.0
    while n <= largest:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        last = n == largest
        taken = best(partial(torch.mm, a, b, out=torch.empty_like(a)), device, seconds if last else 0.0)
        rate = max(rate, 2 * n**3 / taken)
        if 8 * taken > LONGEST_CALL_S:
            break
        n *= 2
    return rate


def measure(device: torch.device, dtypes: set[str], seconds: float = 0.5) -> Ceilings:
    """Measures each rate for `seconds`, on random data."""
    cuda = device.type == "cuda"
    count = (1 << 29) if cuda else (1 << 25)  # 2 GiB, 128 MiB of float32: far more than the caches
    source = torch.rand(count, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 4 / best(partial(target.copy_, source), device, seconds)
    del source, target
    matrix, notes = {}, {}
    for dtype in sorted(dtypes):
        largest = (8192 if dtype in ("bfloat16", "float16") else 4096) if cuda else 1024
        try:
            matrix[dtype] = _matrix_rate(getattr(torch, dtype), largest, device, seconds)
        except RuntimeError as failure:
            notes[f"matrix {dtype}"] = str(failure).splitlines()[0]
    exp = None
    try:
        run, exps = _exp_cuda(device) if cuda else _exp_cpu()
        exp = exps / best(run, device, seconds) if cuda else _exp_rate_cpu(run, exps, seconds)
    except Exception as failure:  # the run-time compiler may be missing
        notes["exp"] = f"{type(failure).__name__}: {failure}".splitlines()[0]
    return Ceilings(copy, matrix, exp, notes)

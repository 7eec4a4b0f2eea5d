"""Peak memory of one call beyond its inputs, outputs and input gradients.

CUDA: the allocator's own peak. CPU: the peak resident memory of a child process that does this one call; the child may
take most of the memory that is free and no more, so that a contestant that wants too much fails by itself.
"""

import gc
import multiprocessing
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..case import Case
from ..works.base import Inputs

SHARE = 0.8
"""Of the free memory, what a child may take."""
CHILD_SECONDS = 600
VOLUMES = 8
"""What stores the volume may hold so many of them at a time, forward and backward, in float32."""


class OutOfMemory(RuntimeError):
    """A contestant wanted more memory than there is."""


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether an exception says so, on any device."""
    text = str(failure)
    words = ("out of memory", "can't allocate memory", "bad_alloc", "DefaultCPUAllocator", "Cannot allocate memory")
    return isinstance(failure, OutOfMemory | MemoryError | torch.OutOfMemoryError) or any(w in text for w in words)


def size_of(*tensors: Tensor) -> int:
    """Bytes of their values."""
    return sum(t.numel() * t.element_size() for t in tensors)


def peak_cuda(run: Callable[[], tuple[Tensor, ...]], device: torch.device) -> float:
    """Peak bytes beyond what was there before and what `run` returns."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    kept = size_of(*run())
    torch.cuda.synchronize(device)
    return float(max(0, torch.cuda.max_memory_allocated(device) - before - kept))


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def available() -> int:
    """Bytes that a new program may take without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def is_large(case: Case) -> bool:
    """Whether a contestant that stores the volume a few times over may want more memory than there is."""
    (ha, wa), (hb, wb) = case.a, case.b
    return case.batch * ha * wa * hb * wb * 4 * VOLUMES > available()


def _child(connection: Connection, work: str, case: Case, direction: str, peer: str, threads: int, limit: int) -> None:
    """Runs in the child: sends the peak in bytes, or the reason why there is none."""
    from ..peers import PEERS
    from ..peers.base import Unavailable
    from ..works import WORKS
    from . import job

    torch.set_num_threads(threads)
    device = torch.device("cpu")
    try:
        one = WORKS[work]
        # A tiny problem first, so that what is loaded and made once is not counted.
        for size in (one.cases["quick"][0], case):
            inputs: Inputs = one.inputs(size, device, 0)
            contestant = job.make(PEERS[peer], work, size, direction, [inputs], device)
            if size is case:
                resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + limit,) * 2)
                Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
                before = _status("VmRSS")
                if not PEERS[peer].default:
                    contestant.results()  # those compile each size: the compiler's memory is not theirs
            output, gradients = contestant.results()
            cotangents = () if direction == "forward" else (contestant.cotangent(output),)
            kept = size_of(output, *gradients.values(), *cotangents)
        connection.send(("peak", float(max(0, _status("VmHWM") - before - kept))))
    except Unavailable as failure:
        connection.send(("unavailable", str(failure)))
    except Exception as failure:
        if is_out_of_memory(failure):
            connection.send(("out of memory", f"more than {limit / 1e9:.1f} GB"))
        else:
            connection.send(("failed", f"{type(failure).__name__}: {failure}"))


_context: Any = None


def peak_cpu(work: str, case: Case, direction: str, peer: str) -> float:
    """Peak bytes, from a child process.

    Raises:
        Unavailable: the peer says so.
        OutOfMemory: it wanted more than `SHARE` of the free memory.
        RuntimeError: it failed otherwise, or took more than ten minutes.
    """
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")  # forks from a process that has loaded torch, no threads
        _context.set_forkserver_preload(["torch", "cosegflow", f"{__package__.rpartition('.')[0]}.works"])
    here, there = _context.Pipe(duplex=False)
    limit = int(available() * SHARE)
    arguments = (there, work, case, direction, peer, torch.get_num_threads(), limit)
    child = _context.Process(target=_child, args=arguments, daemon=True)
    child.start()
    there.close()
    try:
        if not here.poll(CHILD_SECONDS):
            raise RuntimeError(f"no result after {CHILD_SECONDS} s")
        kind, what = here.recv()
    except EOFError:
        child.join()
        if child.exitcode == -9:
            raise OutOfMemory(f"the process was killed; it may take {limit / 1e9:.1f} GB") from None
        raise RuntimeError(f"the process ended with exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
    if kind == "peak":
        return float(what)
    if kind == "unavailable":
        from ..peers.base import Unavailable

        raise Unavailable(what)
    raise (OutOfMemory if kind == "out of memory" else RuntimeError)(what)

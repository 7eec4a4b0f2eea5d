"""Which CUDA kernels to take: the fast ones, once they have agreed with the simple ones on this machine.

An operation has up to three kinds of kernels: those of this architecture alone ("hopper" on sm_90), portable fast ones,
and one simple kernel that is plainly right. A fast path that has not been verified on hardware of this architecture
(`VERIFIED`) compares itself with the simple one on small fixed problems (`_self_check.py`), once per process at its
first use, and is not taken if it disagrees: one warning says so. An architecture's own kernels leave some calls to the
portable ones, so they are taken only where both agree; where they alone disagree, the portable ones are taken. While a
stream is being captured no check can run, so an unchecked path is not taken; `warmup()` runs all checks beforehand.
COSEGFLOW_SIMPLE=1 forces the simple kernels, COSEGFLOW_PORTABLE=1 leaves out the architecture's own; COSEGFLOW_LOG=1
says what is taken and why.

Rejected: trusting what hostsim and nvcc prove. They cannot prove that a line of PTX means what its emulation does.
"""

import warnings

import torch

from cosegflow import _library
from cosegflow.ops._log import is_set, log_path
from cosegflow.ops._self_check import CASES, PORTABLE, agrees, case_name, own_path
from cosegflow.ops._verified import VERIFIED

FAST, SIMPLE = "fast", "simple"  # with PORTABLE the answers of `choose`; FAST: the library takes what it has
_agreed: dict[tuple[str, str, torch.dtype, int, int], bool] = {}  # operation, path, dtype, precision, device
_chosen: dict[tuple[str, torch.dtype, int, int | None, bool], str] = {}  # the way of every call but the first


@torch.compiler.assume_constant_result
def choose(op: str, dtype: torch.dtype, device: torch.device, precision: int = 0) -> str:
    """`FAST`, `PORTABLE` or `SIMPLE`: what operation `op` asks for on tensors of this dtype and device."""
    if is_set("COSEGFLOW_SIMPLE"):
        if device.type == "cuda":  # the CPU has one kernel
            log_path(op, "simple kernels", "COSEGFLOW_SIMPLE is set")
        return SIMPLE
    if device.type != "cuda":
        return FAST
    portable = is_set("COSEGFLOW_PORTABLE")
    known = _chosen.get((op, dtype, precision, device.index, portable))
    if known is not None:
        return known
    if not torch.cuda.is_available():  # fake tensors may be of a device that is not there
        return PORTABLE if portable else FAST
    index = torch.cuda.current_device() if device.index is None else device.index
    chosen, stands = _decide(op, dtype, index, precision, portable)
    if stands:
        _chosen[op, dtype, precision, index, portable] = chosen
    return chosen


def _decide(op: str, dtype: torch.dtype, index: int, precision: int, portable: bool) -> tuple[str, bool]:
    """What `choose` answers, and whether that stands for later calls."""
    major, minor = torch.cuda.get_device_capability(index)
    architecture = f"sm_{major}{minor}"
    if major < 8:
        log_path(op, "simple kernels", f"compute capability {major}.{minor} has no mma.m16n8k16 and no cp.async")
        return SIMPLE, True
    trusted = _trusted(op, PORTABLE, architecture, dtype, precision, index)
    if not trusted:
        log_path(op, "simple kernels", _why_not("the fast ones", dtype, precision, trusted))
        return SIMPLE, trusted is not None
    own = own_path(op, architecture, dtype, precision)
    if own is None:
        return (PORTABLE if portable else FAST), True
    if portable:
        log_path(op, "portable kernels", "COSEGFLOW_PORTABLE is set")
        return PORTABLE, True
    if not _library.HAS_SM90A:
        log_path(op, "portable kernels", "this build is not for 9.0a (TORCH_CUDA_ARCH_LIST)")
        return PORTABLE, True
    trusted = _trusted(op, own, architecture, dtype, precision, index)
    if not trusted:
        log_path(op, "portable kernels", _why_not(f"those of {architecture}", dtype, precision, trusted))
        return PORTABLE, trusted is not None
    return FAST, True


def _trusted(op: str, path: str, architecture: str, dtype: torch.dtype, precision: int, index: int) -> bool | None:
    """Whether a path may be taken; None where it is unchecked and cannot be checked now."""
    if (op, path, architecture) in VERIFIED:
        return True
    key = (op, path, dtype, precision, index)
    if key not in _agreed:
        if torch.cuda.is_current_stream_capturing():
            return None
        _agreed[key] = agrees(op, path, torch.empty(0, dtype=dtype, device=torch.device("cuda", index)), precision)
        if not _agreed[key]:
            kind, instead = ("fast", "simple") if path == PORTABLE else (architecture, "portable")
            warnings.warn(
                f"cosegflow: the {kind} CUDA kernels of {op} for torch.{case_name(dtype, precision)} disagree with the "
                f"simple ones on {torch.cuda.get_device_name(index)}; the {instead} ones are used. Please report this.",
                RuntimeWarning,
                stacklevel=5,
            )
    return _agreed[key]


def _why_not(which: str, dtype: torch.dtype, precision: int, trusted: bool | None) -> str:
    if trusted is None:
        return f"a stream is being captured and {which} are unchecked; cosegflow.warmup() checks them"
    return f"{which} disagree with the simple ones for {case_name(dtype, precision)}"


def warmup(device: torch.device | str = "cuda") -> None:
    """Checks every fast path on `device` now, so that no later call waits and CUDA graphs may capture them.

    Args:
        device: a CUDA device, such as "cuda:1".

    Raises:
        RuntimeError: `device` is no CUDA device, or there is none.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise RuntimeError(f"device must be a CUDA device that torch sees, got {device}: only CUDA has paths to check")
    for (op, path), cases in CASES.items():
        if path == PORTABLE:  # all that there is: `choose` checks the architecture's own besides
            for dtype, precision in cases:
                choose(op, dtype, device, precision)

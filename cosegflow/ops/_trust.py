"""Which CUDA kernels to take: the fast ones, once they have agreed with the simple ones on this machine.

Each operation has one simple kernel that is plainly right. A fast path that has not been verified on hardware of this
architecture (`VERIFIED`) compares itself with the simple one on small fixed problems, once per process at its first
use, and is not taken if it disagrees: one warning says so. While a stream is being captured no check can run, so an
unchecked path is not taken; `warmup()` runs all checks beforehand. COSEGFLOW_SIMPLE=1 forces the simple kernels.

Rejected: trusting what hostsim and nvcc prove. They cannot prove that a line of PTX means what its emulation does.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from cosegflow._operators import operators
from cosegflow.ops._autocast import without_autocast
from cosegflow.ops._verified import VERIFIED
from cosegflow.reference import accumulate_dtype

Size = tuple[int, ...]
_agreed: dict[tuple[str, torch.dtype, int], bool] = {}


def _wave(shape: tuple[int, ...], speed: float, like: Tensor) -> Tensor:
    """Fixed values in [-1, 1]; torch's random state is left alone."""
    count = 1
    for size in shape:
        count *= size
    return torch.sin(torch.arange(count, device=like.device, dtype=torch.float64) * speed).reshape(shape)


def _match(ops: Any, like: Tensor, simple: bool, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    acc = accumulate_dtype(like.dtype)
    mask_a, mask_b = _wave((b, ha, wa), 2.1, like) > -0.5, _wave((b, hb, wb), 1.7, like).clamp(min=0).to(acc)
    beta = torch.full((), 12.0, device=like.device, dtype=acc)
    flow, lse, confidence, _, _ = ops.match(fa, fb, mask_a, mask_b, beta, True, simple)
    grads = ops.match_backward(
        _wave((b, 2, ha, wa), 0.9, like).to(acc), _wave((b, ha, wa), 1.1, like).to(acc), fa, fb, mask_a, mask_b, beta,
        flow, lse, True, simple, True, True, True, True,
    )  # fmt: skip
    # Two nearly equal targets may swap places between the kernels, so the most probable one shows by its score. That
    # takes targets that are only in or out: unequal weights could give nearly equal logits to unequal scores.
    indexed = ops.match(fa, fb, mask_a, mask_b > 0, beta, True, simple, 0.0, True)
    score = torch.where(indexed[3] >= 0, indexed[4], 0.0)
    return [flow, torch.where(torch.isfinite(lse), lse, 0.0), confidence, *grads, indexed[0], score]


def _match_both(ops: Any, like: Tensor, simple: bool, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    acc = accumulate_dtype(like.dtype)
    mask_a = _wave((b, ha, wa), 2.1, like).clamp(min=0).to(acc)
    mask_b = _wave((b, hb, wb), 1.7, like).clamp(min=0).to(acc)
    beta = torch.full((), 12.0, device=like.device, dtype=acc)
    outputs = ops.match_both(fa, fb, mask_a, mask_b, beta, True, simple)
    incoming = [_wave(tuple(outputs[i].shape), 0.9 + 0.1 * i, like).to(acc) for i in (0, 1, 3, 4)]
    saved = [outputs[i] for i in (0, 1, 3, 4)]
    grads = ops.match_both_backward(
        *incoming, fa, fb, mask_a, mask_b, beta, *saved, True, simple, True, True, True, True, True
    )
    return [*(torch.where(torch.isneginf(o), 0.0, o) for o in outputs), *grads]


def _transfer(ops: Any, like: Tensor, simple: bool, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    acc = accumulate_dtype(like.dtype)
    values = _wave((b, 11, hb, wb), 0.37, like).to(like.dtype)
    mask_a, mask_b = _wave((b, ha, wa), 2.1, like) > -0.5, _wave((b, hb, wb), 1.7, like).clamp(min=0).to(acc)
    beta = torch.full((), 12.0, device=like.device, dtype=acc)
    out, lse = ops.transfer(fa, fb, values, mask_a, mask_b, beta, True, simple)
    grads = ops.transfer_backward(
        _wave((b, 11, ha, wa), 0.9, like).to(acc), fa, fb, values, mask_a, mask_b, beta, out, lse, True, simple, True,
        True, True, True, True,
    )  # fmt: skip
    return [out, torch.where(torch.isfinite(lse), lse, 0.0), *grads]


def _soft_argmax(ops: Any, like: Tensor, simple: bool, size: Size) -> list[Tensor]:
    b, ha, wa, hb, wb = size
    corr = _wave(size, 0.7, like).to(like.dtype)
    acc = accumulate_dtype(like.dtype)
    mask_b = _wave((b, hb, wb), 1.7, like).clamp(min=0).to(acc)
    beta = torch.full((), 5.0, device=like.device, dtype=acc)
    flow, lse, confidence, _, _ = ops.soft_argmax(corr, mask_b, beta, simple)
    grads = ops.soft_argmax_backward(
        _wave((b, 2, ha, wa), 0.9, like).to(acc), _wave((b, ha, wa), 1.1, like).to(acc), corr, mask_b, beta, flow, lse,
        simple, True, True, True,
    )  # fmt: skip
    # Both kernels round a logit alike, so they agree on the most probable target, around which the window lies.
    window, window_lse, _, index, score = ops.soft_argmax(corr, mask_b, beta, simple, 3.0, True)
    window_grads = ops.soft_argmax_backward(
        _wave((b, 2, ha, wa), 0.9, like).to(acc), _wave((b, ha, wa), 1.1, like).to(acc), corr, mask_b, beta, window,
        window_lse, simple, True, True, True, index, 3.0,
    )  # fmt: skip
    return [flow, lse, confidence, *grads, window, window_lse, index.to(acc), score, *window_grads]


def _correlation(ops: Any, like: Tensor, simple: bool, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    corr = ops.correlation(fa, fb, True, True, simple)
    grad = _wave(tuple(corr.shape), 0.9, like).to(like.dtype)
    gate = torch.ones_like(corr)  # a score of about 0 may pass or not: the two kernels get the same gate
    return [corr, *ops.correlation_backward(grad, fa, fb, gate, True, True, simple, True, True)]


def _local_correlation(ops: Any, like: Tensor, simple: bool, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb, radius = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    return [ops.local_correlation(fa, fb, None, radius, True, simple)]


# What is computed, and on which sizes: the first with odd tails, the others so that pipelines wrap, a block walks over
# several tiles, and rows are aligned and not, read by a warp and by a block.
PROBLEMS: dict[str, tuple[Callable[[Any, Tensor, bool, Size], list[Tensor]], tuple[Size, ...]]] = {
    "match": (_match, ((2, 72, 9, 17, 11, 13), (1, 136, 3, 5, 64, 80), (1, 3, 20, 20, 5, 7))),
    "match_both": (_match_both, ((2, 72, 9, 17, 11, 13), (1, 136, 64, 80, 3, 5), (1, 3, 20, 20, 5, 7))),
    "transfer": (_transfer, ((2, 72, 9, 17, 11, 13), (1, 136, 3, 5, 64, 80), (1, 3, 20, 20, 5, 7))),
    "soft_argmax": (_soft_argmax, ((2, 3, 5, 16, 17), (1, 2, 3, 33, 32), (1, 2, 3, 31, 35), (2, 3, 5, 13, 21))),
    "correlation": (_correlation, ((2, 72, 9, 17, 11, 13), (1, 40, 32, 32, 128, 128), (1, 4, 9, 17, 8, 16))),
    "local_correlation": (
        _local_correlation,
        ((2, 19, 9, 37, 7, 41, 4), (1, 8, 5, 33, 5, 33, 5), (1, 3, 4, 9, 5, 7, 1)),
    ),
}


# The largest |fast - simple| / (1 + max |simple|) that still is agreement.
TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-3, torch.float64: 1e-9}


def difference(op: str, like: Tensor, ops: Any = operators, sizes: tuple[Size, ...] | None = None) -> float:
    """The largest |fast - simple| / (1 + max |simple|) over the small problems, NaN where a kernel gives one; waits."""
    problem, all_sizes = PROBLEMS[op]
    largest = 0.0
    for size in sizes or all_sizes:
        # A tracer's modes would make these tensors fake, and autocast would change what is compared.
        with torch.no_grad(), _disable_current_modes(), torch._C.DisableTorchFunction(), without_autocast(like):
            pairs = list(zip(problem(ops, like, False, size), problem(ops, like, True, size), strict=True))
            for fast, simple in pairs:
                fast, simple = fast.double(), simple.double()
                found = float((fast - simple).abs().max() / (1 + simple.abs().max()))
                if not found <= TOLERANCES[like.dtype]:
                    return found  # one is enough, and max() would lose a NaN
                largest = max(largest, found)
    return largest


def agrees(op: str, like: Tensor, ops: Any = operators, sizes: tuple[Size, ...] | None = None) -> bool:
    """Whether the fast and the simple kernels give the same on the small problems; waits for the device."""
    return difference(op, like, ops, sizes) <= TOLERANCES[like.dtype]


@torch.compiler.assume_constant_result
def use_simple(op: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether operation `op` takes its simple kernels on tensors of this dtype and device."""
    if os.environ.get("COSEGFLOW_SIMPLE", "") not in ("", "0"):
        return True
    if device.type != "cuda":
        return False
    known = _agreed.get((op, dtype, device.index))  # the way of every call but the first
    if known is not None:
        return not known
    if not torch.cuda.is_available():  # fake tensors may be of a device that is not there
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:  # the fast paths need mma.m16n8k16 and cp.async
        return True
    if (op, f"sm_{major}{minor}") in VERIFIED:
        return False
    key = (op, dtype, index)
    if key not in _agreed:
        if torch.cuda.is_current_stream_capturing():
            return True
        _agreed[key] = agrees(op, torch.empty(0, dtype=dtype, device=torch.device("cuda", index)))
        if not _agreed[key]:
            warnings.warn(
                f"cosegflow: the fast CUDA kernels of {op} for {dtype} disagree with the simple ones on "
                f"{torch.cuda.get_device_name(index)}; the simple ones are used. Please report this.",
                RuntimeWarning,
                stacklevel=3,
            )
    return not _agreed[key]


def warmup(device: torch.device | str = "cuda") -> None:
    """Checks every fast path on `device` now, so that no later call waits and CUDA graphs may capture them.

    Raises:
        RuntimeError: `device` is no CUDA device, or there is none.
    """
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        raise RuntimeError(f"device must be a CUDA device that torch sees, got {device}: only CUDA has paths to check")
    for op in PROBLEMS:
        for dtype in TOLERANCES:
            use_simple(op, dtype, device)

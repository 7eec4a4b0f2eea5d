"""The fast paths against the simple kernels, as `cosegflow.warmup()` does it, with the differences. A child process."""

from collections.abc import Callable
from typing import Any

import torch

from cosegflow.ops import _trust

from .process import serve


def all_keys() -> list[str]:
    """One for each operation with a fast path and each dtype."""
    return [f"{op} {str(dtype).removeprefix('torch.')}" for op in _trust.PROBLEMS for dtype in _trust.TOLERANCES]


def check(key: str, device: torch.device, small: bool) -> dict[str, Any]:
    """The verdict of one operation and dtype; `small`: without the sizes that only a GPU computes in no time."""
    op, dtype_name = key.split()
    dtype = getattr(torch, dtype_name)
    sizes = tuple(s for s in _trust.PROBLEMS[op][1] if not small or s[-1] < 128)
    largest = _trust.difference(op, torch.empty(0, dtype=dtype, device=device), sizes=sizes)
    agrees = largest <= _trust.TOLERANCES[dtype]
    return {
        "status": "agrees" if agrees else "disagrees",
        "op": op,
        "dtype": dtype_name,
        "difference": f"{largest:.3g}",
        "tolerance": _trust.TOLERANCES[dtype],
    }


def prepare(request: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """The checks of a request: {'device': ..., 'small': ...}."""
    device = torch.device(request["device"])
    return lambda key: check(key, device, request["small"])


if __name__ == "__main__":
    serve(prepare)

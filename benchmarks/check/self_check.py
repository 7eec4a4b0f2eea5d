"""The fast paths against the simple kernels, as `cosegflow.warmup()` does it, with the differences. A child process."""

from collections.abc import Callable
from typing import Any

import torch

from cosegflow.ops import _self_check

from .process import serve


def all_keys(architecture: str | None) -> list[str]:
    """One for each path, dtype and precision of an operation: "match hopper float32 high"; None: what all have."""
    return [
        f"{op} {path} {_self_check.case_name(dtype, precision)}"
        for (op, path), cases in _self_check.CASES.items()
        for dtype, precision in cases
        if path == _self_check.PORTABLE
        or (architecture and _self_check.own_path(op, architecture, dtype, precision) == path)
    ]


def check(key: str, device: torch.device, small: bool) -> dict[str, Any]:
    """The verdict of one case; `small`: without the sizes that only a GPU computes in no time."""
    op, path, name = key.split(" ", 2)
    cases = {_self_check.case_name(*case): case for case in _self_check.CASES[op, path]}
    dtype, precision = cases[name]
    like = torch.empty(0, dtype=dtype, device=device)
    sizes = _self_check.sizes_of(op, path, small)
    largest = _self_check.difference(op, path, like, precision, sizes=sizes)
    tolerance = _self_check.TOLERANCES[dtype, precision]
    return {
        "status": "agrees" if largest <= tolerance else "disagrees",
        "op": op,
        "path": path,
        "case": name,
        "difference": f"{largest:.3g}",
        "tolerance": tolerance,
    }


def prepare(request: dict[str, Any]) -> Callable[[str], dict[str, Any]]:
    """The checks of a request: {'device': ..., 'small': ...}."""
    device = torch.device(request["device"])
    return lambda key: check(key, device, request["small"])


if __name__ == "__main__":
    serve(prepare)

"""What a work is: random inputs, a definition in float64, and what it has to move and compute."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..case import Case

Inputs = dict[str, Tensor]
"""Named tensors of one problem, on the device; those with requires_grad are differentiated."""

Function = Callable[[Inputs], Tensor]
"""A contestant at one case: from the inputs to the one output that is compared."""


class Exact(NamedTuple):
    """The truth in float64."""

    output: Tensor
    """The whole output, or, where that would take too long, the rows `rows` of its last but one dimension."""
    gradients: dict[str, Tensor]
    """Of <output, cotangent>, by the input's name; empty where `rows` is given."""
    rows: Tensor | None = None


class Cost(NamedTuple):
    """What any algorithm has to do: recomputation and temporary tensors are its own choice and are not counted."""

    bytes: float
    """Inputs read once, outputs written once."""
    flops: float
    """Of products, a multiply-add being two."""
    exps: float


def add(forward: Cost, backward: Cost, direction: str) -> Cost:
    """The cost of a direction."""
    if direction == "forward":
        return forward
    if direction == "backward":
        return backward
    return Cost(*(f + b for f, b in zip(forward, backward, strict=True)))


@dataclass(frozen=True)
class Work:
    """One operation of the registry."""

    name: str
    summary: str
    inputs: Callable[[Case, torch.device, int], Inputs]
    """Random tensors from a seed."""
    exact: Callable[[Case, Inputs, bool], Exact]
    """The truth, with its gradients where the last argument asks for them."""
    cost: Callable[[Case, str], Cost]
    """(case, direction)."""
    uses: frozenset[str]
    """The fields of a case that matter here, beyond batch, channels and the grids."""
    cases: dict[str, tuple[Case, ...]]
    """Named sets of sizes: 'quick' (tiny), 'cpu', 'gpu' (by priority), 'sweep' (for plots)."""

    def own(self, case: Case) -> Case:
        """The case with what this work does not use at its default, so that no row is labelled with it."""
        default = Case()
        spare = {f.name for f in fields(Case)} - {"batch", "channels", "a", "b"} - self.uses
        return replace(case, **{name: getattr(default, name) for name in spare})


def itemsize(case: Case) -> int:
    """Bytes of a feature."""
    return {"float64": 8, "float32": 4}.get(case.dtype, 2)


def dtype_of(case: Case) -> torch.dtype:
    """The torch dtype of the features."""
    found: torch.dtype = getattr(torch, case.dtype)
    return found


def cotangent(output: Tensor) -> Tensor:
    """A fixed gradient of the output: standard normal in its dtype, the same for every contestant of one shape."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(output.shape, generator=generator).to(output.device, output.dtype)

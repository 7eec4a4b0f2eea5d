"""cosegflow itself, through its public functions."""

from collections.abc import Callable

import torch
from torch import Tensor

import cosegflow
from cosegflow.ops import _trust
from cosegflow.ops._log import is_set

from ..case import Case
from ..works.base import Function, Inputs
from .base import Peer, Unavailable


def _match_both(case: Case, i: Inputs) -> Tensor:
    there, back = cosegflow.match_both(i["fa"], i["fb"], i.get("mask_a"), i.get("mask_b"), beta=case.beta)
    return torch.cat((there.flow.flatten(1), back.flow.flatten(1)), 1)


CALLS: dict[str, Callable[[Case, Inputs], Tensor]] = {
    "match": lambda c, i: cosegflow.match(i["fa"], i["fb"], i.get("mask_a"), i.get("mask_b"), beta=c.beta).flow,
    "warp": lambda c, i: cosegflow.warp(i["x"], i["flow"]),
    "correlation": lambda c, i: cosegflow.correlation(i["fa"], i["fb"], normalize=True),
    "soft_argmax": lambda c, i: cosegflow.soft_argmax(i["corr"], i.get("mask_b"), beta=c.beta).flow,
    "match_both": _match_both,
    "transfer": lambda c, i: cosegflow.transfer(
        i["fa"], i["fb"], i["values"], i.get("mask_a"), i.get("mask_b"), beta=c.beta
    ),
    "local_correlation": lambda c, i: cosegflow.local_correlation(i["fa"], i["fb"], c.radius),
    "lookup": lambda c, i: cosegflow.local_correlation(i["fa"], i["fb"], c.radius, i["flow"]),
    "cycle_error": lambda c, i: cosegflow.cycle_error(i["flow_ab"], i["flow_ba"])[0],
}


def version() -> str:
    """Of cosegflow; it tells which kernels ran in place of faster ones."""
    notes = [f"{kind} kernels: all" for kind in ("simple", "portable") if is_set(f"COSEGFLOW_{kind.upper()}")]
    distrusted = sorted({f"{op} {path}" for (op, path, *_), agreed in _trust._agreed.items() if not agreed})
    notes += [f"not: {', '.join(distrusted)}"] if distrusted else []
    return f"{cosegflow.__version__} ({'; '.join(notes)})" if notes else cosegflow.__version__


def _builder(work: str) -> Callable[[Case, torch.device], Function]:
    def build(case: Case, device: torch.device) -> Function:
        function = "local_correlation" if work == "lookup" else work
        if not hasattr(cosegflow, function):
            raise Unavailable(f"cosegflow {cosegflow.__version__} has no {function}")
        return lambda inputs: CALLS[work](case, inputs)

    return build


PEER = Peer(
    name="cosegflow",
    summary="this library",
    works={work: _builder(work) for work in CALLS},
    version=version,
)


def _two_calls(case: Case, device: torch.device) -> Function:
    def call(i: Inputs) -> Tensor:
        mask_a, mask_b = i.get("mask_a"), i.get("mask_b")
        there = cosegflow.match(i["fa"], i["fb"], mask_a, mask_b, beta=case.beta)
        back = cosegflow.match(i["fb"], i["fa"], mask_b, mask_a, beta=case.beta)
        return torch.cat((there.flow.flatten(1), back.flow.flatten(1)), 1)

    return call


TWO_CALLS = Peer(
    name="two-calls",
    summary="cosegflow.match, once in each direction",
    works={"match_both": _two_calls},
    version=version,
)

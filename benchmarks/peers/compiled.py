"""torch.compile(mode="max-autotune") of the eager forms, without CUDA graphs.

A CUDA graph's outputs are overwritten by the next call, and here several outputs and graphs live at once; none of the
contestants is timed within one. Slow to compile, so only with --peers all or by name.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..case import Case
from ..works.base import Function, Inputs
from . import inductor
from .base import Peer
from .eager import CALLS, torch_version


def _builder(work: str) -> Callable[[Case, torch.device], Function]:
    def build(case: Case, device: torch.device) -> Function:
        def call(inputs: Inputs) -> Tensor:
            return CALLS[work](case, inputs)

        inductor.prepare(call)  # type: ignore[arg-type]
        compiled = torch.compile(call, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
        return lambda inputs: compiled(inputs)

    return build


PEER = Peer(
    name="compile",
    summary='torch.compile(mode="max-autotune-no-cudagraphs") of the eager form',
    works={work: _builder(work) for work in CALLS},
    version=torch_version,
    default=False,
)

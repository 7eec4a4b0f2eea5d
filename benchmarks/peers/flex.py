"""FlexAttention, compiled, with coordinates as values and the log mask in the score.

Its head dimensions are powers of two; the features are padded. On the CPU it has no backward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Case
from ..works.base import Function, Inputs
from . import inductor
from .base import Peer, Unavailable
from .eager import log_mask, positions, rows, to_flow, torch_version


def _match(case: Case, device: torch.device) -> Function:
    if case.dtype == "float64":
        raise Unavailable("FlexAttention has no float64")
    from torch.nn.attention.flex_attention import flex_attention

    def attention(*args: Any, **kwargs: Any) -> Any:
        return flex_attention(*args, **kwargs)

    inductor.prepare(attention)  # type: ignore[arg-type]
    attend = torch.compile(attention, dynamic=False)
    width = max(16, 1 << (case.channels - 1).bit_length())

    def call(inputs: Inputs) -> Tensor:
        if device.type == "cpu" and torch.is_grad_enabled():
            raise Unavailable("FlexAttention has no backward on the CPU")
        q, k = (F.pad(rows(inputs[n]), (0, width - case.channels)).unsqueeze(1).contiguous() for n in ("fa", "fb"))
        values = F.pad(positions(*case.b, q), (0, (width if device.type == "cpu" else 16) - 2))
        v = values.expand(len(q), 1, -1, -1).contiguous()
        bias = log_mask(inputs, q).float()[:, 0]

        def add_log_mask(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + bias[b, j]

        out = attend(q, k, v, score_mod=add_log_mask if "mask_b" in inputs else None, scale=case.beta)
        return to_flow(out[:, 0, :, :2], case, inputs)

    return call


PEER = Peer(
    name="flex",
    summary="FlexAttention, compiled, with coordinates as values",
    works={"match": _match},
    version=torch_version,
    default=False,
)

"""scaled_dot_product_attention with coordinates as values, by a backend that does not store the volume.

CUDA: the memory-efficient backend, which takes values of another width than the keys (padded here to 8 columns for its
alignment) and a mask. CPU: the flash backend, which wants values as wide as the keys, so coordinates are padded to C.
Values are in the dtype of the features: half coordinates are rounded, which the error shows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..case import Case
from ..works.base import Function, Inputs
from .base import Peer
from .eager import log_mask, positions, rows, to_flow, torch_version


def _attend(case: Case, inputs: Inputs, values: Tensor, device: torch.device) -> Tensor:
    """(B, Na, V) from values (B, Nb, V)."""
    q, k = (rows(inputs[name]).unsqueeze(1).contiguous() for name in ("fa", "fb"))  # fused kernels want C last
    width = values.shape[-1]
    cuda = device.type == "cuda"
    padded = max(8, -(-width // 8) * 8) if cuda else max(width, q.shape[-1])
    v = F.pad(values, (0, padded - width)).unsqueeze(1).expand(len(q), -1, -1, -1)
    if not cuda and padded > q.shape[-1]:
        q, k = (F.pad(t, (0, padded - t.shape[-1])) for t in (q, k))
    bias = None
    if "mask_b" in inputs:
        bias = log_mask(inputs, q).unsqueeze(1)
        if cuda:  # rows must be aligned, as a slice of wider ones is; padded before it is expanded, so without a volume
            bias = F.pad(bias, (0, -k.shape[2] % 16))[..., : k.shape[2]]
        bias = bias.expand(len(q), 1, q.shape[2], k.shape[2])
    backend = SDPBackend.EFFICIENT_ATTENTION if cuda else SDPBackend.FLASH_ATTENTION
    with sdpa_kernel([backend]):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=case.beta)
    return out.squeeze(1)[..., :width]


def _match(case: Case, device: torch.device) -> Function:
    def call(inputs: Inputs) -> Tensor:
        values = positions(*case.b, inputs["fb"]).expand(case.batch, -1, -1)
        return to_flow(_attend(case, inputs, values, device), case, inputs)

    return call


def _transfer(case: Case, device: torch.device) -> Function:
    def call(inputs: Inputs) -> Tensor:
        out = _attend(case, inputs, inputs["values"].flatten(2).transpose(1, 2), device)
        out = out.transpose(1, 2).unflatten(2, case.a)
        return torch.where(inputs["mask_a"].unsqueeze(1) > 0, out, 0.0) if "mask_a" in inputs else out

    return call


PEER = Peer(
    name="sdpa",
    summary="scaled_dot_product_attention (memory-efficient; flash on the CPU) with coordinates as values",
    works={"match": _match, "transfer": _transfer},
    version=torch_version,
)

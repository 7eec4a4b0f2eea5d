"""Plain torch at its best: normalize, baddbmm with the log mask and beta fused in, softmax, matmul; grid_sample."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Case
from ..works.base import Function, Inputs
from ..works.sampling import local_correlation
from .base import Peer, Unavailable

MASKED = -3e4
"""A log weight whose exp is 0 next to any score, and twice of which float16 still holds."""


@lru_cache(maxsize=64)
def _positions(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack((x, y), -1).reshape(-1, 2).to(dtype)


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """(H*W, 2): x and y of each pixel, in the dtype and on the device of `like`; made once, as anyone would."""
    return _positions(height, width, like.dtype, like.device)


def rows(features: Tensor) -> Tensor:
    """(B, C, H, W) to unit vectors (B, H*W, C)."""
    return F.normalize(features, dim=1).flatten(2).transpose(1, 2)


def log_mask(inputs: Inputs, like: Tensor) -> Tensor:
    """(B or 1, 1, Nb): 0 where a target is allowed, -inf where not."""
    if "mask_b" not in inputs:
        return like.new_empty(1, 1, 1)  # `scores` does not read it
    return inputs["mask_b"].flatten(1).unsqueeze(1).log().to(like.dtype)


def to_flow(expected: Tensor, case: Case, inputs: Inputs) -> Tensor:
    """Expected positions (B, Na, 2) to the flow (B, 2, Ha, Wa), in float32 at least; 0 where a is masked."""
    expected = expected if expected.dtype == torch.float64 else expected.float()
    flow = (expected - positions(*case.a, expected)).transpose(1, 2).unflatten(2, case.a)
    return torch.where(inputs["mask_a"].unsqueeze(1) > 0, flow, 0.0) if "mask_a" in inputs else flow


def scores(bias: Tensor, a: Tensor, b: Tensor, case: Case) -> Tensor:
    """(B, Na, Nb): bias + beta a b^T, the bias left out where there is no mask: else a volume is filled first."""
    return torch.baddbmm(bias, a, b.transpose(1, 2), beta=int(case.foreground < 1), alpha=case.beta)


def probabilities(case: Case, inputs: Inputs) -> Tensor:
    """(B, Na, Nb)."""
    a, b = rows(inputs["fa"]), rows(inputs["fb"])
    return scores(log_mask(inputs, a), a, b, case).softmax(-1)


def match(case: Case, inputs: Inputs) -> Tensor:
    """The flow."""
    p = probabilities(case, inputs)
    return to_flow(p @ positions(*case.b, p).expand(len(p), -1, -1), case, inputs)


def match_both(case: Case, inputs: Inputs) -> Tensor:
    """Both flows, from one product.

    One bias serves both: what is added to a whole row does not change a softmax along it. So that a row or a column
    without any target stays finite (its flow is replaced by 0), the bias of what is masked is large, not infinite.
    """
    a, b = rows(inputs["fa"]), rows(inputs["fb"])
    turned = {"mask_b": inputs["mask_a"], "mask_a": inputs["mask_b"]} if "mask_a" in inputs else {}
    bias = log_mask(inputs, a).clamp(min=MASKED) + log_mask(turned, a).clamp(min=MASKED).transpose(1, 2)
    logits = scores(bias, a, b, case)
    there, back = logits.softmax(-1), logits.softmax(1).transpose(1, 2)
    flow_ab = to_flow(there @ positions(*case.b, a).expand(len(a), -1, -1), case, inputs)
    other = Case(a=case.b, b=case.a)
    flow_ba = to_flow(back @ positions(*case.a, a).expand(len(a), -1, -1), other, turned)
    return torch.cat((flow_ab.flatten(1), flow_ba.flatten(1)), 1)


def transfer(case: Case, inputs: Inputs) -> Tensor:
    """Values (B, V, Ha, Wa)."""
    out = torch.bmm(inputs["values"].flatten(2), probabilities(case, inputs).transpose(1, 2)).unflatten(2, case.a)
    return torch.where(inputs["mask_a"].unsqueeze(1) > 0, out, 0.0) if "mask_a" in inputs else out


def correlation(case: Case, inputs: Inputs) -> Tensor:
    """The volume."""
    return torch.bmm(rows(inputs["fa"]), rows(inputs["fb"]).transpose(1, 2)).unflatten(2, case.b).unflatten(1, case.a)


def soft_argmax(case: Case, inputs: Inputs) -> Tensor:
    """The flow."""
    corr = inputs["corr"].flatten(3).flatten(1, 2)
    bias = log_mask(inputs, corr)
    logits = torch.add(bias, corr, alpha=case.beta) if "mask_b" in inputs else corr * case.beta
    p = logits.softmax(-1)
    return to_flow(p @ positions(*case.b, p).expand(len(p), -1, -1), case, {})


def sample(x: Tensor, flow: Tensor) -> Tensor:
    """grid_sample, with the construction of its grid (from no list of numbers: on CUDA that waits for the host)."""
    height, width = x.shape[2:]
    dtype = torch.promote_types(flow.dtype, x.dtype)
    columns, lines = (torch.arange(n, device=flow.device, dtype=dtype) for n in (flow.shape[3], flow.shape[2]))
    across = (flow[:, 0] + columns) * (2 / max(width - 1, 1)) - 1
    down = (flow[:, 1] + lines.unsqueeze(1)) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack((across, down), -1).to(x.dtype)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


def warp(case: Case, inputs: Inputs) -> Tensor:
    """The image."""
    return sample(inputs["x"], inputs["flow"])


def local(case: Case, inputs: Inputs) -> Tensor:
    """One product per displacement, over shifted views of the padded target."""
    return local_correlation(inputs["fa"], inputs["fb"], case.radius)


def unfold(case: Case, inputs: Inputs) -> Tensor:
    """All displacements of the target at once, then a sum over channels: (2r+1)^2 copies of the target."""
    fa, fb, r = inputs["fa"], inputs["fb"], case.radius
    windows = F.unfold(fb, 2 * r + 1, padding=r).unflatten(1, (fb.shape[1], -1))
    return (fa.flatten(2).unsqueeze(2) * windows).sum(1).unflatten(2, case.a)


def lookup(case: Case, inputs: Inputs) -> Tensor:
    """RAFT's: all pairs by one product, then grid_sample of each source's plane of targets at the points of its window.

    The planes of halves are sampled in float32, as there: coordinates of halves are off by half a pixel.
    """
    fa, fb, side = inputs["fa"], inputs["fb"], 2 * case.radius + 1
    volume = torch.bmm(fa.flatten(2).transpose(1, 2), fb.flatten(2)).reshape(-1, 1, *case.b)
    volume = volume.float() if volume.dtype.itemsize == 2 else volume
    centres = positions(*case.a, volume) + inputs["flow"].flatten(2).transpose(1, 2).to(volume.dtype)
    points = centres.reshape(-1, 1, 1, 2) + positions(side, side, volume).reshape(1, side, side, 2) - case.radius
    scale = positions(*case.b, volume)[-1].clamp(min=1) / 2
    windows = F.grid_sample(volume, points / scale - 1, align_corners=True)
    out = windows.reshape(case.batch, -1, side * side).transpose(1, 2).unflatten(2, case.a)
    return out.to(fa.dtype)


def cycle_error(case: Case, inputs: Inputs) -> Tensor:
    """The error (B, Ha, Wa); 0 where the path leaves the image."""
    flow_ab, flow_ba = inputs["flow_ab"], inputs["flow_ba"]
    at = positions(*case.a, flow_ab).T.unflatten(1, case.a) + flow_ab
    inside = (at[:, 0] >= 0) & (at[:, 0] <= case.b[1] - 1) & (at[:, 1] >= 0) & (at[:, 1] <= case.b[0] - 1)
    return torch.where(inside, (flow_ab + sample(flow_ba, flow_ab)).norm(dim=1), 0.0)


Call = Callable[[Case, Inputs], Tensor]
CALLS: dict[str, Call] = {
    "match": match,
    "warp": warp,
    "correlation": correlation,
    "soft_argmax": soft_argmax,
    "match_both": match_both,
    "transfer": transfer,
    "local_correlation": local,
    "lookup": lookup,
    "cycle_error": cycle_error,
}


def builder(call: Call) -> Callable[[Case, torch.device], Function]:
    """A builder that can do every case."""

    def build(case: Case, device: torch.device) -> Function:
        return lambda inputs: call(case, inputs)

    return build


def torch_version() -> str:
    """Of the package that does the work."""
    return str(torch.__version__)


def _peer(name: str, summary: str, calls: dict[str, Call], **more: Any) -> Peer:
    return Peer(name, summary, {work: builder(call) for work, call in calls.items()}, torch_version, **more)


PEER = _peer("eager", "plain torch in its best form, which stores the volume; grid_sample", CALLS)


def _build_unfold(case: Case, device: torch.device) -> Function:
    if case.a != case.b:
        raise Unavailable(f"F.unfold gives a window per pixel of b ({case.b}), not of a ({case.a})")
    return builder(unfold)(case, device)


UNFOLD = Peer("unfold", "plain torch by F.unfold", {"local_correlation": _build_unfold}, torch_version)

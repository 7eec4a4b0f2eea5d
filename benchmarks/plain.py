"""The operations of the joint layer in plain torch at its best, with the signatures of cosegflow's own.

One product by `baddbmm` with the log weights and beta fused in, softmax, a product with the positions; grid_sample. The
log-sum-exp comes from the largest logit and its probability, which the confidence needs anyway: faster, forward and
backward, than `logsumexp`. What torch cannot select it replaces afterwards: excluded features have to be finite.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import cosegflow
from cosegflow.types import CycleError, Matches

from .peers.eager import MASKED, positions, sample

NAMES = ("match", "match_both", "warp", "correlation", "cycle_error")
"""What `instead_of_ours` replaces."""


def _rows(features: Tensor, normalize: bool) -> Tensor:
    """(B, C, H, W) to (B, H*W, C)."""
    return (F.normalize(features, dim=1) if normalize else features).flatten(2).transpose(1, 2)


def _log_weight(mask: Tensor, like: Tensor) -> Tensor:
    """(B, H*W), large and negative where the mask is 0."""
    weight = mask.flatten(1).to(like.dtype)
    open_ = weight > 0
    return torch.where(open_, torch.where(open_, weight, 1.0).log(), MASKED)  # the logarithm has no derivative at 0


def _expect(logits: Tensor, size_a: torch.Size, size_b: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
    """Flow, log-sum-exp and confidence of logits (B, Na, Nb)."""
    p = logits.softmax(-1)
    there, here = positions(size_b[0], size_b[1], p), positions(size_a[0], size_a[1], p)
    flow = (p @ there.expand(len(p), -1, -1) - here).transpose(1, 2)
    top, index = logits.max(-1, keepdim=True)
    peak = p.gather(-1, index)
    lse = (top - peak.log()).squeeze(-1)
    return flow.unflatten(2, size_a), lse.unflatten(1, size_a), peak.detach().squeeze(-1).unflatten(1, size_a)


def _gated(found: tuple[Tensor, Tensor, Tensor], mask: Tensor | None) -> Matches:
    if mask is None:
        return Matches(*found)
    open_ = mask > 0
    flow, lse, confidence = found
    return Matches(
        torch.where(open_.unsqueeze(1), flow, 0.0),
        torch.where(open_, lse, -torch.inf),
        torch.where(open_, confidence, 0.0),
    )


def _logits(fa: Tensor, fb: Tensor, bias: Tensor | None, beta: float, normalize: bool) -> Tensor:
    a, b = _rows(fa, normalize), _rows(fb, normalize).transpose(1, 2)
    # The bias is left out where there is no mask: else a volume is filled first.
    given = a.new_empty(1, 1, 1) if bias is None else bias
    return torch.baddbmm(given, a, b, beta=int(bias is not None), alpha=beta)


def match(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float = 50.0,
    normalize: bool = True,
    kernel_sigma: None = None,
) -> Matches:
    """`cosegflow.match`, without the kernel."""
    bias = None if mask_b is None else _log_weight(mask_b, fa).unsqueeze(1)
    logits = _logits(fa, fb, bias, beta, normalize)
    return _gated(_expect(logits, fa.shape[2:], fb.shape[2:]), mask_a)


def match_both(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None = None,
    mask_b: Tensor | None = None,
    *,
    beta: float = 50.0,
    normalize: bool = True,
    kernel_sigma: None = None,
) -> tuple[Matches, Matches]:
    """`cosegflow.match_both`, without the kernel; one product.

    One bias serves both: what is added to a whole row does not change a softmax along it, only its log-sum-exp.
    """
    if mask_a is None or mask_b is None:
        logits = _logits(fa, fb, None, beta, normalize)
        there, back = _expect(logits, fa.shape[2:], fb.shape[2:]), _expect(logits.mT, fb.shape[2:], fa.shape[2:])
        return Matches(*there), Matches(*back)
    log_a, log_b = _log_weight(mask_a, fa), _log_weight(mask_b, fa)
    logits = _logits(fa, fb, log_a.unsqueeze(2) + log_b.unsqueeze(1), beta, normalize)
    found = []
    for x, size, other, log_near, near in (
        (logits, fa.shape[2:], fb.shape[2:], log_a, mask_a), (logits.mT, fb.shape[2:], fa.shape[2:], log_b, mask_b),
    ):  # fmt: skip
        flow, lse, confidence = _expect(x, size, other)
        found.append(_gated((flow, lse - log_near.unflatten(1, size), confidence), near))
    return found[0], found[1]


def correlation(fa: Tensor, fb: Tensor, *, normalize: bool = False, relu: bool = False) -> Tensor:
    """`cosegflow.correlation`."""
    volume = torch.bmm(_rows(fa, normalize), _rows(fb, normalize).transpose(1, 2))
    volume = volume.unflatten(2, fb.shape[2:]).unflatten(1, fa.shape[2:])
    return volume.relu() if relu else volume


def _grid(flow: Tensor) -> Tensor:
    """(2, H, W): x and y of each pixel."""
    height, width = flow.shape[2:]
    return positions(height, width, flow).T.unflatten(1, (height, width))


def _inside(flow: Tensor, size: torch.Size) -> Tensor:
    at = _grid(flow) + flow
    return (at[:, 0] >= 0) & (at[:, 0] <= size[1] - 1) & (at[:, 1] >= 0) & (at[:, 1] <= size[0] - 1)


def _clamped(flow: Tensor, size: torch.Size) -> Tensor:
    """The flow to the nearest pixel of the image: padding by its border."""
    grid = _grid(flow)
    at = grid + flow
    return torch.stack((at[:, 0].clamp(0, size[1] - 1), at[:, 1].clamp(0, size[0] - 1)), 1) - grid


def warp(x: Tensor, flow: Tensor, *, padding: str = "zeros", return_valid: bool = False) -> Any:
    """`cosegflow.warp`, bilinear."""
    out = sample(x, _clamped(flow, x.shape[2:]) if padding == "border" else flow)
    return (out, _inside(flow, x.shape[2:])) if return_valid else out


def cycle_error(flow_ab: Tensor, flow_ba: Tensor) -> CycleError:
    """`cosegflow.cycle_error`."""
    valid = _inside(flow_ab, flow_ba.shape[2:])
    # The length has no derivative at 0.
    length = (flow_ab + sample(flow_ba, flow_ab)).square().sum(1).clamp(min=1e-30).sqrt()
    return CycleError(torch.where(valid, length, 0.0), valid)


@contextmanager
def instead_of_ours() -> Iterator[None]:
    """Within it, code that calls cosegflow.match and the others of `NAMES` as attributes gets these functions."""
    kept = {name: getattr(cosegflow, name) for name in NAMES}
    try:
        for name in NAMES:
            setattr(cosegflow, name, globals()[name])
        yield
    finally:
        for name, function in kept.items():
            setattr(cosegflow, name, function)

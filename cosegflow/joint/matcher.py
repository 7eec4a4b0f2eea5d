"""The dense matcher: descriptors on a grid, matched in both directions from one product, gated by masks."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cosegflow

Pyramid = tuple[Tensor, Tensor, Tensor]
"""Features at strides 4, 8 and 16."""

Describe = Callable[[Tensor, Pyramid], tuple[Tensor, Tensor]]
"""A photograph (B, 3, H, W) and the other one's pyramid to the descriptors of both."""


def spatial_size(values: Tensor) -> tuple[int, int]:
    """H and W of (..., H, W)."""
    return values.shape[-2], values.shape[-1]


def score_along(near: Tensor, far: Tensor, flow: Tensor) -> Tensor:
    """<f(p), g(p + flow(p))>, (B, H, W): how well features (B, C, H, W) fit those where the flow points."""
    return (near * cosegflow.warp(far, flow)).sum(1)


class Adapter(nn.Module):
    """Turns a feature pyramid into descriptors of unit length on the grid of stride 8 (or 4).

    The levels (upsampled to the grid) are normalised, weighted and concatenated, stride 16 with 1, stride 8 with 1/2,
    stride 4, which only a grid of stride 4 has, with 1/4; a residual bottleneck, zero at the start, adapts them.
    Before training this is the plain pretrained descriptor.
    """

    def __init__(
        self, channels: tuple[int, int, int], width: int = 96, fine_weight: float = 0.5, stride: int = 8
    ) -> None:
        super().__init__()
        self.stride = stride
        total = sum(channels) if stride == 4 else channels[1] + channels[2]
        self.fine_weight = fine_weight
        self.down = nn.Conv2d(total, width, 1)
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.up = nn.Conv2d(width, total, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def hypercolumn(self, pyramid: Pyramid) -> Tensor:
        """(B, C, H/stride, W/stride), before adaptation; C = C8 + C16, or C4 + C8 + C16 with a stride of 4."""
        levels = pyramid[::-1] if self.stride == 4 else pyramid[:0:-1]
        size = levels[-1].shape[-2:]
        parts = []
        for power, level in enumerate(levels):
            if level.shape[-2:] != size:
                level = F.interpolate(level, size=size, mode="bilinear", align_corners=False)
            parts.append(self.fine_weight**power * F.normalize(level, dim=1))
        return torch.cat(parts, 1)

    def forward(self, pyramid_a: Pyramid, pyramid_b: Pyramid) -> tuple[Tensor, Tensor]:
        """Descriptors of a and b on their grids, (B, C, Ha/s, Wa/s) and (B, C, Hb/s, Wb/s), unit length over C.

        The pair's common mean is subtracted: what all positions share tells none apart.
        """
        a, b = self.hypercolumn(pyramid_a), self.hypercolumn(pyramid_b)
        count = a[0, 0].numel() + b[0, 0].numel()
        mean = ((a.sum((2, 3)) + b.sum((2, 3))) / count)[..., None, None]
        return self._adapt(a - mean), self._adapt(b - mean)

    def _adapt(self, x: Tensor) -> Tensor:
        x = F.normalize(x, dim=1)
        return F.normalize(x + self.up(F.gelu(self.mix(F.gelu(self.down(x))))), dim=1)


class Gate(NamedTuple):
    """What the masks let through to the matching."""

    source: Tensor
    """(B, H, W) bool: positions that are matched."""
    target: Tensor
    """(B, H, W) weights >= 0: positions that may be matched; the mask, with its small values set to exactly 0."""


def gate_mask(mask: Tensor, source_threshold: float = 0.5, target_threshold: float = 0.05) -> Gate:
    """mask (B, H, W) in [0, 1] to a `Gate`: (M >= 0.5) and where(M >= 0.05, M, 0).

    A sigmoid is never exactly 0, so only these thresholds let masks save work. An image in which either would be empty
    gets no gate: all sources, all targets with weight 1.
    """
    source = mask >= source_threshold
    target = torch.where(mask >= target_threshold, mask, torch.zeros_like(mask))
    usable = source.flatten(1).any(1)[:, None, None]
    return Gate(source | ~usable, torch.where(usable, target, torch.ones_like(mask)))


class Matching(NamedTuple):
    """One direction."""

    flow: Tensor
    """(B, 2, H, W), pixels of the grid."""
    confidence: Tensor
    """(B, H, W)."""
    similarity: Tensor
    """(B, H, W): lse / beta, a soft maximum of the cosine; differentiable."""
    affine_flow: Tensor | None = None
    """(B, 2, H, W): the flow of the parametric matcher's first stage; None: the matcher has one stage."""


class Frozen(NamedTuple):
    """What training does not change of a photograph's features; no gradient."""

    fine: Tensor
    """(B, C8 + C16, H/8, W/8): the unit-length features of strides 8 and 16."""
    last: Tensor
    """(B, c, H/16, W/16), the last features before they are pooled."""


class Encoded(NamedTuple):
    """Two photographs and what is known of them before they are matched."""

    image_a: Tensor
    """(B, 3, Ha, Wa) in [0, 1]."""
    image_b: Tensor
    pyramid_a: Pyramid
    pyramid_b: Pyramid
    features_a: Tensor
    """(B, C, Ha/s, Wa/s), unit length over C."""
    features_b: Tensor
    frozen_a: Frozen
    frozen_b: Frozen


def _matching(found: cosegflow.Matches, beta: float | Tensor) -> Matching:
    similarity = torch.where(torch.isfinite(found.lse), found.lse, torch.zeros_like(found.lse)) / beta
    return Matching(found.flow, found.confidence, similarity)


def _keep(found: Matching, gate: Gate | None, fallback: Matching | None) -> Matching:
    """`found` at the gate's sources, `fallback` elsewhere."""
    if gate is None or fallback is None:
        return found
    return Matching(
        torch.where(gate.source.unsqueeze(1), found.flow, fallback.flow),
        torch.where(gate.source, found.confidence, fallback.confidence),
        torch.where(gate.source, found.similarity, fallback.similarity),
    )


def match_gated(
    features_a: Tensor,
    features_b: Tensor,
    gate_a: Gate | None,
    gate_b: Gate | None,
    beta: float | Tensor,
    fallback: Matching | None = None,
    kernel_sigma: float | None = None,
) -> Matching:
    """Matches a to b, where the gates are open; sources outside gate_a keep `fallback` (or flow 0).

    Args:
        features_a, features_b: (B, C, H, W).
        gate_a, gate_b: None is no gate. Gradients flow through gate_b's weights.
        beta: inverse temperature; a 0-dim tensor may train.
        fallback: an ungated matching of the same pair.
        kernel_sigma: None, or the standard deviation of SFNet's kernel soft argmax, in cells (see `cosegflow.match`).
    """
    found = cosegflow.match(
        features_a,
        features_b,
        None if gate_a is None else gate_a.source,
        None if gate_b is None else gate_b.target,
        beta=beta,
        kernel_sigma=kernel_sigma,
    )
    return _keep(_matching(found, beta), gate_a, fallback)


def match_both_gated(
    features_a: Tensor,
    features_b: Tensor,
    gate_a: Gate | None,
    gate_b: Gate | None,
    beta: float | Tensor,
    fallback: tuple[Matching, Matching] | None = None,
    kernel_sigma: float | None = None,
) -> tuple[Matching, Matching]:
    """`match_gated` from a to b and from b to a, from one product.

    A mask of `cosegflow.match_both` both gates sources and weighs targets. It gets the weights of the targets; of the
    sources that these let through, those that the gate closes keep `fallback` (or flow 0) afterwards.

    Args:
        features_a, features_b: (B, C, H, W).
        gate_a, gate_b: both, or neither: None is no gate. Gradients flow through the weights.
        beta, kernel_sigma: as in `match_gated`.
        fallback: an ungated matching of the same pair, both directions.
    """
    weights = [None if gate is None else gate.target for gate in (gate_a, gate_b)]
    both = cosegflow.match_both(features_a, features_b, weights[0], weights[1], beta=beta, kernel_sigma=kernel_sigma)
    kept = []
    for direction, (found, gate) in enumerate(zip(both, (gate_a, gate_b), strict=True)):
        matching = _matching(found, beta)
        if gate is not None:
            nothing = Matching(*(torch.zeros_like(values) for values in matching[:3]))
            matching = _keep(matching, gate, nothing if fallback is None else fallback[direction])
        kept.append(matching)
    return kept[0], kept[1]


class DenseMatcher(nn.Module):
    """The mask-aware soft argmax; it has no parameters of its own.

    Args:
        beta: inverse temperature.
        kernel_sigma: as in `match_gated`.
    """

    def __init__(self, beta: float, kernel_sigma: float | None = None) -> None:
        super().__init__()
        self.beta = beta
        self.kernel_sigma = kernel_sigma

    def forward(
        self,
        pair: Encoded,
        describe: Describe,
        gate_a: Gate | None = None,
        gate_b: Gate | None = None,
        free: tuple[Matching, Matching] | None = None,
    ) -> tuple[Matching, Matching]:
        """Both directions; sources that the gates close keep `free`, the ungated matching."""
        return match_both_gated(pair.features_a, pair.features_b, gate_a, gate_b, self.beta, free, self.kernel_sigma)

"""The dense matcher: descriptors on a stride-8 grid, and matches gated by masks."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cosegflow


class Adapter(nn.Module):
    """Turns a feature pyramid into descriptors of unit length on the stride-8 grid.

    Stride-16 features (upsampled) and stride-8 features are normalised, weighted and concatenated; a residual
    bottleneck, zero at the start, adapts them. Before training this is the plain pretrained descriptor.
    """

    def __init__(self, channels: tuple[int, int, int], width: int = 96, fine_weight: float = 0.5) -> None:
        super().__init__()
        total = channels[1] + channels[2]
        self.fine_weight = fine_weight
        self.down = nn.Conv2d(total, width, 1)
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.up = nn.Conv2d(width, total, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)  # type: ignore[arg-type]

    def hypercolumn(self, pyramid: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """(B, C8 + C16, H/8, W/8), before adaptation."""
        fine = F.normalize(pyramid[1], dim=1)
        coarse = F.interpolate(pyramid[2], size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat((F.normalize(coarse, dim=1), self.fine_weight * fine), 1)

    def forward(
        self, pyramid_a: tuple[Tensor, Tensor, Tensor], pyramid_b: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Descriptors of a and b, (B, C, Ha/8, Wa/8) and (B, C, Hb/8, Wb/8), unit length over C.

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


def match_gated(
    features_a: Tensor,
    features_b: Tensor,
    gate_a: Gate | None,
    gate_b: Gate | None,
    beta: float | Tensor,
    fallback: Matching | None = None,
) -> Matching:
    """Matches a to b, where the gates are open; sources outside gate_a keep `fallback` (or flow 0).

    Args:
        features_a, features_b: (B, C, H, W).
        gate_a, gate_b: None is no gate. Gradients flow through gate_b's weights.
        beta: inverse temperature; a 0-dim tensor may train.
        fallback: an ungated matching of the same pair.
    """
    found = cosegflow.match(
        features_a,
        features_b,
        None if gate_a is None else gate_a.source,
        None if gate_b is None else gate_b.target,
        beta=beta,
    )
    similarity = torch.where(torch.isfinite(found.lse), found.lse, torch.zeros_like(found.lse)) / beta
    if gate_a is None or fallback is None:
        return Matching(found.flow, found.confidence, similarity)
    open_ = gate_a.source
    return Matching(
        torch.where(open_.unsqueeze(1), found.flow, fallback.flow),
        torch.where(open_, found.confidence, fallback.confidence),
        torch.where(open_, similarity, fallback.similarity),
    )

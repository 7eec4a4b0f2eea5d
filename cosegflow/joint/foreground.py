"""Which pixels of a pair show the common object, without training: three cues that need no correspondence.

1. *Energy*: the norm of the backbone's last features. A network trained to name objects answers to objects.
2. *Prototype*: the likeness to the pair's average of what has energy; what both photographs are about.
3. *Discriminant*: Fisher's linear discriminant (Fisher 1936) between what the cues above, and the matching, call
   foreground and the rest, fitted to both photographs at once on finer features, in closed form; fitted twice, the
   second time to its own first answer. One linear rule for two photographs: that is co-segmentation, and it follows
   the object's outline better than the coarse features that it learns from.

All cues are on the scale of one standard deviation over the pair; energy and prototype have a mean near 0, the
discriminant is 0 where the foreground begins. Ours; no gradient flows through them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cosegflow.joint.losses import match_level
from cosegflow.joint.matcher import score_along
from cosegflow.joint.standardise import standardise

LEVEL = 0.6
"""Where between the cue's background and its best the foreground begins; see `match_level`."""
SHARPNESS = 3.0
"""Of the sigmoid around that level, in standard deviations."""
MOST_TRUST = 4.0
SHRINKAGE = 0.1
"""Added to the diagonal of the covariance, in parts of its mean."""


class Evidence(NamedTuple):
    """How far the matching is evidence of the object."""

    weight: float
    """Beside energy and prototype, times `_trust`."""
    spread: float
    """The usual distance from the median of the evidence to its 98 % quantile."""


ALONG_FLOW = Evidence(0.7, 0.4)
"""The scores along a smooth flow."""
BEST_MATCH = Evidence(0.5, 0.25)
"""The best match of each position wherever it is."""


class Foreground(NamedTuple):
    """The cues of one photograph on the grid of its stride-8 features; float32."""

    cues: Tensor
    """(B, 3, h, w): energy, prototype, discriminant."""
    soft: Tensor
    """(B, h, w) in (0, 1): the discriminant as a mask."""


def _over_both(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat((a.flatten(1), b.flatten(1)), 1)


def _smooth(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Means over 3 x 3."""
    means = [F.avg_pool2d(x.float().unsqueeze(1), 3, 1, 1, count_include_pad=False).squeeze(1) for x in (a, b)]
    return means[0], means[1]


def _above_level(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both minus the level at which the foreground begins."""
    level = match_level(_over_both(a, b), LEVEL)[:, None, None]
    return a - level, b - level


def _soften(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = _above_level(a, b)
    return torch.sigmoid(SHARPNESS * a), torch.sigmoid(SHARPNESS * b)


def _trust(evidence: tuple[Tensor, Tensor], spread: float) -> Tensor:
    """How far the matching is evidence of the object, (B, 1, 1): ((q98 - q50) / spread)^4, at most 4.

    One thing seen twice stands out from backgrounds that differ; of two things of a kind only parts do, and road
    matches road as well as wheels match wheels.
    """
    quantiles = torch.tensor((0.5, 0.98), device=evidence[0].device)
    ends = torch.quantile(_over_both(*evidence), quantiles, dim=1)
    return ((ends[1] - ends[0]) / spread).pow(4).clamp(max=MOST_TRUST)[:, None, None]


@torch.no_grad()
def scores_along(a: Tensor, b: Tensor, flow_ab: Tensor, flow_ba: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of a(p) and b(p + flow(p)), and the other way round, after the pair's mean is taken off; float32.

    Args:
        a, b: (B, C, H, W) and (B, C, H', W').
        flow_ab, flow_ba: (B, 2, h, w) and (B, 2, h', w'), cells of grids of their own, to which a and b are resized.
    """
    grids = flow_ab.shape[-2:], flow_ba.shape[-2:]
    mean = (a.float().mean((2, 3), keepdim=True) + b.float().mean((2, 3), keepdim=True)) / 2
    sides = [
        F.normalize(F.interpolate(x.float() - mean, size=grid, mode="bilinear", align_corners=False), dim=1)
        for x, grid in zip((a, b), grids, strict=True)
    ]
    return score_along(sides[0], sides[1], flow_ab), score_along(sides[1], sides[0], flow_ba)


def _prototype(a: Tensor, b: Tensor, weight_a: Tensor, weight_b: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine with the weighted mean over both, after the pair's mean is taken off."""
    both = torch.cat((a.flatten(2), b.flatten(2)), 2)
    both = F.normalize(both - both.mean(2, keepdim=True), dim=1)
    weight = torch.cat((weight_a.flatten(1), weight_b.flatten(1)), 1)
    prototype = F.normalize((both * weight[:, None]).sum(2), dim=1)
    likeness = torch.einsum("bcn,bc->bn", both, prototype)
    count = weight_a[0].numel()
    return likeness[:, :count].view_as(weight_a), likeness[:, count:].view_as(weight_b)


def discriminant(a: Tensor, b: Tensor, weight_a: Tensor, weight_b: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher's linear discriminant between the weighted positions and the others, of both photographs at once.

    w = (C + s I)^-1 (m_1 - m_0) with C the covariance of what the two weighted means leave over: that within the two
    classes where weights are 0 or 1.

    Args:
        a, b: (B, C, Ha, Wa) and (B, C, Hb, Wb).
        weight_a, weight_b: (B, Ha, Wa) and (B, Hb, Wb) in [0, 1], how much a position belongs to the first class.

    Returns:
        The projections (B, Ha, Wa) and (B, Hb, Wb), larger for the first class.
    """
    both = torch.cat((a.flatten(2), b.flatten(2)), 2).transpose(1, 2)
    weight = _over_both(weight_a, weight_b)[..., None]
    one = (both * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp(min=1e-6)
    zero = (both * (1 - weight)).sum(1, keepdim=True) / (1 - weight).sum(1, keepdim=True).clamp(min=1e-6)
    centred = both - weight * one - (1 - weight) * zero
    covariance = centred.transpose(1, 2) @ centred / both.shape[1]
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    diagonal += SHRINKAGE * diagonal.mean(1, keepdim=True) + 1e-8  # a view: adds to the covariance
    # Not `linalg.solve`: the batched LU of torch 2.13's CPU build fails with more than one thread.
    factor = torch.linalg.cholesky_ex(covariance).L
    direction = torch.cholesky_solve((one - zero).transpose(1, 2), factor)
    projected = (both @ direction)[..., 0]
    count = weight_a[0].numel()
    return projected[:, :count].view_as(weight_a), projected[:, count:].view_as(weight_b)


@torch.no_grad()
def common_foreground(
    semantic: tuple[Tensor, Tensor],
    fine: tuple[Tensor, Tensor],
    evidence: tuple[Tensor, Tensor],
    kind: Evidence,
) -> tuple[Foreground, Foreground]:
    """The cues of both photographs of a pair.

    Args:
        semantic: (B, c, h', w') each, the backbone's last features.
        fine: (B, C, h, w) each, the features of the discriminant; h, w is the grid of the cues.
        evidence: (B, H, W) each, any grid: how well each position matches the other photograph, cosines.
        kind: what the evidence is.
    """
    with torch.autocast(fine[0].device.type, enabled=False):
        return _common_foreground(semantic, fine, evidence, kind)


def _common_foreground(
    semantic: tuple[Tensor, Tensor], fine: tuple[Tensor, Tensor], evidence: tuple[Tensor, Tensor], kind: Evidence
) -> tuple[Foreground, Foreground]:
    sem = [x.float() for x in semantic]
    feats = [x.float() for x in fine]
    norms = [x.square().sum(1).sqrt() for x in sem]
    energy = standardise(norms[0], norms[1])
    likeness = standardise(*_prototype(sem[0], sem[1], torch.sigmoid(2 * energy[0]), torch.sigmoid(2 * energy[1])))

    def on_grid(values: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        grown = [
            F.interpolate(v.unsqueeze(1), size=x.shape[-2:], mode="bilinear", align_corners=False).squeeze(1)
            for v, x in zip(values, feats, strict=True)
        ]
        return grown[0], grown[1]

    energy, likeness = on_grid(energy), on_grid(likeness)
    score = standardise(energy[0] + likeness[0], energy[1] + likeness[1])
    smooth = _smooth(*evidence)
    share = kind.weight * _trust(smooth, kind.spread)
    matched = standardise(*on_grid(smooth))
    score = standardise(score[0] + share * matched[0], score[1] + share * matched[1])
    weight = _soften(*score)
    found = standardise(*discriminant(feats[0], feats[1], *weight))
    weight = _soften(found[0] + score[0], found[1] + score[1])
    found = _above_level(*standardise(*discriminant(feats[0], feats[1], *weight)))
    sides = [
        Foreground(torch.stack((energy[i], likeness[i], found[i]), 1), torch.sigmoid(SHARPNESS * found[i]))
        for i in (0, 1)
    ]
    return sides[0], sides[1]

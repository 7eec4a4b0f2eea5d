"""The parametric matcher of the paper: an affine map, then a thin-plate spline, regressed from the correlation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cosegflow
from cosegflow.joint.matcher import Describe, Encoded, Gate, Matching, score_along, spatial_size
from cosegflow.joint.tps import IDENTITY, ThinPlate, apply_affine, grid_points, to_flow

SIDE = 15
"""Cells per side of the grid that is correlated: a photograph of 240 x 240 pixels at stride 16."""
NORM_EPS = 1e-6

Size = tuple[int, int]


def correlation_volume(
    moving: Tensor, fixed: Tensor, weight_moving: Tensor | None = None, weight_fixed: Tensor | None = None
) -> Tensor:
    """(B, Hm * Wm, Hf, Wf): at each position of `fixed`, its similarity with every position of `moving`.

    The paper's S: cosine, ReLU, then x / sqrt(sum x^2 + 1e-6) over the positions of `moving` (section 1). Weights
    multiply the similarity before that, so that a closed position correlates with nothing.

    Args:
        moving, fixed: (B, C, Hm, Wm) and (B, C, Hf, Wf).
        weight_moving, weight_fixed: (B, Hm, Wm) and (B, Hf, Wf) >= 0; None: 1. Gradients reach both.
    """
    volume = cosegflow.correlation(fixed, moving, normalize=True, relu=True)  # (B, Hf, Wf, Hm, Wm)
    volume = volume.flatten(3).permute(0, 3, 1, 2)
    if weight_moving is not None:
        volume = volume * weight_moving.flatten(1)[:, :, None, None]
    if weight_fixed is not None:
        volume = volume * weight_fixed.unsqueeze(1)
    return volume * torch.rsqrt(volume.square().sum(1, keepdim=True) + NORM_EPS)


def to_side(values: Tensor, side: int = SIDE) -> Tensor:
    """(B, C, H, W) or (B, H, W) averaged onto side x side cells."""
    if values.dim() == 3:
        return F.adaptive_avg_pool2d(values.unsqueeze(1), side).squeeze(1)
    return F.adaptive_avg_pool2d(values, side)


class Regressor(nn.Module):
    """A correlation volume (B, 225, 15, 15) to the parameters of a transformation; starts at `start`.

    conv(225 -> 128, k7) BN ReLU, conv(128 -> 64, k5) BN ReLU, linear(64 * 5 * 5 -> n) (section 1).
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(SIDE * SIDE, 128, 7),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 64, 5),
            nn.BatchNorm2d(64),
            nn.ReLU(),
        )
        self.linear = nn.Linear(64 * (SIDE - 10) ** 2, len(start))
        nn.init.zeros_(self.linear.weight)
        with torch.no_grad():
            self.linear.bias.copy_(start)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, n), float32 also under autocast: half would round coordinates."""
        found = self.layers(volume).flatten(1)
        with torch.autocast(volume.device.type, enabled=False):
            return self.linear(found.float())


class ParametricMatcher(nn.Module):
    """Affine, then thin-plate spline: a point goes p -> TPS -> affine (section 1).

    For the match from a to b, b is the moving photograph: the first regressor sees the correlation of b with a, and the
    second that of b, warped by the affine map into a's frame, with a. As in the paper it is the photograph that is
    warped, and described again. The descriptors are averaged onto 15 x 15 cells, whatever the size of the photographs;
    the flow is evaluated on the descriptors' grid. Both directions share the regressors.

    Args:
        beta: inverse temperature of `Matching.similarity`, the soft maximum of the cosine over the 15 x 15 cells.
        regularisation: of the spline, in training.
    """

    def __init__(self, beta: float, regularisation: float = 0.2) -> None:
        super().__init__()
        self.beta = beta
        self.plate = ThinPlate(3, regularisation)
        self.affine = Regressor(torch.tensor(IDENTITY))
        self.bend = Regressor(self.plate.identity())

    def flows(self, affine: Tensor, bend: Tensor | None, size_a: Size, size_b: Size) -> Tensor:
        """The flow (B, 2, *size_a) in pixels of `size_b` of p -> TPS -> affine; without `bend` of the affine alone."""
        with torch.autocast(affine.device.type, enabled=False):
            points = grid_points(size_a, affine)
            if bend is not None:
                points = self.plate(bend, points)
            return to_flow(apply_affine(affine, points), size_a, size_b)

    def _transform(
        self, pair: Encoded, describe: Describe, gate_a: Gate | None, gate_b: Gate | None
    ) -> tuple[Tensor, Tensor]:
        """Parameters (B, 6) and (B, 18) of the map from a to b."""
        weight_a = None if gate_a is None else to_side(gate_a.source.to(pair.features_a.dtype))
        weight_b = None if gate_b is None else gate_b.target
        moving = None if weight_b is None else to_side(weight_b)
        volume = correlation_volume(to_side(pair.features_b), to_side(pair.features_a), moving, weight_a)
        affine = self.affine(volume)
        flow = self.flows(affine, None, spatial_size(pair.image_a), spatial_size(pair.image_b))
        warped = cosegflow.warp(pair.image_b, flow, padding="border")
        features, other = describe(warped, pair.pyramid_a)
        if weight_b is not None:
            flow = self.flows(affine, None, spatial_size(pair.features_a), spatial_size(weight_b))
            moving = to_side(cosegflow.warp(weight_b.unsqueeze(1), flow))[:, 0]
        bend = self.bend(correlation_volume(to_side(features), to_side(other), moving, weight_a))
        return affine, bend

    def _match(
        self, pair: Encoded, describe: Describe, gates: tuple[Gate | None, Gate | None], similarity: Tensor
    ) -> Matching:
        affine, bend = self._transform(pair, describe, *gates)
        fa, fb = pair.features_a, pair.features_b
        flow = self.flows(affine, bend, spatial_size(fa), spatial_size(fb))
        score = score_along(fa, fb, flow)
        confidence = score.detach().clamp(0, 1).float()
        return Matching(flow, confidence, similarity, self.flows(affine, None, spatial_size(fa), spatial_size(fb)))

    def _similarities(self, pair: Encoded) -> tuple[Tensor, Tensor]:
        """lse / beta over 15 x 15 cells, interpolated onto each grid."""
        both = cosegflow.match_both(to_side(pair.features_a), to_side(pair.features_b), beta=self.beta)
        found = []
        for matches, features in zip(both, (pair.features_a, pair.features_b), strict=True):
            coarse = (matches.lse / self.beta).unsqueeze(1)
            size = features.shape[-2:]
            found.append(F.interpolate(coarse, size=size, mode="bilinear", align_corners=False).squeeze(1))
        return found[0], found[1]

    def forward(
        self,
        pair: Encoded,
        describe: Describe,
        gate_a: Gate | None = None,
        gate_b: Gate | None = None,
        free: tuple[Matching, Matching] | None = None,
    ) -> tuple[Matching, Matching]:
        """Both directions. Gates mask the correlation; the map then holds everywhere, inside of them and outside.

        `free`, the ungated matching, lends its similarities, which gates do not change.
        """
        similar = self._similarities(pair) if free is None else (free[0].similarity, free[1].similarity)
        ab = self._match(pair, describe, (gate_a, gate_b), similar[0])
        return ab, self._match(swap(pair), describe, (gate_b, gate_a), similar[1])


def swap(pair: Encoded) -> Encoded:
    """The same with a and b exchanged."""
    return Encoded(
        pair.image_b, pair.image_a, pair.pyramid_b, pair.pyramid_a,
        pair.features_b, pair.features_a, pair.frozen_b, pair.frozen_a,
    )  # fmt: skip

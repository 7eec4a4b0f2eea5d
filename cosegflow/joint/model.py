"""The joint model: backbone, dense matcher and mask decoder, refining each other."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cosegflow
from cosegflow.joint.backbones import make_backbone
from cosegflow.joint.decoder import MaskDecoder, standardise
from cosegflow.joint.matcher import Adapter, Gate, Matching, gate_mask, match_gated


@dataclass(frozen=True)
class ModelConfig:
    """What the model is made of; stored in checkpoints."""

    backbone: str = "efficientnet-lite0"
    beta: float = 100.0
    rounds: int = 2
    """K: gated rounds after the first, ungated one."""
    source_threshold: float = 0.5
    target_threshold: float = 0.05
    image_size: int = 240
    """Photographs are resized to about image_size ** 2 pixels, both sides multiples of 16."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)


class Round(NamedTuple):
    """One round: a matching in both directions and the masks that follow from it."""

    ab: Matching
    ba: Matching
    logits_a: Tensor
    """(B, Ha/4, Wa/4)."""
    logits_b: Tensor
    gate_a: Gate | None
    """None in the first round."""
    gate_b: Gate | None


class JointOutput(NamedTuple):
    """All rounds, last one last, and the descriptors (B, C, H/8, W/8)."""

    rounds: tuple[Round, ...]
    features_a: Tensor
    features_b: Tensor


def to_grid(mask: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(B, H, W) averaged onto a coarser grid (B, *size)."""
    return F.adaptive_avg_pool2d(mask.unsqueeze(1), (size[0], size[1])).squeeze(1)


class JointModel(nn.Module):
    """Matches and segments pairs of photographs."""

    def __init__(self, config: ModelConfig | None = None, backbone: nn.Module | None = None) -> None:
        """backbone: any `Backbone`; None makes the one that the configuration names."""
        super().__init__()
        self.config = config or ModelConfig()
        source: Any = backbone if backbone is not None else make_backbone(self.config.backbone)
        self.backbone = source
        self.tail: nn.Module = source.make_tail()
        self.adapter = Adapter(source.channels)
        self.decoder = MaskDecoder(source.channels)

    def pyramid(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at strides 4, 8 (frozen) and 16 (adapted) of (B, 3, H, W) in [0, 1]."""
        with torch.no_grad():
            fine, middle = self.backbone.trunk(image)
        return fine, middle, self.tail(middle)

    def _cues(
        self, ab: Matching, ba: Matching, fa: Tensor, fb: Tensor, masks: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """(B, CUES, h, w) of a and of b: similarity, score, closeness of cycle, confidence, the warped other mask."""
        sides = []
        for near, far, f_near, f_far, other in ((ab, ba, fa, fb, 1), (ba, ab, fb, fa, 0)):
            unit = 0.1 * max(f_near.shape[-2:])
            back = cosegflow.warp(far.flow, near.flow)
            cycle = torch.exp(-(near.flow + back).square().sum(1) / unit**2)
            score = (f_near * cosegflow.warp(f_far, near.flow)).sum(1)
            warped = torch.zeros_like(cycle)
            if masks is not None:
                warped = cosegflow.warp(masks[other].unsqueeze(1), near.flow).squeeze(1) - 0.5
            sides.append((near.similarity, score, cycle - 0.5, near.confidence - 0.5, warped))
        similar = standardise(sides[0][0], sides[1][0])
        fitting = standardise(sides[0][1], sides[1][1])
        stacked = [torch.stack((similar[i], fitting[i], *sides[i][2:]), 1) for i in (0, 1)]
        return stacked[0], stacked[1]

    def forward(self, image_a: Tensor, image_b: Tensor, rounds: int | None = None) -> JointOutput:
        """Images (B, 3, H, W) in [0, 1], sides multiples of 16. rounds: gated rounds, default of the configuration."""
        config = self.config
        pyramid_a, pyramid_b = self.pyramid(image_a), self.pyramid(image_b)
        fa, fb = self.adapter(pyramid_a, pyramid_b)
        beta = config.beta
        free_ab = match_gated(fa, fb, None, None, beta)
        free_ba = match_gated(fb, fa, None, None, beta)
        done: list[Round] = []
        ab, ba = free_ab, free_ba
        gate_a: Gate | None = None
        gate_b: Gate | None = None
        masks: tuple[Tensor, Tensor] | None = None
        for k in range(1 + (config.rounds if rounds is None else rounds)):
            if k:
                thresholds = config.source_threshold, config.target_threshold
                masks = (
                    to_grid(torch.sigmoid(done[-1].logits_a), fa.shape[-2:]),
                    to_grid(torch.sigmoid(done[-1].logits_b), fb.shape[-2:]),
                )
                gate_a, gate_b = gate_mask(masks[0], *thresholds), gate_mask(masks[1], *thresholds)
                ab = match_gated(fa, fb, gate_a, gate_b, beta, free_ab)
                ba = match_gated(fb, fa, gate_b, gate_a, beta, free_ba)
            # The cues of similarity stay those of the free matching: a dropped pixel can come back.
            seen_ab, seen_ba = ab._replace(similarity=free_ab.similarity), ba._replace(similarity=free_ba.similarity)
            cues_a, cues_b = self._cues(seen_ab, seen_ba, fa, fb, masks)
            logits = self.decoder(pyramid_a, cues_a), self.decoder(pyramid_b, cues_b)
            done.append(Round(ab, ba, logits[0], logits[1], gate_a, gate_b))
        return JointOutput(tuple(done), fa, fb)

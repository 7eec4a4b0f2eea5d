"""The joint model: backbone, matcher and mask decoder, refining each other."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cosegflow
from cosegflow.joint.backbones import as_backbone, make_backbone
from cosegflow.joint.decoder import MaskDecoder
from cosegflow.joint.foreground import ALONG_FLOW, BEST_MATCH, Foreground, common_foreground, scores_along
from cosegflow.joint.matcher import (
    Adapter,
    DenseMatcher,
    Encoded,
    Frozen,
    Gate,
    Matching,
    Pyramid,
    gate_mask,
    score_along,
)
from cosegflow.joint.paper_decoder import PaperDecoder
from cosegflow.joint.parametric import ParametricMatcher, correlation_volume
from cosegflow.joint.smoothing import robust_flow
from cosegflow.joint.standardise import standardise


class ModelConfigError(ValueError):
    """A value of the configuration that cannot be used; one line that names the field."""


class ImageSizeError(ValueError):
    """A photograph of a size that the model cannot take."""


@dataclass(frozen=True)
class ModelConfig:
    """What the model is made of; stored in checkpoints.

    Raises:
        ModelConfigError: a value that cannot be used.
    """

    backbone: str = "efficientnet-lite0"
    """The pretrained network: efficientnet-lite0, mobilenet-v2, resnet50, resnet101, dinov2-small, -base or -large."""
    beta: float = 100.0
    """Inverse temperature of the soft argmax."""
    rounds: int = 2
    """K: gated rounds after the first, ungated one."""
    gating: bool = True
    """Whether masks gate the matching; false: rounds refine the masks only."""
    smoothing: bool = True
    """Whether the dense matcher's flow is made locally affine in the end, within the mask where there is one."""
    flow_cues: bool = True
    """Whether masks see the flow; false: the decoder "cues" sees how well a position correlates at best, not where."""
    source_threshold: float = 0.5
    """Positions with a mask of at least this are matched."""
    target_threshold: float = 0.05
    """Positions with a mask of at least this may be matched."""
    image_size: int = 240
    """Photographs get about image_size ** 2 pixels, sides multiples of 16; with decoder "paper" exactly a square."""
    weights: str | None = None
    """A local file (DINOv2: or folder) of the backbone's weights; none: from pip, or from a hub."""
    matcher: Literal["dense", "parametric"] = "dense"
    """dense: soft argmax over all positions; parametric: an affine map, then a thin-plate spline."""
    stride: int = 8
    """Pixels per cell of the matching's grid: 8 or 4."""
    kernel_sigma: float | None = None
    """Standard deviation, in cells, of the dense matcher's kernel soft argmax (SFNet: 5, with beta 50); none: plain."""
    decoder: Literal["cues", "paper"] = "cues"
    """cues: takes any image size; paper: the raw correlation, for square images of image_size only."""

    def __post_init__(self) -> None:
        for name, choices in (("matcher", ("dense", "parametric")), ("decoder", ("cues", "paper")), ("stride", (8, 4))):
            value = getattr(self, name)
            if value not in choices:
                raise ModelConfigError(f"{name}: need {' or '.join(map(repr, choices))}, got {value!r}")
        if not math.isfinite(self.beta):
            raise ModelConfigError(f"beta: need a finite number, got {self.beta!r}")
        if self.rounds < 0:
            raise ModelConfigError(f"rounds: need a whole number of at least 0, got {self.rounds!r}")
        for name in ("source_threshold", "target_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ModelConfigError(f"{name}: need a number from 0 to 1, got {getattr(self, name)!r}")
        if self.target_threshold > self.source_threshold:
            raise ModelConfigError(
                f"target_threshold: need at most source_threshold ({self.source_threshold!r}), got"
                f" {self.target_threshold!r}"
            )
        if self.image_size < 16 or (self.decoder == "paper" and self.image_size % 16):
            need = "a multiple of 16" if self.decoder == "paper" else "at least 16"
            raise ModelConfigError(f"image_size: need {need}, got {self.image_size!r}")
        if self.kernel_sigma is not None:
            if not 0 < self.kernel_sigma < math.inf:
                raise ModelConfigError(f"kernel_sigma: need a number above 0, got {self.kernel_sigma!r}")
            if self.matcher != "dense":
                raise ModelConfigError("kernel_sigma: only the dense matcher has a kernel, got matcher 'parametric'")

    @property
    def square(self) -> bool:
        """Whether photographs must be image_size x image_size, not just of about as many pixels."""
        return self.decoder == "paper"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)


class Round(NamedTuple):
    """One round: a matching in both directions and the masks that follow from it."""

    ab: Matching
    ba: Matching
    logits_a: Tensor
    """(B, Ha/4, Wa/4); of the decoder "paper" (B, Ha, Wa)."""
    logits_b: Tensor
    gate_a: Gate | None
    """None in the first round."""
    gate_b: Gate | None
    flow_ab: Tensor
    """(B, 2, Ha, Wa), cells: the flow that the round comes to; see `JointModel.smooth_flow`."""
    flow_ba: Tensor
    foreground: tuple[Foreground, Foreground]
    """What needs no training to be found, along these flows."""


class JointOutput(NamedTuple):
    """All rounds, last one last, and the descriptors (B, C, H/stride, W/stride)."""

    rounds: tuple[Round, ...]
    features_a: Tensor
    features_b: Tensor
    encoded: Encoded
    """What else is known of the photographs; its pyramids serve again in `JointModel.encode_beside`."""


def to_grid(mask: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """(B, H, W) averaged onto a coarser grid (B, *size)."""
    return F.adaptive_avg_pool2d(mask.unsqueeze(1), (size[0], size[1])).squeeze(1)


def _closeness(flow: Tensor, back: Tensor) -> Tensor:
    """exp(-(e / u)^2) in (0, 1], (B, H, W): e the error of the flow there and back, u a tenth of the grid's side."""
    unit = 0.1 * max(flow.shape[-2:])
    return torch.exp(-(flow + cosegflow.warp(back, flow)).square().sum(1) / unit**2)


class JointModel(nn.Module):
    """Matches and segments pairs of photographs."""

    def __init__(self, config: ModelConfig | None = None, backbone: nn.Module | None = None) -> None:
        """The parts that `config` names.

        Args:
            config: None: the default.
            backbone: a `Backbone`, or any module that `PyramidBackbone` takes; None makes the one that `config` names.

        Raises:
            BackboneError, ModuleNotFoundError: the backbone or its weights cannot be used; says what to do.
        """
        super().__init__()
        self.config = config = config or ModelConfig()
        self.own_backbone = backbone is not None
        source: Any = make_backbone(config.backbone, config.weights) if backbone is None else as_backbone(backbone)
        self.backbone = source
        self.tail: nn.Module = source.make_tail()
        self.adapter = Adapter(source.channels, stride=config.stride)
        self.decoder: MaskDecoder | PaperDecoder
        if config.decoder == "cues":
            self.decoder = MaskDecoder(source.channels)
        else:
            cells = (config.image_size // 16) ** 2
            self.decoder = PaperDecoder(source.channels, getattr(source, "stem_channels", 0), cells)
        self.matcher: DenseMatcher | ParametricMatcher
        if config.matcher == "dense":
            self.matcher = DenseMatcher(config.beta, config.kernel_sigma)
        else:
            self.matcher = ParametricMatcher(config.beta)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes config.json and model.safetensors into `folder`; the frozen backbone is not stored.

        Raises:
            OutputError: the folder cannot be made or written.
        """
        from cosegflow.joint.checkpoint import save_pretrained

        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(
        cls, path: Path | str, backbone: nn.Module | None = None, weights: str | None = None
    ) -> "JointModel":
        """The model of `save_pretrained`, of a run of ``cosegflow fit`` or of the demo, in evaluation mode.

        Args:
            path: see `cosegflow.joint.checkpoint.load_checkpoint`.
            backbone: the one it was trained with, where that was not one of `make_backbone`.
            weights: the local file of the backbone's weights, where it has moved.

        Raises:
            CheckpointError: no such file, or a checkpoint that does not fit; one line.
        """
        from cosegflow.joint.checkpoint import load_checkpoint

        return load_checkpoint(path, "path", backbone, weights)

    def pyramid(self, image: Tensor) -> Pyramid:
        """Features at strides 4, 8 (frozen) and 16 (adapted) of (B, 3, H, W) in [0, 1]."""
        return self._trunk(image)[0]

    def _trunk(self, image: Tensor) -> tuple[Pyramid, Tensor]:
        """The pyramid, and what its coarsest level was adapted from."""
        with torch.no_grad():
            fine, middle, last = self.backbone.trunk(image)
        return (fine, middle, self.tail(last)), last

    def encode(self, image_a: Tensor, image_b: Tensor) -> Encoded:
        """Pyramids and descriptors of both photographs (B, 3, H, W) in [0, 1], sides multiples of 16.

        Raises:
            ImageSizeError: the decoder "paper" needs another size.
        """
        for name, image in (("image_a", image_a), ("image_b", image_b)):
            side = self.config.image_size
            if self.config.square and tuple(image.shape[-2:]) != (side, side):
                got = " x ".join(str(n) for n in image.shape[-2:])
                raise ImageSizeError(
                    f"{name}: the decoder 'paper' needs {side} x {side} pixels (image_size), got {got}"
                )
        if image_a.shape == image_b.shape:  # one batch is faster than two
            pyramid, frozen = self._levels(torch.cat((image_a, image_b)))
            halves = [level.chunk(2) for level in (*pyramid, *frozen)]
            (fine_a, fine_b), (middle_a, middle_b), (coarse_a, coarse_b) = halves[:3]
            pyramid_a, pyramid_b = (fine_a, middle_a, coarse_a), (fine_b, middle_b, coarse_b)
            frozen_a, frozen_b = (Frozen(halves[3][i], halves[4][i]) for i in (0, 1))
        else:
            (pyramid_a, frozen_a), (pyramid_b, frozen_b) = self._levels(image_a), self._levels(image_b)
        fa, fb = self.adapter(pyramid_a, pyramid_b)
        return Encoded(image_a, image_b, pyramid_a, pyramid_b, fa, fb, frozen_a, frozen_b)

    def _levels(self, image: Tensor) -> tuple[Pyramid, Frozen]:
        """The pyramid, and what stays as it was: of a backbone without `semantic` the adapted features of stride 16."""
        pyramid, last = self._trunk(image)
        _, middle, coarse = pyramid
        with torch.no_grad():
            known = self.backbone.semantic(last) if hasattr(self.backbone, "semantic") else (coarse, coarse)
            grown = F.interpolate(
                F.normalize(known[0], dim=1), size=middle.shape[-2:], mode="bilinear", align_corners=False
            )
            frozen = Frozen(torch.cat((F.normalize(middle, dim=1), grown), 1), known[1])
        return pyramid, frozen

    def smooth_flow(self, near: Matching, far: Matching, gate: Gate | None = None) -> Tensor:
        """The flow that a matching comes to, (B, 2, H, W), cells: see `smoothing`.

        Trusted are matches that the flow back returns from, and those in the gate's mask.
        """
        config = self.config
        if not config.smoothing or config.matcher != "dense":
            return near.flow
        weight = (_closeness(near.flow, far.flow) ** 4 * near.confidence).detach()
        if gate is not None and config.gating:
            weight = weight * gate.target.detach()
        return robust_flow(near.flow, weight, config.stride)

    def find_foreground(
        self, pair: Encoded, free: tuple[Matching, Matching], flows: tuple[Tensor, Tensor]
    ) -> tuple[Foreground, Foreground]:
        """What of a pair needs no training, from the ungated matching and its smooth flows; see `foreground`."""
        last, fine = (pair.frozen_a.last, pair.frozen_b.last), (pair.frozen_a.fine, pair.frozen_b.fine)
        if self.config.flow_cues:
            return common_foreground(last, fine, scores_along(*fine, *flows), ALONG_FLOW)
        return common_foreground(last, fine, (free[0].similarity, free[1].similarity), BEST_MATCH)

    def encode_beside(self, image_a: Tensor, image_b: Tensor, pyramid_b: Pyramid, frozen_b: Frozen) -> Encoded:
        """`encode` where all but the descriptors of b is known, as of a photograph that was encoded with another."""
        pyramid_a, frozen_a = self._levels(image_a)
        fa, fb = self.adapter(pyramid_a, pyramid_b)
        return Encoded(image_a, image_b, pyramid_a, pyramid_b, fa, fb, frozen_a, frozen_b)

    def _describe(self, image: Tensor, other: Pyramid) -> tuple[Tensor, Tensor]:
        """Descriptors of a photograph and of the one that `other` is the pyramid of."""
        features: tuple[Tensor, Tensor] = self.adapter(self.pyramid(image), other)
        return features

    def match(
        self,
        pair: Encoded,
        gate_a: Gate | None = None,
        gate_b: Gate | None = None,
        free: tuple[Matching, Matching] | None = None,
    ) -> tuple[Matching, Matching]:
        """a to b and b to a by the configured matcher; `free` is the ungated matching of the same pair, for gates."""
        both: tuple[Matching, Matching] = self.matcher(pair, self._describe, gate_a, gate_b, free)
        return both

    def _cues(
        self,
        ab: Matching,
        ba: Matching,
        fa: Tensor,
        fb: Tensor,
        flows: tuple[Tensor, Tensor],
        masks: tuple[Tensor, Tensor] | None,
        foreground: tuple[Foreground, Foreground],
    ) -> tuple[Tensor, Tensor]:
        """(B, CUES, h, w) of a and of b; `flows` are the smooth ones.

        Similarity, score, closeness of cycle, confidence, the warped other mask, and those of `Foreground`.
        """
        sides = []
        for near, flow, back, f_near, f_far, other in ((ab, *flows, fa, fb, 1), (ba, *flows[::-1], fb, fa, 0)):
            if not self.config.flow_cues:
                nothing = torch.zeros_like(near.similarity)
                sides.append((near.similarity, near.similarity, nothing, nothing, nothing))
                continue
            warped = torch.zeros_like(near.similarity)
            if masks is not None:
                warped = cosegflow.warp(masks[other].unsqueeze(1), flow).squeeze(1) - 0.5
            cycle = _closeness(flow, back)
            sides.append(
                (near.similarity, score_along(f_near, f_far, flow), cycle - 0.5, near.confidence - 0.5, warped)
            )
        similar = standardise(sides[0][0], sides[1][0])
        fitting = standardise(sides[0][1], sides[1][1])
        stacked = []
        for i in (0, 1):
            matched = torch.stack((similar[i], fitting[i], *sides[i][2:]), 1)
            apart = foreground[i].cues
            if apart.shape[-2:] != matched.shape[-2:]:
                apart = F.interpolate(apart, size=matched.shape[-2:], mode="bilinear", align_corners=False)
            stacked.append(torch.cat((matched, apart), 1))
        return stacked[0], stacked[1]

    def _decode_paper(
        self, decoder: PaperDecoder, pair: Encoded, gates: tuple[Gate | None, Gate | None]
    ) -> tuple[Tensor, Tensor]:
        """Mask logits of a and of b by the decoder "paper"."""
        logits = []
        sides = (pair.image_a, pair.pyramid_a, pair.pyramid_b, gates[1]), (
            pair.image_b, pair.pyramid_b, pair.pyramid_a, gates[0],
        )  # fmt: skip
        for image, own, other, gate in sides:
            # What the other photograph's mask calls background explains nothing here, so later rounds see less of it.
            weight = None if gate is None else to_grid(gate.target, other[2].shape[-2:])
            stem = None
            if getattr(self.backbone, "stem_channels", 0):
                with torch.no_grad():
                    stem = self.backbone.stem(image)
            logits.append(decoder(own, stem, correlation_volume(other[2], own[2], weight)))
        return logits[0], logits[1]

    def forward(self, image_a: Tensor, image_b: Tensor, rounds: int | None = None) -> JointOutput:
        """Images (B, 3, H, W) in [0, 1], sides multiples of 16. rounds: gated rounds, default of the configuration.

        Raises:
            ImageSizeError: the decoder "paper" needs another size.
        """
        return self.refine(self.encode(image_a, image_b), rounds)

    def refine(self, pair: Encoded, rounds: int | None = None) -> JointOutput:
        """Matches and segments a pair that `encode` gave, round after round; see `forward`."""
        config = self.config
        fa, fb = pair.features_a, pair.features_b
        free = ab, ba = self.match(pair)
        flows = self.smooth_flow(ab, ba), self.smooth_flow(ba, ab)
        foreground = self.find_foreground(pair, free, flows)
        done: list[Round] = []
        gate_a: Gate | None = None
        gate_b: Gate | None = None
        masks: tuple[Tensor, Tensor] | None = None
        if isinstance(self.decoder, MaskDecoder):
            projected = self.decoder.project(pair.pyramid_a), self.decoder.project(pair.pyramid_b)
        for k in range(1 + (config.rounds if rounds is None else rounds)):
            if k:
                thresholds = config.source_threshold, config.target_threshold
                masks = (
                    to_grid(torch.sigmoid(done[-1].logits_a), fa.shape[-2:]),
                    to_grid(torch.sigmoid(done[-1].logits_b), fb.shape[-2:]),
                )
                gate_a, gate_b = gate_mask(masks[0], *thresholds), gate_mask(masks[1], *thresholds)
                if config.gating:
                    ab, ba = self.match(pair, gate_a, gate_b, free)
                    flows = self.smooth_flow(ab, ba, gate_a), self.smooth_flow(ba, ab, gate_b)
                    foreground = self.find_foreground(pair, free, flows)
            if isinstance(self.decoder, PaperDecoder):
                logits = self._decode_paper(self.decoder, pair, (gate_a, gate_b))
            else:
                # The cues of similarity stay those of the free matching: a dropped pixel can come back.
                seen = ab._replace(similarity=free[0].similarity), ba._replace(similarity=free[1].similarity)
                cues = self._cues(*seen, fa, fb, (flows[0].detach(), flows[1].detach()), masks, foreground)
                logits = self.decoder(projected[0], cues[0]), self.decoder(projected[1], cues[1])
            done.append(Round(ab, ba, logits[0], logits[1], gate_a, gate_b, *flows, foreground))
        return JointOutput(tuple(done), fa, fb, pair)

"""Predictions at the photographs' own sizes, and the plain baseline."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import cosegflow
from cosegflow.joint.matcher import spatial_size
from cosegflow.joint.model import JointModel, JointOutput, ModelConfig, Round


class Prediction(NamedTuple):
    """What is known of a batch of pairs."""

    flow_ab: Tensor
    """(B, 2, Ha, Wa) float32, pixels of b minus pixels of a."""
    mask_a: Tensor
    """(B, Ha, Wa) float32 in [0, 1]."""
    mask_b: Tensor
    """(B, Hb, Wb) float32 in [0, 1]."""
    confidence: Tensor
    """(B, Ha, Wa) float32 in [0, 1]."""


def model_size(size: tuple[int, int], image_size: int) -> tuple[int, int]:
    """(H, W), multiples of 16, near the shape of `size` with about image_size ** 2 pixels, aspect at most 4 : 1."""
    aspect = min(4.0, max(0.25, size[1] / size[0]))
    height, width = image_size / aspect**0.5, image_size * aspect**0.5
    return max(16, round(height / 16) * 16), max(16, round(width / 16) * 16)


def _shrink(image: Tensor, config: ModelConfig) -> Tensor:
    side = config.image_size
    size = (side, side) if config.square else model_size((image.shape[-2], image.shape[-1]), side)
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _full(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values.unsqueeze(1), size=size, mode="bilinear", align_corners=False).squeeze(1)


def _assemble(
    flow: Tensor,
    confidence: Tensor,
    grid_b: tuple[int, int],
    masks: tuple[Tensor, Tensor],
    image_a: Tensor,
    image_b: Tensor,
) -> Prediction:
    size_a, size_b = spatial_size(image_a), spatial_size(image_b)
    return Prediction(
        cosegflow.resize_flow(flow, size_a, size_b, from_size_b=grid_b),
        masks[0].clamp(0, 1),
        masks[1].clamp(0, 1),
        _full(confidence, size_a).clamp(0, 1),
    )


def _of_round(stage: Round, output: JointOutput, image_a: Tensor, image_b: Tensor) -> Prediction:
    masks = tuple(
        torch.sigmoid(_full(logits, spatial_size(image)))
        for logits, image in ((stage.logits_a, image_a), (stage.logits_b, image_b))
    )
    grid_b = spatial_size(output.features_b)
    return _assemble(stage.flow_ab, stage.ab.confidence, grid_b, (masks[0], masks[1]), image_a, image_b)


@torch.no_grad()
def predict(model: JointModel, image_a: Tensor, image_b: Tensor) -> Prediction:
    """Flow and masks for (B, 3, Ha, Wa) and (B, 3, Hb, Wb) in [0, 1], any sizes.

    A model that is not trained yet matches pretrained descriptors and segments by `foreground` alone.
    """
    output = model(_shrink(image_a, model.config), _shrink(image_b, model.config))
    return _of_round(output.rounds[-1], output, image_a, image_b)


@torch.no_grad()
def predict_rounds(model: JointModel, image_a: Tensor, image_b: Tensor, rounds: int) -> list[Prediction]:
    """`predict` after 0, 1, ..., `rounds` gated rounds, from one pass."""
    output = model(_shrink(image_a, model.config), _shrink(image_b, model.config), rounds)
    return [_of_round(stage, output, image_a, image_b) for stage in output.rounds]


@torch.no_grad()
def predict_nearest(model: JointModel, image_a: Tensor, image_b: Tensor) -> Prediction:
    """The plain baseline: cosine nearest neighbour of the stride-16 features, no masks (all foreground)."""
    fa = model.pyramid(_shrink(image_a, model.config))[2]
    fb = model.pyramid(_shrink(image_b, model.config))[2]
    found = cosegflow.match(fa, fb, return_index=True)
    score, width = found.score, fb.shape[-1]
    axes = [torch.arange(n, device=fa.device) for n in (fa.shape[-1], fa.shape[-2])]
    here = torch.stack(torch.meshgrid(*axes, indexing="xy"))
    there = torch.stack((found.index % width, found.index // width), 1)
    flow = (there - here).to(score.dtype)
    batch = image_a.shape[0]
    return _assemble(
        flow,
        score.clamp(0, 1),
        spatial_size(fb),
        (image_a.new_ones(batch, *spatial_size(image_a)), image_b.new_ones(batch, *spatial_size(image_b))),
        image_a,
        image_b,
    )

"""Known random warps of photographs, drawn per sample from (seed, number) alone."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_MIX = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: spreads neighbouring numbers over all seeds


def sample_generator(seed: int, number: int) -> torch.Generator:
    """A CPU generator that depends on (seed, number) only: any order, rank or point of resumption draws the same."""
    return torch.Generator().manual_seed(((seed + 1) * _MIX + number * 0xBF58476D1CE4E5B9) % 2**63)


def _one_flow(size: tuple[int, int], generator: torch.Generator, bend: float, rotation: float) -> Tensor:
    """(2, *size): one warp; see `random_flow`."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    height, width = size
    angle = float(uniform(1) * 2 - 1) * math.radians(rotation)
    scale = torch.exp((uniform(2) - 0.5) * 0.3 + (uniform(1) * 2 - 1) * 0.45)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor(((cos, -sin), (sin, cos))) @ torch.diag(scale) - torch.eye(2)
    ys, xs = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    grid = torch.stack((xs.expand(height, width), ys[:, None].expand(height, width))).float()
    linear = (matrix @ grid.flatten(1)).reshape(2, height, width)
    shift = (uniform(2, 1, 1) - 0.5) * 0.3 * min(size)
    knots = torch.randn(1, 2, 4, 4, generator=generator) * bend * max(size)
    bends = F.interpolate(knots, size=size, mode="bicubic", align_corners=True)
    return linear + shift + bends[0]


def random_flow(
    numbers: Tensor, size: tuple[int, int], *, seed: int, bend: float = 0.03, rotation: float = 45.0
) -> Tensor:
    """Random smooth warps of a photograph: rotation, scale, shear and shift, plus bends; flow (B, 2, *size), pixels.

    Scale 0.6 to 1.6. Float32, on the CPU.

    Args:
        numbers: (B,) int64, the samples' numbers; warp i is a function of (seed, numbers[i]) and the size.
        size: (H, W).
        seed: of the run.
        bend: standard deviation of the bends over the longer side.
        rotation: largest angle in degrees.
    """
    return torch.stack([_one_flow(size, sample_generator(seed, n), bend, rotation) for n in numbers.tolist()])


def random_colours(image: Tensor, numbers: Tensor, *, seed: int, strength: float = 1.0) -> Tensor:
    """(B, 3, H, W) in [0, 1] with another contrast, tint and brightness for each photograph; stays in [0, 1].

    Contrast within 30 %, each channel's within 10 %, brightness within 0.1, times `strength`.

    Args:
        image: (B, 3, H, W).
        numbers: (B,) int64; change i is a function of (seed, numbers[i]).
        seed: of the run.
        strength: 0 changes nothing.
    """
    draws = torch.stack([torch.rand(5, generator=sample_generator(seed + 1, n)) for n in numbers.tolist()]) * 2 - 1
    draws = (draws * strength).to(image.device, image.dtype)
    gain = (1 + 0.3 * draws[:, :1]) * (1 + 0.1 * draws[:, 1:4])
    shift = 0.1 * draws[:, 4:5]
    return ((image - 0.5) * gain[..., None, None] + (0.5 + shift[..., None, None])).clamp(0, 1)

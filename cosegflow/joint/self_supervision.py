"""Known random warps of photographs, drawn per sample from (seed, number) alone."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_MIX = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: spreads neighbouring numbers over all seeds


def sample_generator(seed: int, number: int) -> torch.Generator:
    """A CPU generator that depends on (seed, number) only: any order, rank or point of resumption draws the same."""
    return torch.Generator().manual_seed(((seed + 1) * _MIX + number * 0xBF58476D1CE4E5B9) % 2**63)


def _one_flow(size: tuple[int, int], generator: torch.Generator, bend: float) -> Tensor:
    """(2, *size): one warp; see `random_flow`."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    height, width = size
    angle = float(uniform(1) * 2 - 1) * math.pi / 4
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


def random_flow(numbers: Tensor, size: tuple[int, int], *, seed: int, bend: float = 0.03) -> Tensor:
    """Random smooth warps of a photograph: rotation, scale, shear and shift, plus bends; flow (B, 2, *size), pixels.

    Rotation up to 45 degrees, scale 0.6 to 1.6. Float32, on the CPU.

    Args:
        numbers: (B,) int64, the samples' numbers; warp i is a function of (seed, numbers[i]) and the size.
        size: (H, W).
        seed: of the run.
        bend: standard deviation of the bends over the longer side.
    """
    return torch.stack([_one_flow(size, sample_generator(seed, n), bend) for n in numbers.tolist()])

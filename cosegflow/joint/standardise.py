"""Cues of a pair on one scale."""

import torch
from torch import Tensor


def standardise(cue: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, H, W) cues of a pair, with the pair's common mean 0 and standard deviation 1."""
    both = torch.cat((cue.flatten(1), other.flatten(1)), 1)
    mean = both.mean(1)[:, None, None]
    deviation = both.std(1)[:, None, None].clamp(min=1e-4)
    return (cue - mean) / deviation, (other - mean) / deviation

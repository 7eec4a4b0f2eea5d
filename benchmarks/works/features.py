"""Random inputs that several works share."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Case
from .base import Inputs, dtype_of


def smooth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Low frequencies: noise on a 4x4 grid, interpolated to shape (B, K, H, W)."""
    coarse = torch.randn((*shape[:2], 4, 4), generator=generator)
    return F.interpolate(coarse, size=shape[2:], mode="bicubic", align_corners=True)


def mask(case: Case, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, H, W) of zeros and ones, a few blobs; the fraction of ones is the case's foreground, to one pixel."""
    field = smooth((case.batch, 1, *size), generator).flatten(1)
    count = max(1, round(case.foreground * field.shape[1]))
    chosen = torch.zeros_like(field)
    chosen.scatter_(1, field.topk(count, dim=1).indices, 1.0)
    return chosen.reshape(case.batch, *size)


def place(tensor: Tensor, case: Case, device: torch.device) -> Tensor:
    """A feature map on the device, in the case's dtype and layout, requiring its gradient."""
    tensor = tensor.to(device, dtype_of(case))
    if case.layout == "channels_last":
        tensor = tensor.to(memory_format=torch.channels_last)
    return tensor.requires_grad_()


def pair(case: Case, device: torch.device, seed: int) -> Inputs:
    """fa and fb, and the masks where there is a background.

    a is b, shifted, with so much noise that the true match scores about as high as the best of the wrong ones: then the
    softmax is neither flat nor one-hot, and gradients are not all rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    fb = torch.randn((case.batch, case.channels, *case.b), generator=generator)
    noise = torch.randn((case.batch, case.channels, *case.a), generator=generator)
    cosine = min(0.9, 3.5 / math.sqrt(case.channels))  # the largest of some thousand random ones
    scale = math.sqrt(cosine**-2 - 1)
    fa = fb.roll((2, -3), (2, 3)) + scale * noise if case.a == case.b else noise
    inputs = {"fa": place(fa, case, device), "fb": place(fb, case, device)}
    if case.foreground < 1:
        inputs["mask_a"] = mask(case, case.a, generator).to(device)
        inputs["mask_b"] = mask(case, case.b, generator).to(device)
    return inputs


def flow(case: Case, size: tuple[int, int], device: torch.device, seed: int) -> Tensor:
    """(B, 2, H, W) float32, a few pixels long: smooth, or independent at each pixel over the whole image."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.batch, 2, *size)
    if case.flow == "smooth":
        values = smooth(shape, generator) * 4
    else:
        reach = torch.tensor([size[1], size[0]]).reshape(1, 2, 1, 1) / 4
        values = torch.randn(shape, generator=generator) * reach
    # Not at the pixels' centres, where the derivative jumps and rounding decides which side is taken.
    whole = values.floor()
    return (whole + 0.02 + 0.96 * (values - whole)).to(device).requires_grad_()

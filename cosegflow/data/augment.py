"""Augmentation of training photographs: random crop, mirror image, small change of colours."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

Pixels = npt.NDArray[np.uint8]

GAIN = 0.15
TINT = 0.05
SHIFT = 0.06


class Crop(NamedTuple):
    """A part of a photograph, in pixels from its upper left corner; may be fractional."""

    left: float
    top: float
    right: float
    bottom: float


def random_crop(rng: np.random.Generator, size: tuple[int, int]) -> Crop:
    """A corner each in the first and in the last quarter of a photograph (h, w), as in the paper's training."""
    height, width = size
    top, left = rng.uniform(0, height / 4), rng.uniform(0, width / 4)
    bottom, right = rng.uniform(3 * height / 4, height), rng.uniform(3 * width / 4, width)
    return Crop(left, top, right, bottom)


def square_view(pixels: Pixels, size: int, crop: Crop | None = None, *, mirror: bool = False) -> Tensor:
    """The crop (None: all) of a photograph (h, w, 3) uint8 as (3, size, size) float32 in [0, 1]; the aspect gives way.

    mirror: left and right exchanged.
    """
    picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=crop, reducing_gap=2.0)
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(torch.float32).div_(255.0)
    return (values.flip(-1) if mirror else values).contiguous()


def change_colours(rng: np.random.Generator, image: Tensor) -> Tensor:
    """Contrast within 15 %, each channel's within 5 %, brightness within 0.06; the result stays in [0, 1]."""
    gain = rng.uniform(1 - GAIN, 1 + GAIN) * rng.uniform(1 - TINT, 1 + TINT, 3)
    shift = rng.uniform(-SHIFT, SHIFT)
    factor = torch.from_numpy(gain).to(image.dtype)[:, None, None]
    return ((image - 0.5) * factor + (0.5 + shift)).clamp_(0.0, 1.0)

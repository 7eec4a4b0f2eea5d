"""Masks over photographs."""

from typing import Any

import numpy as np

from cosegflow.viz.arrays import Pixels, to_pixels, to_plane


def overlay(image: Any, mask: Any, colour: tuple[float, float, float] = (1.0, 0.25, 0.1)) -> Pixels:
    """The photograph, dimmed and greyed outside the mask, with an outline where the mask crosses 0.5.

    Args:
        image: a photograph, H x W.
        mask: (H, W) in [0, 1] or bool; NaN is 0.
        colour: of the outline, in [0, 1].

    Raises:
        ValueError: wrong shapes.
    """
    photo = to_pixels(image).astype(np.float64) / 255
    weight = np.nan_to_num(to_plane(mask, "mask", photo.shape[:2])).clip(0, 1)
    grey = photo.mean(2, keepdims=True) * 0.5 + 0.1
    result = weight[..., None] * photo + (1 - weight[..., None]) * grey
    inside = weight >= 0.5
    edge = np.zeros_like(inside)
    edge[1:] |= inside[1:] != inside[:-1]
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    result[edge] = colour
    return to_pixels(result)

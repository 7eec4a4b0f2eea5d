"""Maps of one number per pixel: grey, colour, and with a colour bar."""

from typing import Any

import numpy as np

from cosegflow.viz.arrays import OUTSIDE, Pixels, inside, to_pixels, to_plane
from cosegflow.viz.text import TEXT, paste, short, text_picture

UNKNOWN = 128
"""The grey of what is not finite."""


def grey_map(values: Any) -> Pixels:
    """(H, W) in [0, 1] as grey; NaN is black."""
    return to_pixels(np.repeat(to_plane(values, "values")[..., None], 3, axis=2))


def colour_map(values: Any, name: str = "viridis") -> Pixels:
    """(H, W) in [0, 1] through a matplotlib colour map; NaN is 0."""
    import matplotlib

    array = to_plane(values, "values")
    return to_pixels(matplotlib.colormaps[name](np.nan_to_num(array).clip(0, 1))[..., :3])


def scalar_picture(
    values: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    mask: Any = None,
    name: str = "viridis",
    bar: bool = True,
) -> Pixels:
    """Any number per pixel (an lse, a cycle error, a confidence) in colour, with a colour bar to the right.

    Args:
        values: (H, W). What is not finite (NaN, the -inf of an lse without targets) is grey.
        low, high: the ends of the colour bar; None: of the finite values within the mask. Values beyond are clipped.
        mask: (H, W) in [0, 1] or bool; what is below 0.5 is light grey.
        name: a matplotlib colour map.
        bar: False leaves the colour bar out: the picture is (H, W, 3).

    Raises:
        ValueError: wrong shapes, or `high` below `low`.
    """
    plane = to_plane(values, "values")
    kept = inside(mask, "mask", plane.shape)
    known = np.isfinite(plane)
    shown = plane[known & kept]
    low = (float(shown.min()) if shown.size else 0.0) if low is None else float(low)
    high = max(low, float(shown.max()) if shown.size else 1.0) if high is None else float(high)
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"high: need finite ends, high at least low, got low {low:g} and high {high:g}")
    picture = colour_map((np.where(known, plane, low) - low) / ((high - low) or 1.0), name)
    picture[~known] = UNKNOWN
    picture[~kept] = OUTSIDE
    return _with_bar(picture, low, high, name) if bar else picture


def confidence_picture(confidence: Any, mask: Any = None, *, bar: bool = True) -> Pixels:
    """`scalar_picture` of a confidence (H, W) from 0 to 1, so that pictures compare with each other."""
    return scalar_picture(confidence, 0.0, 1.0, mask=mask, bar=bar)


def _with_bar(picture: Pixels, low: float, high: float, name: str) -> Pixels:
    """The picture with a bar as high as it (at least as two lines of text), labelled at its ends."""
    top, bottom = text_picture(short(high), TEXT), text_picture(short(low), TEXT)
    height = max(picture.shape[0], 2 * top.shape[0] + 2)
    left, wide, gap = picture.shape[1] + 6, 10, 4
    width = left + wide + gap + max(top.shape[1], bottom.shape[1]) + 2
    result = np.full((height, width, 3), 255, dtype=np.uint8)
    result[: picture.shape[0], : picture.shape[1]] = picture
    result[:, left : left + wide] = colour_map(np.linspace(1.0, 0.0, height)[:, None], name)
    paste(result, top, 0, left + wide + gap)
    paste(result, bottom, height - bottom.shape[0], left + wide + gap)
    return result

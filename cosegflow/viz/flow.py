"""Flow as colour: hue is the direction, saturation the length, by the wheel of Middlebury."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cosegflow.viz.arrays import OUTSIDE, Pixels, inside, to_array, to_flow, to_pixels
from cosegflow.viz.text import TEXT, paste, short, text_picture

_SEGMENTS = (15, 6, 4, 11, 13, 6)  # red-yellow, yellow-green, green-cyan, cyan-blue, blue-magenta, magenta-red
_FRAME = 4
"""White pixels around a legend."""


def colour_wheel() -> npt.NDArray[np.float64]:
    """(55, 3) in [0, 1]: the wheel of Baker et al., A Database and Evaluation Methodology for Optical Flow (2011)."""
    corners = np.array(((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0)), dtype=np.float64)
    parts = [
        corners[i] + (corners[i + 1] - corners[i]) * (np.arange(count) / count)[:, None]
        for i, count in enumerate(_SEGMENTS)
    ]
    return np.concatenate(parts)


def longest_flow(flow: Any, mask: Any = None) -> float:
    """The length in pixels that pictures of a flow (2, H, W) show fully saturated: the 99 % quantile.

    Only finite flow within the mask (H, W), at least 0.5, counts; 1.0 where there is none, or where nothing moves.
    """
    values = to_flow(flow)
    counted = np.isfinite(values).all(axis=0) & inside(mask, "mask", values.shape[1:])
    length = float(np.quantile(np.hypot(*values[:, counted]), 0.99)) if counted.any() else 0.0
    return length if length > 1e-6 else 1.0


def flow_to_colour(flow: Any, largest: float | None = None) -> Pixels:
    """Flow (2, H, W) in pixels as colour, (H, W, 3): hue is the direction, saturation the length; white is zero.

    Args:
        flow: channel 0 to the right, channel 1 down.
        largest: the length that is fully saturated, above 0; None: `longest_flow`. Longer ones are darker; positions
            that are not finite are black.

    Raises:
        ValueError: another shape, or a length that is not above 0.
    """
    values = to_flow(flow)
    if largest is None:
        largest = longest_flow(values)
    _check_length(largest)
    known: npt.NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=0))
    x, y = np.where(known, values, 0.0)
    length = np.hypot(x, y) / largest
    wheel = colour_wheel()
    turn = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = np.floor(turn).astype(int)
    part = (turn - low)[..., None]
    colour = (1 - part) * wheel[low] + part * wheel[(low + 1) % len(wheel)]
    colour = np.where(length[..., None] <= 1 + 1e-9, 1 - length[..., None] * (1 - colour), colour * 0.75)
    return to_pixels(np.where(known[..., None], colour, 0.0))


def flow_legend(largest: float, size: int = 64) -> Pixels:
    """The key to `flow_to_colour`: a disk above a bar as long as its radius, labelled in pixels, on white.

    Args:
        largest: the length in pixels at the rim, above 0. At an offset (x, y) from the middle of the disk is the colour
            of the flow (x, y), which points there: right is right, down is down.
        size: height and width of the disk in pixels of the picture, at least 8. The middle is pixel
            (size // 2, size // 2), the radius (size - 1) // 2.

    Returns:
        (H, W, 3), H and W larger than `size` by the bar and the text, and as the text needs.

    Raises:
        ValueError: a length that is not above 0, or a size below 8.
    """
    _check_length(largest)
    if size < 8:
        raise ValueError(f"size: need at least 8 pixels, got {size}")
    middle, radius = size // 2, (size - 1) // 2
    y, x = np.mgrid[:size, :size] - middle
    disk = flow_to_colour(np.stack((x, y)) * (largest / radius), largest)
    disk[np.hypot(x, y) > radius] = 255
    text = text_picture(f"{short(largest)} px", TEXT)
    bar = 7
    width = max(size, middle + 1 + text.shape[1], text.shape[1])
    legend = np.full((size + bar + text.shape[0], width, 3), 255, dtype=np.uint8)
    legend[:size, :size] = disk
    row = size + 2
    legend[row, middle : middle + radius + 1] = 34
    legend[row - 2 : row + 3, [middle, middle + radius]] = 34
    paste(legend, text, size + bar, min(middle, width - text.shape[1]))
    return legend


def flow_picture(flow: Any, mask: Any = None, *, largest: float | None = None, legend: str = "inside") -> Pixels:
    """Flow as colour with its legend.

    Args:
        flow: (2, H, W) in pixels.
        mask: (H, W) in [0, 1] or bool; what is below 0.5 is light grey, and counts for neither colours nor legend.
        largest: the length that is fully saturated; None: `longest_flow` within the mask.
        legend: "inside": in the corner that hides least of the mask, where the picture is at least twice as high and
            wide as the legend, else left out; "beside": to the right, on white; "none".

    Returns:
        (H, W, 3); wider, and where H is small higher, where the legend is beside.

    Raises:
        ValueError: wrong shapes, length or legend.
    """
    values = to_flow(flow)
    kept = inside(mask, "mask", values.shape[1:])
    if legend not in ("inside", "beside", "none"):
        raise ValueError(f'legend: need "inside", "beside" or "none", got {legend!r}')
    if largest is None:
        largest = longest_flow(values, kept)
    picture = flow_to_colour(values, largest)
    picture[~kept] = OUTSIDE
    if legend == "none":
        return picture
    height, width = kept.shape
    key = flow_legend(largest, max(40, min(height, width) // 5))
    key = np.pad(key, ((_FRAME, _FRAME), (_FRAME, _FRAME), (0, 0)), constant_values=255)
    if legend == "beside":
        result = np.full((max(height, key.shape[0]), width + key.shape[1], 3), 255, dtype=np.uint8)
        result[:height, :width] = picture
        paste(result, key, 0, width)
        return result
    if 2 * key.shape[0] > height or 2 * key.shape[1] > width:
        return picture
    corners = [(top, left) for top in (height - key.shape[0], 0) for left in (width - key.shape[1], 0)]
    hidden = [kept[top : top + key.shape[0], left : left + key.shape[1]].sum() for top, left in corners]
    paste(picture, key, *corners[int(np.argmin(hidden))])
    return picture


def _check_length(largest: float) -> None:
    if not (np.ndim(to_array(largest, "largest")) == 0 and 0 < largest < np.inf):
        raise ValueError(f"largest: need a finite length above 0, got {largest!r}")

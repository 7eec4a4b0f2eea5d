"""Pictures: flow as colour (Middlebury wheel), masks over photographs, the figure of a pair.

Tensors or NumPy arrays go in. Photographs are (H, W, 3) float in [0, 1] or uint8; all results are (H, W, 3) uint8.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
_SEGMENTS = (15, 6, 4, 11, 13, 6)  # red-yellow, yellow-green, green-cyan, cyan-blue, blue-magenta, magenta-red


def to_pixels(image: Any) -> Pixels:
    """A tensor (3, H, W) or array (H, W, 3), in [0, 1] or uint8, as (H, W, 3) uint8."""
    values = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] != 3:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"image: need (3, H, W) or (H, W, 3), got {values.shape}")
    if values.dtype == np.uint8:
        return values
    return (np.nan_to_num(values).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def colour_wheel() -> npt.NDArray[np.float64]:
    """(55, 3) in [0, 1]: the wheel of Baker et al., A Database and Evaluation Methodology for Optical Flow (2011)."""
    corners = np.array(((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0)), dtype=np.float64)
    parts = [
        corners[i] + (corners[i + 1] - corners[i]) * (np.arange(count) / count)[:, None]
        for i, count in enumerate(_SEGMENTS)
    ]
    return np.concatenate(parts)


def flow_to_colour(flow: Any, largest: float | None = None) -> Pixels:
    """Flow (2, H, W) in pixels as colour: hue is the direction, saturation the length; white is zero.

    largest: the length that is fully saturated; None: the 99 % quantile of the finite lengths. Longer ones are darker;
    positions that are not finite are black.
    """
    values = np.asarray(flow.detach().cpu() if hasattr(flow, "detach") else flow, dtype=np.float64)
    if values.ndim != 3 or values.shape[0] != 2:
        raise ValueError(f"flow: need (2, H, W), got {values.shape}")
    known: npt.NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=0))
    x, y = np.where(known, values, 0.0)
    length = np.hypot(x, y)
    if largest is None:
        largest = float(np.quantile(length[known], 0.99)) if known.any() else 1.0
    length = length / max(largest, 1e-6)
    wheel = colour_wheel()
    turn = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = np.floor(turn).astype(int)
    part = (turn - low)[..., None]
    colour = (1 - part) * wheel[low] + part * wheel[(low + 1) % len(wheel)]
    colour = np.where(length[..., None] <= 1, 1 - length[..., None] * (1 - colour), colour * 0.75)
    return to_pixels(np.where(known[..., None], colour, 0.0))


def overlay(image: Any, mask: Any, colour: tuple[float, float, float] = (1.0, 0.25, 0.1)) -> Pixels:
    """The photograph, dimmed and greyed outside the mask (H, W), in [0, 1] or bool, with a coloured outline."""
    photo = to_pixels(image).astype(np.float64) / 255
    weight = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask, dtype=np.float64)
    if weight.shape != photo.shape[:2]:
        raise ValueError(f"mask: need (H, W) = {photo.shape[:2]}, got {weight.shape}")
    grey = photo.mean(2, keepdims=True) * 0.5 + 0.1
    result = weight[..., None] * photo + (1 - weight[..., None]) * grey
    inside = weight >= 0.5
    edge = np.zeros_like(inside)
    edge[1:] |= inside[1:] != inside[:-1]
    edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
    result[edge] = colour
    return to_pixels(result)


def grey_map(values: Any) -> Pixels:
    """(H, W) in [0, 1] as grey."""
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    return to_pixels(np.repeat(array[..., None], 3, axis=2))


def colour_map(values: Any, name: str = "viridis") -> Pixels:
    """(H, W) in [0, 1] through a matplotlib colour map."""
    import matplotlib

    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    return to_pixels(matplotlib.colormaps[name](np.nan_to_num(array).clip(0, 1))[..., :3])


def pair_figure(panels: list[tuple[str, Pixels]], path: Path | str, columns: int = 6, dpi: int = 100) -> None:
    """Writes a figure of titled pictures, row by row, to `path` (its suffix chooses the format)."""
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    aspect = max(picture.shape[0] / picture.shape[1] for _, picture in panels)
    figure = Figure(figsize=(2.2 * columns, (2.2 * aspect + 0.3) * rows), dpi=dpi)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (title, picture) in zip(axes, panels, strict=False):
        axis.imshow(picture)
        axis.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(path)

"""Antialiased lines and dots: each pixel is covered by the part of it that lies within half the width."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Canvas = npt.NDArray[np.float64]


def draw_line(
    canvas: Canvas,
    start: Sequence[float],
    end: Sequence[float],
    colour: npt.NDArray[np.float64],
    width: float,
) -> None:
    """Draws from `start` to `end`, (x, y) in pixels, whose centres are integers, with round ends, into (H, W, 3).

    The cover of a pixel is width / 2 + 1/2 minus its distance to the segment, in [0, 1]. A segment without length is a
    dot. What lies outside the canvas is left out.
    """
    a, b = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
    along = int(abs(b[1] - a[1]) > abs(b[0] - a[0]))  # 0: one column after the other; 1: one row after the other
    if a[along] > b[along]:
        a, b = b, a
    step = b - a
    reach = width / 2 + 0.5
    size = (canvas.shape[1], canvas.shape[0])
    main = np.arange(max(0, int(np.ceil(a[along] - reach))), min(size[along] - 1, int(b[along] + reach)) + 1)
    if not len(main):
        return
    slope = step[1 - along] / step[along] if step[along] > 0 else 0.0
    # What lies within `reach` of a line of slope up to 1, or of its ends, lies within reach * sqrt(2) across.
    across = int(np.ceil(reach * np.sqrt(2.0)))
    middle = a[1 - along] + slope * (main - a[along])
    other = np.round(middle).astype(int)[:, None] + np.arange(-across, across + 1)
    points = np.empty((*other.shape, 2))
    points[..., along], points[..., 1 - along] = main[:, None], other
    length = float(step @ step)
    part = ((points - a) @ step / length).clip(0, 1) if length > 0 else np.zeros(other.shape)
    distance = np.sqrt(((points - a - part[..., None] * step) ** 2).sum(-1))
    cover = (reach - distance).clip(0, 1)
    cover[(other < 0) | (other >= size[1 - along])] = 0
    row, column = np.nonzero(cover)
    x, y = points[row, column].astype(int).T
    weight = cover[row, column][:, None]
    canvas[y, x] += weight * (colour - canvas[y, x])

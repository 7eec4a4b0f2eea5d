"""Pictures beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cosegflow.viz.arrays import Pixels, to_pixels
from cosegflow.viz.text import TEXT, paste, text_picture


def side_by_side(pictures: Sequence[Any], titles: Sequence[str] | None = None, gap: int = 4) -> Pixels:
    """Pictures in one row, aligned at the top, on white.

    Args:
        pictures: photographs or pictures, of any sizes, at least one.
        titles: one for each, above it (needs Pillow); one that is wider than its picture is cut off.
        gap: pixels between them.

    Raises:
        ValueError: no pictures, or not one title for each.
    """
    panels = [to_pixels(picture, f"pictures[{i}]") for i, picture in enumerate(pictures)]
    if not panels:
        raise ValueError("pictures: need at least one, got none")
    if titles is not None and len(titles) != len(panels):
        raise ValueError(f"titles: need one for each of {len(panels)} pictures, got {len(titles)}")
    texts = [] if titles is None else [text_picture(title, TEXT) for title in titles]
    head = max((text.shape[0] for text in texts), default=0)
    width = sum(panel.shape[1] for panel in panels) + gap * (len(panels) - 1)
    canvas = np.full((head + max(panel.shape[0] for panel in panels), width, 3), 255, dtype=np.uint8)
    left = 0
    for index, panel in enumerate(panels):
        if texts:
            paste(canvas, texts[index][:, : panel.shape[1]], 0, left)
        paste(canvas, panel, head, left)
        left += panel.shape[1] + gap
    return canvas


def pair_figure(panels: list[tuple[str, Pixels]], path: Path | str, columns: int = 6, dpi: int = 100) -> None:
    """Writes a figure of titled pictures, row by row, to `path` (its suffix chooses the format).

    Raises:
        ValueError: no pictures, or no columns.
    """
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("panels: need at least one, got none")
    if columns < 1:
        raise ValueError(f"columns: need at least 1, got {columns}")
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

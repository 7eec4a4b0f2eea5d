"""Sparse matches as lines between two photographs."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cosegflow.viz.arrays import Pixels, inside, to_array, to_flow, to_pixels, to_plane
from cosegflow.viz.lines import draw_line
from cosegflow.viz.scalars import colour_map

Points = npt.NDArray[np.float64]
GAP = 6
"""White pixels between the photographs."""


class SparseMatches(NamedTuple):
    """A few of the matches of a flow; pixel centres are integers."""

    source: Points
    """(N, 2) x, y in pixels of a."""
    target: Points
    """(N, 2) x, y in pixels of b: where the source's position goes."""
    confidence: npt.NDArray[np.float64]
    """(N,) in [0, 1]; 1 where none was given."""


def sparse_matches(
    flow: Any,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    *,
    confidence: Any = None,
    mask_a: Any = None,
    mask_b: Any = None,
    grid_b: tuple[int, int] | None = None,
    count: int = 60,
    choose: str = "grid",
) -> SparseMatches:
    """About `count` matches p -> p + flow(p), evenly spread over a.

    A match is left out where the flow is not finite, the confidence is 0 or NaN, p lies off `mask_a`, or p + flow(p)
    lies outside of b or, rounded, off `mask_b`.

    Args:
        flow: (2, ha, wa): of every pixel of a, in pixels of b; or of a grid of features over a, in cells of `grid_b`.
        size_a, size_b: (H, W) of the photographs.
        confidence: (ha, wa) in [0, 1].
        mask_a: (ha, wa) in [0, 1] or bool; sources need 0.5.
        mask_b: (hb, wb), of b's pixels or of `grid_b`; targets need 0.5.
        grid_b: (hb, wb) of b's features where the flow is of a grid; then a position x becomes (x + 0.5) s - 0.5
            pixels, s pixels to a cell. None: `size_b`, and the flow must have `size_a`.
        count: about so many; at most so many with choose="confident".
        choose: "grid": the middle of each square of a regular grid; "confident": the most confident of each of twice
            as many squares, and of those the best.

    Raises:
        ValueError: wrong shapes or values; the message names the argument.
    """
    values = to_flow(flow)
    grid = values.shape[1:]
    if grid_b is None:
        if grid != tuple(size_a):
            raise ValueError(f"grid_b: need (h, w) of b's features where flow is {grid} and image_a is {size_a}")
        grid_b = size_b
    if choose not in ("grid", "confident"):
        raise ValueError(f'choose: need "grid" or "confident", got {choose!r}')
    if choose == "confident" and confidence is None:
        raise ValueError('confidence: need (h, w) where choose is "confident", got None')
    if count < 1:
        raise ValueError(f"count: need at least 1, got {count}")
    sure = np.ones(grid) if confidence is None else np.nan_to_num(to_plane(confidence, "confidence", grid)).clip(0, 1)
    y, x = np.mgrid[: grid[0], : grid[1]]
    target_x, target_y = values[0] + x, values[1] + y
    with np.errstate(invalid="ignore"):
        valid = (target_x >= 0) & (target_x <= grid_b[1] - 1) & (target_y >= 0) & (target_y <= grid_b[0] - 1)
    valid &= (sure > 0) & inside(mask_a, "mask_a", grid)
    allowed_b = inside(mask_b, "mask_b", grid_b)
    rows, columns = (np.where(valid, at, 0).round().astype(int) for at in (target_y, target_x))
    valid &= allowed_b[rows, columns]
    picked = _middles(valid, count) if choose == "grid" else _best(valid, sure, count)
    row, column = picked.T
    source = np.stack((column, row), 1)
    target = np.stack((target_x[row, column], target_y[row, column]), 1)
    return SparseMatches(_pixels(source, grid, size_a), _pixels(target, grid_b, size_b), sure[row, column])


def draw_matches(
    image_a: Any, image_b: Any, matches: SparseMatches, *, name: str = "plasma", width: float = 1.2
) -> Pixels:
    """Two photographs side by side with a line for each match, from a dot at its source to a dot at its target.

    Args:
        image_a, image_b: photographs of any sizes; the lower one has white below it.
        matches: sources, targets and confidences; see `sparse_matches`. The most confident are drawn last.
        name: a matplotlib colour map, from confidence 0 to 1.
        width: of the lines, in pixels.

    Returns:
        (max(Ha, Hb), Wa + 6 + Wb, 3): pixel (x, y) of b lies at (Wa + 6 + x, y).

    Raises:
        ValueError: wrong shapes, a confidence that is not finite, or a width that is not above 0.
    """
    a, b = to_pixels(image_a, "image_a"), to_pixels(image_b, "image_b")
    source, target = (to_array(v, n).astype(np.float64) for n, v in zip(("source", "target"), matches, strict=False))
    sure = to_array(matches.confidence, "confidence").astype(np.float64)
    for what, points in (("source", source), ("target", target)):
        if points.shape != (len(source), 2) or not np.isfinite(points).all():
            raise ValueError(f"matches.{what}: need finite (N, 2), N one number for all, got {points.shape}")
    if sure.shape != (len(source),) or not np.isfinite(sure).all():
        raise ValueError(f"matches.confidence: need finite ({len(source)},), got {sure.shape}")
    if not 0 < width < np.inf:
        raise ValueError(f"width: need more than 0 pixels, got {width!r}")
    shift = a.shape[1] + GAP
    canvas = np.full((max(a.shape[0], b.shape[0]), shift + b.shape[1], 3), 255.0)
    canvas[: a.shape[0], : a.shape[1]] = a
    canvas[: b.shape[0], shift:] = b
    if len(source):
        colours = colour_map(sure[None], name)[0].astype(np.float64)
        for index in np.argsort(sure, kind="stable"):
            start, end = source[index], target[index] + (shift, 0)
            draw_line(canvas, start, end, colours[index], width)
            for at in (start, end):
                draw_line(canvas, at, at, np.full(3, 255.0), 2.5 * width + 2.4)
                draw_line(canvas, at, at, colours[index], 2.5 * width)
    return (canvas + 0.5).astype(np.uint8)


def match_lines(
    image_a: Any,
    image_b: Any,
    flow: Any,
    confidence: Any = None,
    *,
    mask_a: Any = None,
    mask_b: Any = None,
    grid_b: tuple[int, int] | None = None,
    count: int = 60,
    choose: str = "grid",
    name: str = "plasma",
    width: float = 1.2,
) -> Pixels:
    """Two photographs with lines between matches: `draw_matches` of `sparse_matches`, whose arguments these are."""
    size_a, size_b = (to_pixels(i, n).shape[:2] for n, i in (("image_a", image_a), ("image_b", image_b)))
    found = sparse_matches(
        flow, size_a, size_b, confidence=confidence, mask_a=mask_a, mask_b=mask_b, grid_b=grid_b, count=count,
        choose=choose,
    )  # fmt: skip
    return draw_matches(image_a, image_b, found, name=name, width=width)


def _pixels(cells: npt.NDArray[Any], grid: tuple[int, int], size: tuple[int, int]) -> Points:
    """(N, 2) x, y of a grid's cells as pixels of a photograph."""
    return (cells + 0.5) * (size[1] / grid[1], size[0] / grid[0]) - 0.5


def _step(valid: npt.NDArray[np.bool_], count: int) -> int:
    """The side of a square that goes about `count` times into what is valid."""
    return max(1, round(float(np.sqrt(valid.sum() / count))))


def _middles(valid: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.int64]:
    """(N, 2) y, x of the valid positions of a regular grid."""
    step = _step(valid, count)
    chosen = np.zeros_like(valid)
    first = tuple(min(step // 2, side - 1) for side in valid.shape)
    chosen[first[0] :: step, first[1] :: step] = True
    return np.argwhere(chosen & valid)


def _best(valid: npt.NDArray[np.bool_], sure: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """(N, 2) y, x of the best position of each square, and of those the `count` best, in raster order."""
    step = _step(valid, 2 * count)
    places = np.argwhere(valid)
    order = np.argsort(-sure[tuple(places.T)], kind="stable")
    places = places[order]
    _, first = np.unique(places // step, axis=0, return_index=True)
    kept = places[np.sort(first)[:count]]
    return kept[np.lexsort((kept[:, 1], kept[:, 0]))]

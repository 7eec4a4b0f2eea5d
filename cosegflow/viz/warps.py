"""b seen in a's frame, and a and b laid over each other."""

from typing import Any

import numpy as np
import numpy.typing as npt

from cosegflow.viz.arrays import Pixels, inside, to_flow, to_pixels
from cosegflow.viz.layout import side_by_side


def hatch(size: tuple[int, int]) -> Pixels:
    """(H, W, 3): the light diagonal stripes that stand for pixels without a match; no photograph looks like it."""
    y, x = np.mgrid[: size[0], : size[1]]
    stripes = np.where((x + y) % 8 < 2, 200, 240).astype(np.uint8)
    return np.repeat(stripes[..., None], 3, axis=2)


def _warped(image_b: Any, flow: Any, mask_a: Any) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    import torch

    from cosegflow.ops.warp import warp

    values, b = to_flow(flow), to_pixels(image_b, "image_b")
    kept = inside(mask_a, "mask_a", values.shape[1:])
    source = torch.from_numpy(b.transpose(2, 0, 1).astype(np.float32) / 255)[None]
    moved, valid = warp(source, torch.from_numpy(values.astype(np.float32))[None], return_valid=True)
    shown = kept & valid[0].numpy()
    return np.where(shown[..., None], to_pixels(moved[0]), hatch(kept.shape)), shown


def warp_picture(image_b: Any, flow: Any, mask_a: Any = None) -> Pixels:
    """b warped onto a, (Ha, Wa, 3): b(p + flow(p)), bilinear; stripes (`hatch`) where there is no match.

    Args:
        image_b: a photograph.
        flow: (2, Ha, Wa) in pixels of b; no match where it is not finite or p + flow(p) lies outside of b.
        mask_a: (Ha, Wa) in [0, 1] or bool; no match where it is below 0.5.

    Raises:
        ValueError: wrong shapes.
    """
    return _warped(image_b, flow, mask_a)[0]


def blend(image_a: Any, image_b: Any, weight: float = 0.5) -> Pixels:
    """(1 - weight) a + weight b, of photographs of one size; weight in [0, 1]."""
    a, b = _of_one_size(image_a, image_b)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: need a number in [0, 1], got {weight!r}")
    return (a * (1 - weight) + b * weight + 0.5).astype(np.uint8)


def checkerboard(image_a: Any, image_b: Any, cells: int = 8) -> Pixels:
    """a and b in turn on squares, about `cells` along the longer side; the first square is of a.

    Edges that go on across the squares show that a and b lie well over each other.
    """
    a, b = _of_one_size(image_a, image_b)
    if cells < 1:
        raise ValueError(f"cells: need at least 1, got {cells!r}")
    side = max(1, round(max(a.shape[:2]) / cells))
    y, x = np.mgrid[: a.shape[0], : a.shape[1]] // side
    return np.where(((x + y) % 2 == 0)[..., None], a, b)


def warp_strip(image_a: Any, image_b: Any, flow: Any, mask_a: Any = None, *, titles: bool = True) -> Pixels:
    """a, b, b warped onto a, both blended and on a checkerboard, side by side; arguments as of `warp_picture`.

    The last two are of a alone where there is no match.
    """
    a = to_pixels(image_a, "image_a")
    if to_flow(flow).shape[1:] != a.shape[:2]:
        raise ValueError(f"flow: need (2, H, W) of image_a, {a.shape[:2]}, got {to_flow(flow).shape}")
    moved, shown = _warped(image_b, flow, mask_a)
    filled = np.where(shown[..., None], moved, a)
    panels = [a, to_pixels(image_b, "image_b"), moved, blend(a, filled), checkerboard(a, filled)]
    names = ("a", "b", "b warped onto a", "blend", "checkerboard")
    return side_by_side(panels, names if titles else None)


def _of_one_size(image_a: Any, image_b: Any) -> tuple[Pixels, Pixels]:
    a, b = to_pixels(image_a, "image_a"), to_pixels(image_b, "image_b")
    if a.shape != b.shape:
        raise ValueError(f"image_b: need the size of image_a, {a.shape[:2]}, got {b.shape[:2]}")
    return a, b

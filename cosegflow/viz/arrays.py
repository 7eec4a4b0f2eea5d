"""What the pictures take: tensors and arrays, checked by the name of the argument."""

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
OUTSIDE = 245
"""The light grey of what a mask leaves out."""


def to_array(values: Any, name: str) -> npt.NDArray[Any]:
    """A tensor or array as a NumPy array; tensors come to the CPU, bfloat16 becomes float32.

    Raises:
        ValueError: it is not numeric (or bool).
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: need real numbers, got dtype {array.dtype}")
    return array


def to_pixels(image: Any, name: str = "image") -> Pixels:
    """A photograph as (H, W, 3) uint8.

    Args:
        image: (3, H, W) or (H, W, 3), floating in [0, 1] (more is clipped, NaN is 0) or uint8. (3, W, 3) is (H, W, 3).
        name: what messages call it.

    Raises:
        ValueError: another shape, or integers that are not uint8.
    """
    values = to_array(image, name)
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] != 3:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] != 3 or 0 in values.shape:
        raise ValueError(f"{name}: need (3, H, W) or (H, W, 3), got {values.shape}")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind != "f":
        raise ValueError(f"{name}: need floating values in [0, 1] or uint8, got dtype {values.dtype}")
    return (np.nan_to_num(values).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def to_plane(values: Any, name: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.float64]:
    """(H, W) as float64; `size` is the (H, W) that it must have.

    Raises:
        ValueError: another shape.
    """
    plane = to_array(values, name).astype(np.float64)
    if plane.ndim != 2 or 0 in plane.shape or (size is not None and plane.shape != tuple(size)):
        raise ValueError(f"{name}: need (H, W){'' if size is None else f' = {tuple(size)}'}, got {plane.shape}")
    return plane


def to_flow(flow: Any) -> npt.NDArray[np.float64]:
    """(2, H, W) as float64.

    Raises:
        ValueError: another shape.
    """
    values = to_array(flow, "flow").astype(np.float64)
    if values.ndim != 3 or values.shape[0] != 2 or 0 in values.shape:
        raise ValueError(f"flow: need (2, H, W), got {values.shape}")
    return values


def inside(mask: Any, name: str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where a mask (H, W), in [0, 1] or bool, is at least 0.5; everywhere where it is None.

    Raises:
        ValueError: it has not the size.
    """
    if mask is None:
        return np.ones(size, dtype=np.bool_)
    return np.asarray(to_plane(mask, name, size) >= 0.5)

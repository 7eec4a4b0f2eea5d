"""Reads what accompanies photographs: masks, outlines, .flo flows, .mat and JSON files; every error names the file."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from cosegflow.data.errors import DatasetError

FLO_TAG = 202021.25
LARGEST_FLOW = 1e9
"""From this size on a component of a flow stands for "not known" (Middlebury's convention)."""
LARGEST_SIDE = 32768
ASPECT_TOLERANCE = 0.02

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]


def need_file(path: Path, dataset: str) -> None:
    """Raises a DatasetError where there is no such file."""
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        raise DatasetError(f"{dataset}: {path}: is a folder, need a file")
    if not os.path.exists(path):
        raise DatasetError(f"{dataset}: {path}: no such file")


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def read_mask(path: Path, dataset: str) -> Mask:
    """(H, W) bool, upright by EXIF; foreground is 1 or 255, or any label above 0.

    Images that reach half of their range (255 for 8 bits) are cut there, so that smoothed edges and JPEG's noise fall
    on the nearer side; others hold labels (0 and 1 in TSS's JODS), all above 0 are foreground. A palette's numbers
    are labels. Colour counts by its brightest channel, opacity does not count.

    Raises:
        DatasetError: missing, or not an image.
    """
    need_file(path, dataset)
    try:
        with Image.open(path) as picture:
            lossy = picture.format == "JPEG"
            upright = ImageOps.exif_transpose(picture)
            if upright.mode not in ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L"):
                upright = upright.convert("LA").getchannel(0) if upright.mode == "LA" else upright.convert("RGB")
            values = np.asarray(upright)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{dataset}: {path}: not a mask that Pillow can read ({first_line(error)})") from None
    if values.ndim == 3:
        values = values.max(-1)
    if values.dtype == np.bool_:
        return np.array(values)
    half = 128 if values.dtype == np.uint8 else 32768
    return np.asarray(values >= half if lossy or values.max(initial=0) >= half else values > 0)


def fit_mask(mask: Mask, size: tuple[int, int], path: Path, dataset: str) -> Mask:
    """The mask at the photograph's size (H, W), by its nearest neighbour where the sizes differ.

    Raises:
        DatasetError: height to width differs by more than 2 % and a pixel, so that it is another image's mask.
    """
    (height, width), (rows, columns) = size, mask.shape
    if (rows, columns) == (height, width):
        return mask
    if abs(rows * width - columns * height) > ASPECT_TOLERANCE * rows * width + max(height, width):
        raise DatasetError(
            f"{dataset}: {path}: the mask has {columns} x {rows} pixels and the photograph {width} x {height}; "
            "need one shape"
        )
    down = np.minimum(((np.arange(height) + 0.5) * rows / height).astype(np.int64), rows - 1)
    along = np.minimum(((np.arange(width) + 0.5) * columns / width).astype(np.int64), columns - 1)
    return np.asarray(mask[down[:, None], along])


def outline_mask(outline: Values, size: tuple[int, int], photograph: Path, dataset: str) -> Mask:
    """The pixels (H, W) whose centres lie in the polygon (N, 2) of x, y; what passes the image's edge is cut off.

    Raises:
        DatasetError: fewer than three corners.
    """
    from skimage.draw import polygon

    corners = outline[np.isfinite(outline).all(1)]
    if len(corners) < 3:
        raise DatasetError(f"{dataset}: {photograph}: its outline has {len(corners)} corners; need at least 3")
    mask = np.zeros(size, dtype=np.bool_)
    rows, columns = polygon(corners[:, 1], corners[:, 0], size)
    mask[rows, columns] = True
    return mask


def read_flo(path: Path, dataset: str) -> tuple[npt.NDArray[np.float32], Mask]:
    """Middlebury .flo: flow (2, H, W) float32, 0 where not known, and where it is known (H, W) bool.

    Layout: float32 202021.25, int32 width, int32 height, then height x width x (u, v), little endian; a component of
    1e9 or more, or one that is not finite, stands for "not known".

    Raises:
        DatasetError: missing, another tag, or not as many bytes as the header says.
    """
    need_file(path, dataset)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{dataset}: {path}: cannot be read ({error.strerror or error})") from None
    if len(data) < 12 or np.frombuffer(data, "<f4", 1)[0] != np.float32(FLO_TAG):
        raise DatasetError(f"{dataset}: {path}: not a .flo file (need the tag 202021.25 in front)")
    width, height = (int(v) for v in np.frombuffer(data, "<i4", 2, 4))
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise DatasetError(f"{dataset}: {path}: damaged .flo file ({width} x {height} pixels in its header)")
    if len(data) != 12 + 8 * width * height:
        raise DatasetError(
            f"{dataset}: {path}: damaged .flo file ({len(data)} bytes; {width} x {height} pixels need "
            f"{12 + 8 * width * height})"
        )
    flow = np.frombuffer(data, "<f4", offset=12).reshape(height, width, 2).transpose(2, 0, 1).astype(np.float32)
    with np.errstate(invalid="ignore"):
        known = (np.abs(flow) < LARGEST_FLOW).all(0)
    return np.where(known, flow, np.float32(0)), known


def read_mat(path: Path, dataset: str) -> dict[str, Any]:
    """The variables of a MATLAB file of version 4 to 7.

    Raises:
        DatasetError: missing or damaged, or of version 7.3 (HDF5).
    """
    from scipy.io import loadmat

    need_file(path, dataset)
    try:
        return dict(loadmat(path))
    except NotImplementedError:
        raise DatasetError(f"{dataset}: {path}: a MATLAB 7.3 file; need version 7 or older") from None
    except Exception as error:  # scipy raises anything from TypeError to zlib.error for damaged files
        raise DatasetError(f"{dataset}: {path}: damaged MATLAB file ({first_line(error)})") from None


def read_json(path: Path, dataset: str) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        DatasetError: missing, damaged, or something else than an object.
    """
    need_file(path, dataset)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{dataset}: {path}: damaged JSON file ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise DatasetError(f"{dataset}: {path}: need a JSON object, got {type(found).__name__}")
    return found


def as_points(values: Any, name: str, path: Path, dataset: str) -> Values:
    """(K, 2) float64 from an annotation's list of x, y; a row that is null, or has a NaN, becomes NaN.

    Raises:
        DatasetError: it is something else.
    """
    try:
        if isinstance(values, list):
            values = [(np.nan, np.nan) if row is None else row for row in values]
        points = np.array(values, dtype=np.float64)
        points = points.reshape(0, 2) if points.size == 0 else points
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] != 2 or np.isinf(points).any():
        raise DatasetError(f"{dataset}: {path}: {name}: need a list of x, y")
    points[np.isnan(points).any(1)] = np.nan
    return points


def as_box(values: Any, name: str, path: Path, dataset: str) -> Values:
    """(4,) float64 x0, y0, x1, y1.

    Raises:
        DatasetError: it is something else, or the corners are not in order.
    """
    try:
        box = np.array(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        box = np.zeros(0)
    if box.shape != (4,) or not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
        raise DatasetError(f"{dataset}: {path}: {name}: need a box x0, y0, x1, y1")
    return box

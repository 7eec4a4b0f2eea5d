"""Reads photographs of the user's own, with checks: any size, RGBA, grey, palette, 16 bit, EXIF orientation."""

import os
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from cosegflow.data.errors import DatasetError

SMALLEST = 16
LARGEST_PIXELS = 178_000_000
"""Pillow itself refuses a little more than this."""


class PhotographError(DatasetError):
    """A photograph that cannot be used; the message is one line that names the argument and the file."""


def read_photograph(path: str | Path, argument: str = "photograph") -> Tensor:
    """Reads a photograph as (3, H, W) float32 in [0, 1], upright (EXIF), RGB; transparency is put over white.

    Args:
        path: any format that Pillow reads.
        argument: the name of the command's argument, for messages.

    Raises:
        PhotographError: no such file, unreadable, not an image, smaller than 16 pixels, or more than 178 megapixels.
    """
    values = torch.from_numpy(_read(Path(path), argument, None)).permute(2, 0, 1).contiguous()
    return values.to(torch.float32).div_(255.0) if values.dtype == torch.uint8 else values


def read_reduced(path: str | Path, shorter: int, argument: str = "photograph") -> npt.NDArray[np.uint8]:
    """Reads a photograph as (h, w, 3) uint8, as `read_photograph` does, its shorter side at most `shorter` pixels.

    A JPEG is decoded at the reduced size, so that one of 20 megapixels needs little memory and time.

    Raises:
        PhotographError: as `read_photograph`.
    """
    values = _read(Path(path), argument, shorter)
    if values.dtype != np.uint8:
        values = (values * 255.0 + 0.5).astype(np.uint8)
    height, width = values.shape[:2]
    if min(height, width) <= shorter:
        return values
    factor = shorter / min(height, width)
    size = (max(shorter, round(width * factor)), max(shorter, round(height * factor)))
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _read(path: Path, argument: str, shorter: int | None) -> npt.NDArray:
    """(H, W, 3), uint8, or float32 in [0, 1] for more than 8 bits; a JPEG perhaps at less than its size."""
    if not os.path.exists(path):  # unlike Path.exists, False for a name that is too long
        raise PhotographError(f"{argument}: {path}: no such file")
    if os.path.isdir(path):
        raise PhotographError(f"{argument}: {path}: is a folder, need a photograph")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is LARGEST_PIXELS
            opened = Image.open(path)
        with opened as picture:
            if picture.width * picture.height > LARGEST_PIXELS:
                raise PhotographError(
                    f"{argument}: {path}: {picture.width} x {picture.height} pixels; at most 178 megapixels are read"
                )
            if min(picture.size) < SMALLEST:
                raise PhotographError(
                    f"{argument}: {path}: {picture.width} x {picture.height} pixels; "
                    f"need at least {SMALLEST} on each side"
                )
            if shorter is not None:
                # At least twice what is needed; the filter afterwards takes the rest without aliasing.
                picture.draft(picture.mode, (2 * shorter, 2 * shorter))
            return _to_rgb(ImageOps.exif_transpose(picture))
    except PhotographError:
        raise
    except UnidentifiedImageError:
        raise PhotographError(f"{argument}: {path}: not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise PhotographError(f"{argument}: {path}: too many pixels; at most 178 megapixels are read") from None
    except PermissionError:
        raise PhotographError(f"{argument}: {path}: permission denied") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PhotographError(f"{argument}: {path}: damaged or unreadable image ({reason})") from None


def _to_rgb(picture: Image.Image) -> npt.NDArray:
    """(H, W, 3) uint8, or float32 in [0, 1] for grey of more than 8 bits."""
    if picture.mode.startswith(("I", "F")):  # 16 or 32 bit grey; Pillow's own conversion to RGB would clip it
        grey = np.asarray(picture, dtype=np.float32)
        if not np.isfinite(grey).all():
            raise ValueError("pixel values that are not finite")
        top = 65535.0
        if picture.mode.startswith("F"):
            top = 1.0 if grey.max(initial=0.0) <= 1.0 else 255.0
        return np.repeat((grey / top).clip(0, 1)[..., None], 3, axis=2)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, rgba)
    return np.array(picture.convert("RGB"))

"""Reads photographs of the user's own, with checks: any size, RGBA, grey, palette, 16 bit, EXIF orientation."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

SMALLEST = 16
LARGEST_PIXELS = 200_000_000


class PhotographError(ValueError):
    """A photograph that cannot be used; the message is one line that names the argument and the file."""


def read_photograph(path: str | Path, argument: str = "photograph") -> Tensor:
    """Reads a photograph as (3, H, W) float32 in [0, 1], upright (EXIF), RGB; transparency is put over white.

    Args:
        path: any format that Pillow reads.
        argument: the name of the command's argument, for messages.

    Raises:
        PhotographError: no such file, unreadable, not an image, smaller than 16 pixels, or more than 200 megapixels.
    """
    path = Path(path)
    if not path.exists():
        raise PhotographError(f"{argument}: {path}: no such file")
    if path.is_dir():
        raise PhotographError(f"{argument}: {path}: is a folder, need a photograph")
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > LARGEST_PIXELS:
                raise PhotographError(
                    f"{argument}: {path}: {picture.width} x {picture.height} pixels; at most 200 megapixels are read"
                )
            if min(picture.size) < SMALLEST:
                raise PhotographError(
                    f"{argument}: {path}: {picture.width} x {picture.height} pixels; "
                    f"need at least {SMALLEST} on each side"
                )
            values = _to_rgb(ImageOps.exif_transpose(picture))
    except PhotographError:
        raise
    except UnidentifiedImageError:
        raise PhotographError(f"{argument}: {path}: not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise PhotographError(f"{argument}: {path}: too many pixels; at most 200 megapixels are read") from None
    except PermissionError:
        raise PhotographError(f"{argument}: {path}: permission denied") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PhotographError(f"{argument}: {path}: damaged or unreadable image ({reason})") from None
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _to_rgb(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
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
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / np.float32(255.0)

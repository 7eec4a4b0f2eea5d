"""Small text as a picture. Needs Pillow."""

import numpy as np

from cosegflow.viz.arrays import Pixels

TEXT = 12
"""Height of text in pixels: what is still read on a telephone."""


def text_picture(text: str, size: int = TEXT) -> Pixels:
    """One line of dark text on white, (h, w, 3), cut to what it covers, as high for every text of one size."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Ag|")
    canvas = Image.new("RGB", (max(1, int(np.ceil(right - left))), int(np.ceil(bottom - top))), "white")
    ImageDraw.Draw(canvas).text((-left, -top), text, fill=(34, 34, 34), font=font)
    return np.asarray(canvas)


def paste(canvas: Pixels, picture: Pixels, top: int, left: int) -> None:
    """Puts `picture` into `canvas`; what does not fit is cut off."""
    height, width = min(picture.shape[0], canvas.shape[0] - top), min(picture.shape[1], canvas.shape[1] - left)
    canvas[top : top + height, left : left + width] = picture[:height, :width]


def short(value: float) -> str:
    """A number as text, three digits."""
    return f"{value:.3g}"

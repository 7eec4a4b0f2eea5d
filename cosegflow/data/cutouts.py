"""Cut-outs from the photographs inside scikit-image's wheel, for machines that have no stamps.

The outlines were drawn by hand. `random_patches` adds smooth random shapes cut from textured photographs, so that there
is more to learn from than a handful of objects.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Point = tuple[float, float]


@dataclass(frozen=True)
class CutOut:
    """An outline in a photograph of scikit-image."""

    name: str
    category: str
    photograph: str
    outline: tuple[Point, ...] = field(repr=False)
    """(x, y) corners in pixels of the photograph."""
    held_out: bool = False


def _ellipse(x: float, y: float, rx: float, ry: float) -> tuple[Point, ...]:
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return tuple((float(x + rx * np.cos(t)), float(y + ry * np.sin(t))) for t in angles)


# fmt: off
OUTLINES = (
    CutOut("cat", "cat", "chelsea.png", (
        (0, 60), (12, 0), (235, 0), (330, 40), (375, 5), (385, 60), (345, 110), (362, 160), (330, 190), (310, 240),
        (290, 270), (240, 292), (170, 299), (0, 299))),
    CutOut("coffee", "cup", "coffee.png", (
        (175, 60), (215, 28), (290, 18), (360, 35), (398, 75), (440, 110), (475, 190), (478, 250), (450, 310),
        (400, 350), (330, 380), (270, 387), (210, 370), (150, 330), (105, 275), (80, 210), (85, 150), (110, 110),
        (165, 95))),
    CutOut("motorcycle", "motorcycle", "motorcycle_left.png", (
        (95, 205), (130, 215), (150, 160), (185, 155), (240, 190), (330, 200), (400, 155), (470, 130), (490, 100),
        (530, 95), (565, 130), (555, 170), (590, 260), (640, 290), (640, 315), (680, 380), (670, 430), (640, 448),
        (590, 430), (560, 380), (520, 300), (490, 330), (450, 380), (340, 385), (330, 430), (310, 420), (300, 375),
        (240, 370), (200, 400), (150, 380), (125, 330), (125, 270), (100, 240))),
    CutOut("astronaut", "person", "astronaut.png", (
        (150, 95), (152, 55), (175, 25), (220, 12), (270, 25), (298, 60), (300, 110), (285, 160), (305, 200),
        (305, 260), (345, 285), (365, 345), (310, 365), (285, 400), (275, 450), (285, 511), (30, 511), (60, 440),
        (28, 360), (50, 280), (110, 240), (115, 180), (160, 150), (185, 150)), True),
    CutOut("photographer", "person", "camera.png", (
        (165, 85), (185, 65), (240, 65), (268, 100), (265, 135), (325, 145), (330, 175), (325, 210), (300, 250),
        (230, 290), (205, 310), (140, 370), (150, 511), (60, 511), (5, 430), (0, 250), (30, 210), (75, 150),
        (160, 120)), True),
    CutOut("shuttle", "shuttle", "astronaut.png", (
        (395, 0), (430, 0), (440, 35), (455, 60), (460, 270), (380, 280), (352, 240), (362, 190), (375, 150),
        (365, 60), (378, 20)), True),
    CutOut("helmet", "helmet", "astronaut.png", _ellipse(392, 440, 108, 97), True),
)
# fmt: on

BACKGROUNDS = (
    ("brick.png", False),
    ("coins.png", False),
    ("grass.png", False),
    ("hubble_deep_field.jpg", False),
    ("rocket.jpg", False),
    ("microaneurysms.png", False),
    ("gravel.png", True),
    ("moon.png", True),
    ("page.png", True),
    ("retina.jpg", True),
)
"""(file, held out)."""

PATCH_SOURCES = (
    ("chelsea.png", "fur"),
    ("coffee.png", "table"),
    ("ihc.png", "tissue"),
    ("motorcycle_left.png", "garage"),
)


def photograph_folder() -> Path:
    """The folder of the photographs inside scikit-image's wheel.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    found = find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'skimage'", name="skimage")
    return Path(found.submodule_search_locations[0]) / "data"


def random_patches(count: int = 5, seed: int = 7) -> list[CutOut]:
    """`count` star-shaped smooth outlines in each textured training photograph, always the same for one seed."""
    rng = np.random.default_rng(seed)
    patches = []
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    for file, category in PATCH_SOURCES:
        with Image.open(photograph_folder() / file) as picture:
            width, height = picture.size
        for i in range(count):
            radius = rng.uniform(0.22, 0.35) * min(width, height)
            waves = [rng.normal(0, 0.25 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in range(2, 6)]
            radii = radius * np.clip(1 + sum(waves), 0.4, 1.6)
            x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
            xs = np.clip(x + radii * np.cos(angles), 0, width - 1)
            ys = np.clip(y + radii * np.sin(angles), 0, height - 1)
            outline = tuple((float(u), float(v)) for u, v in zip(xs, ys, strict=True))
            patches.append(CutOut(f"{category}-{i}", category, file, outline))
    return patches


def cut_out(cut: CutOut, longest: int) -> npt.NDArray[np.uint8]:
    """The cut-out (h, w, 4) uint8 with a soft edge, reduced to at most `longest` pixels."""
    with Image.open(photograph_folder() / cut.photograph) as picture:
        photo = picture.convert("RGBA")
    alpha = Image.new("L", photo.size, 0)
    ImageDraw.Draw(alpha).polygon(list(cut.outline), fill=255)
    photo.putalpha(alpha.filter(ImageFilter.GaussianBlur(1.0)))
    xs, ys = [x for x, _ in cut.outline], [y for _, y in cut.outline]
    box = (max(0, int(min(xs)) - 4), max(0, int(min(ys)) - 4))
    photo = photo.crop((*box, min(photo.width, int(max(xs)) + 5), min(photo.height, int(max(ys)) + 5)))
    photo.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return np.asarray(photo, dtype=np.uint8)

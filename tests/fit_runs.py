"""Small training runs for the tests: a folder of drawn photographs and the options of a tiny model."""

from pathlib import Path

import numpy as np
from PIL import Image

TINY = [
    "--model.backbone", "tiny", "--model.image_size", "64", "--data.size", "64", "--data.batch", "2",
    "--data.workers", "0", "--data.validation", "0", "--train.contrast_size", "32", "--train.accelerator", "cpu",
]  # fmt: skip


def draw_folder(root: Path, categories: int = 2, photographs: int = 5, size: int = 72) -> Path:
    """`root`/kind0, kind1, ...: a textured square on smooth ground; the texture is the category's."""
    for category in range(categories):
        folder = root / f"kind{category}"
        folder.mkdir(parents=True)
        texture = np.random.default_rng((category, 0)).integers(0, 256, (30, 30, 3), dtype=np.uint8)
        for number in range(photographs):
            rng = np.random.default_rng((category, number, 1))
            corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
            picture = np.array(corners.resize((size, size), Image.Resampling.BICUBIC))
            y, x = rng.integers(0, size - 30, 2)
            picture[y : y + 30, x : x + 30] = texture
            Image.fromarray(picture).save(folder / f"photo [{number}].png")
    return root


def fit_options(photographs: Path, out: Path, *options: object) -> list[str]:
    """The arguments of `cosegflow fit` on a folder of photographs."""
    data = ["--data.dataset", "folder", "--data.root", str(photographs), "--out", str(out)]
    return ["fit", *TINY, *data, *map(str, options)]

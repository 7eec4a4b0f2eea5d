"""Makes the pictures of docs/gallery.md, by its own code blocks.

    PYTHONPATH=. python docs/images/make_gallery.py

The blocks run in order in one namespace. Where an image follows a block, it shows what that block left in `picture`.
Photographs: those of scikit-image's wheel that its notes call CC0 or public domain.
"""

import re
from pathlib import Path
from typing import Any

from PIL import Image

from cosegflow.viz import Pixels

DOCS = Path(__file__).resolve().parents[1]
PAGE = DOCS / "gallery.md"
BLOCK_OR_IMAGE = re.compile(r"^```python\n(.*?)^```$|^!\[[^\]]+\]\(([^)]+)\)$", re.MULTILINE | re.DOTALL)


def render(page: Path = PAGE) -> dict[Path, Pixels]:
    """Runs the page's blocks: the path below docs/ of each image, and the picture."""
    names: dict[str, Any] = {}
    pictures: dict[Path, Pixels] = {}
    for found in BLOCK_OR_IMAGE.finditer(page.read_text(encoding="utf-8")):
        block, image = found.groups()
        if block is not None:
            exec(compile(block, str(page), "exec"), names)
        else:
            pictures[Path(image)] = names.pop("picture")
    return pictures


def save(picture: Pixels, path: Path) -> None:
    """Photographs as JPEG, all else as PNG, by the path's suffix."""
    options = {"quality": 82} if path.suffix == ".jpg" else {}
    Image.fromarray(picture).save(path, optimize=True, **options)


def main() -> None:
    """Writes the pictures and removes those that the page does not show."""
    pictures = render()
    for path, picture in pictures.items():
        save(picture, DOCS / path)
        print(f"{path}: {picture.shape[1]} x {picture.shape[0]}, {(DOCS / path).stat().st_size} bytes")
    for stale in {p.relative_to(DOCS) for p in (DOCS / "images/gallery").iterdir()} - pictures.keys():
        (DOCS / stale).unlink()


if __name__ == "__main__":
    main()

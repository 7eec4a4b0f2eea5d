"""Folders of photographs: which files count, and the pairs of a data set that names none."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from cosegflow.data.entries import PairEntry
from cosegflow.data.errors import DatasetError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"}
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".pgm", ".jpg", ".jpeg")


@dataclass(frozen=True)
class MaskedPhotograph:
    """A photograph and, where it is known, the file of its mask."""

    image: Path
    mask: Path | None = None


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones and macOS's __MACOSX; none where it cannot be read."""
    return sorted(path for path in _children(folder) if path.is_dir() and path.name != "__MACOSX")


def list_photographs(folder: Path) -> list[Path]:
    """The photographs in a folder, by name, without those in folders below it; hidden files are left out.

    A link that leads nowhere counts, so that reading it names it.
    """
    named = (path for path in _children(folder) if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in named if path.is_file() or (path.is_symlink() and not path.exists()))


def _children(folder: Path) -> list[Path]:
    # iterdir, not glob: brackets in a folder's name are no pattern
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError:
        return []


def mask_of(image: Path, folder: Path) -> Path:
    """The mask of a photograph: the file of its stem in `folder`, with any usual suffix; .png where there is none."""
    for suffix in MASK_SUFFIXES:
        path = folder / f"{image.stem}{suffix}"
        if os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
            return path
    return folder / f"{image.stem}.png"


def pairs_within_categories(dataset: str, categories: dict[str, list[MaskedPhotograph]]) -> list[PairEntry]:
    """Each photograph once as a, with the next one of its category as b; the last one's partner is the first.

    Raises:
        DatasetError: no category, or one with fewer than two photographs; it names the category.
    """
    if not categories:
        raise DatasetError(f"{dataset}: need a folder of photographs for each category, got none")
    entries = []
    for category, items in categories.items():
        if len(items) < 2:
            found = f"only {items[0].image.name}" if items else "none"
            raise DatasetError(f"{dataset}: category {category}: need at least two photographs, got {found}")
        for first, second in zip(items, items[1:] + items[:1], strict=True):
            name = f"{category}/{first.image.name}-{second.image.name}"  # with suffixes: a.jpg and a.png may both exist
            entries.append(PairEntry(name, category, first.image, second.image, mask_a=first.mask, mask_b=second.mask))
    return entries


def images_of(categories: dict[str, list[MaskedPhotograph]]) -> dict[str, list[Path]]:
    """The photographs without their masks."""
    return {category: [item.image for item in items] for category, items in categories.items()}


def large_enough(dataset: str, categories: dict[str, list[Path]], count: int) -> dict[str, list[Path]]:
    """The categories of at least `count` photographs; the others are named in one warning.

    Raises:
        DatasetError: none is left.
    """
    kept = {category: paths for category, paths in categories.items() if len(paths) >= count}
    dropped = [f"{category} ({len(paths)})" for category, paths in categories.items() if category not in kept]
    if not kept:
        got = f"got {', '.join(dropped[:5])}" if dropped else "got no category"
        raise DatasetError(f"{dataset}: training needs a category of at least {count} photographs, {got}")
    if dropped:
        more = f" and {len(dropped) - 5} more" if len(dropped) > 5 else ""
        warnings.warn(
            f"{dataset}: left out, fewer than {count} photographs: {', '.join(dropped[:5])}{more}", stacklevel=3
        )
    return kept

"""Photographs of your own: one folder for each category, ``<category>/*.jpg``; the folder's name is the class label.

Masks are optional: ``<category>/GroundTruth/<stem of the photograph>.png``.
"""

from pathlib import Path

from cosegflow.data.entries import FilePairs
from cosegflow.data.errors import DatasetError
from cosegflow.data.folders import (
    MaskedPhotograph,
    images_of,
    list_folders,
    list_photographs,
    mask_of,
    pairs_within_categories,
)
from cosegflow.data.photograph_source import PhotographSource

NAME = "folder"
SPLITS: tuple[str, ...] = ("test",)
FULL_SIZE: dict[str, int] = {}
TRUTH = "GroundTruth"


def is_here(root: Path) -> bool:
    """Whether a folder there has photographs directly in it."""
    return any(list_photographs(folder) for folder in list_folders(root))


def splits_here(root: Path) -> tuple[str, ...]:
    """The splits whose pairs are there."""
    return SPLITS if is_here(root) else ()


def open_pairs(root: Path, pairs: Path | None, split: str, both_directions: bool) -> FilePairs:
    """Each photograph once as a, with the next one of its category as b; masks where the category has GroundTruth.

    Raises:
        DatasetError: no folder, or a category with fewer than two photographs.
    """
    return FilePairs(NAME, root, pairs_within_categories(NAME, _categories(root)), both_directions=both_directions)


def open_source(root: Path, pairs: Path | None, split: str | None) -> PhotographSource:
    """All photographs by category."""
    return PhotographSource(NAME, images_of(_categories(root)))


def _categories(root: Path) -> dict[str, list[MaskedPhotograph]]:
    folders = list_folders(root)
    if not folders:
        loose = f", got {len(list_photographs(root))} photographs that lie loose" if list_photographs(root) else ""
        raise DatasetError(f"{NAME}: {root}: need a folder of photographs for each category{loose}")
    found = {}
    for folder in folders:
        truth = folder / TRUTH
        photographs = list_photographs(folder)
        if truth.is_dir():
            found[folder.name] = [MaskedPhotograph(path, mask_of(path, truth)) for path in photographs]
        else:
            found[folder.name] = [MaskedPhotograph(path) for path in photographs]
    return found

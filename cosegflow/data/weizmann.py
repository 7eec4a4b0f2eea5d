"""Weizmann horses (Borenstein and Ullman 2002): photographs of horses with masks.

Layout: ``[weizmann_horse_db/]{horse_test,mask_test}/*.png`` and ``{horse_train,mask_train}``, or one pair of folders
without a split, ``horse`` and ``mask``, or ``rgb`` and ``figure_ground``. A mask has its photograph's stem.
"""

from pathlib import Path

from cosegflow.data.entries import FilePairs
from cosegflow.data.errors import DatasetError
from cosegflow.data.folders import MaskedPhotograph, list_photographs, mask_of, pairs_within_categories
from cosegflow.data.photograph_source import PhotographSource

NAME = "weizmann-horse"
SPLITS: tuple[str, ...] = ("test", "train")
FULL_SIZE: dict[str, int] = {"test": 49, "train": 278}
CONTAINER = "weizmann_horse_db"
CATEGORY = "horse"
UNSPLIT = (("horse", "mask"), ("rgb", "figure_ground"))


def is_here(root: Path) -> bool:
    """Whether a folder of horses is there beside one of masks."""
    return any(_folders(root, split) is not None for split in SPLITS)


def splits_here(root: Path) -> tuple[str, ...]:
    """The splits whose pairs are there."""
    return tuple(split for split in SPLITS if _folders(root, split))


def open_pairs(root: Path, pairs: Path | None, split: str, both_directions: bool) -> FilePairs:
    """Each photograph of the split once as a, with the next one as b. Without splits all are the test split.

    Raises:
        DatasetError: the split is not there, or has fewer than two photographs.
    """
    found = _folders(root, split)
    if found is None:
        raise DatasetError(f"{NAME}: {root}: need the folders horse_{split} and mask_{split} there")
    images, masks = found
    items = [MaskedPhotograph(path, mask_of(path, masks)) for path in list_photographs(images)]
    entries = pairs_within_categories(NAME, {CATEGORY: items})
    return FilePairs(NAME, root, entries, both_directions=both_directions)


def open_source(root: Path, pairs: Path | None, split: str | None) -> PhotographSource:
    """The photographs of the split; by default of train where it is there, else of test."""
    chosen = split or ("train" if _folders(root, "train") else "test")
    found = _folders(root, chosen)
    if found is None:
        raise DatasetError(f"{NAME}: {root}: need the folder horse_{chosen} there")
    return PhotographSource(NAME, {CATEGORY: list_photographs(found[0])})


def _folders(root: Path, split: str) -> tuple[Path, Path] | None:
    base = root / CONTAINER if (root / CONTAINER).is_dir() else root
    names = [(f"horse_{split}", f"mask_{split}")]
    if split == "test":
        names += UNSPLIT
    for images, masks in names:
        if (base / images).is_dir() and (base / masks).is_dir():
            return base / images, base / masks
    return None

"""Caltech-101 in weakalign's protocol: 1515 pairs with the objects' outlines as polygons.

Layout: ``101_ObjectCategories/<category>/*.jpg`` and one list of pairs ``*.csv`` whose XA;YA and XB;YB are polygons.
The category is the name of the source image's folder. A mask is the set of pixels in the polygon.
"""

from pathlib import Path

from cosegflow.data.entries import FilePairs, PairEntry
from cosegflow.data.errors import DatasetError
from cosegflow.data.folders import list_folders, list_photographs
from cosegflow.data.pairs_csv import find_pairs_csv, first_source, list_pairs_csv, read_pairs_csv, row_name
from cosegflow.data.photograph_source import PhotographSource

NAME = "caltech-101"
SPLITS: tuple[str, ...] = ("test", "train")
FULL_SIZE = {"test": 1515}
PHOTOGRAPHS = "101_ObjectCategories"
NO_CATEGORY = "BACKGROUND_Google"


def is_here(root: Path) -> bool:
    """Whether the folder of photographs, or a list that names it, is there."""
    if (root / PHOTOGRAPHS).is_dir():
        return True
    return any(first_source(path).startswith(f"{PHOTOGRAPHS}/") for path in list_pairs_csv(root))


def splits_here(root: Path) -> tuple[str, ...]:
    """The splits whose pairs are there."""
    return ("test",) if list_pairs_csv(root) else ()


def open_pairs(root: Path, pairs: Path | None, split: str, both_directions: bool) -> FilePairs:
    """The pairs of the list, with masks.

    Raises:
        DatasetError: the split "train", which has no pairs; not one list in `root`; no outlines; an unreadable row.
    """
    if split != "test":
        raise DatasetError(f"{NAME}: split: only test has pairs; {split!r} is for training")
    path = pairs or find_pairs_csv(root, NAME)
    entries = []
    for row in read_pairs_csv(path, NAME, outlines=True):
        if row.points_a is None or row.points_b is None:
            raise DatasetError(f"{NAME}: {path}: need outlines: columns XA, YA, XB and YB")
        category = Path(row.source).parent.name or row.label
        image_a, image_b = root / row.source, root / row.target
        entries.append(
            PairEntry(row_name(row), category, image_a, image_b, outline_a=row.points_a, outline_b=row.points_b)
        )
    return FilePairs(NAME, root, entries, both_directions=both_directions)


def open_source(root: Path, pairs: Path | None, split: str | None) -> PhotographSource:
    """Photographs by category: all (None), those that no test pair shows ("train"), or those of the pairs ("test").

    Raises:
        DatasetError: no folder of photographs; for "train" and "test" also as in `open_pairs`.
    """
    listed = {} if split is None else open_pairs(root, pairs, "test", False).photographs()
    if split == "test":
        return PhotographSource(NAME, listed)
    folders = [folder for folder in list_folders(root / PHOTOGRAPHS) if folder.name != NO_CATEGORY]
    if not folders:
        raise DatasetError(f"{NAME}: {root}: need {PHOTOGRAPHS}/<category>/*.jpg there")
    shown = {path for paths in listed.values() for path in paths}
    return PhotographSource(
        NAME, {folder.name: [path for path in list_photographs(folder) if path not in shown] for folder in folders}
    )

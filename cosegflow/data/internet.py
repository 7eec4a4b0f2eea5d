"""Internet images (Rubinstein et al. 2013): three categories of 100 photographs with masks.

Layout: ``[Data/]{Airplane100,Car100,Horse100}/*.jpg`` with ``GroundTruth/*.png`` in each. Some photographs show no
object: their masks are empty, and they stay in the set.
"""

from pathlib import Path

from cosegflow.data.entries import FilePairs
from cosegflow.data.errors import DatasetError
from cosegflow.data.folders import MaskedPhotograph, images_of, list_photographs, mask_of, pairs_within_categories
from cosegflow.data.photograph_source import PhotographSource

NAME = "internet"
SPLITS: tuple[str, ...] = ("test",)
FULL_SIZE = {"test": 300}
CATEGORIES = ("Airplane100", "Car100", "Horse100")
TRUTH = "GroundTruth"


def is_here(root: Path) -> bool:
    """Whether one of the three categories is there."""
    return _base(root) is not None


def splits_here(root: Path) -> tuple[str, ...]:
    """The splits whose pairs are there."""
    return SPLITS if is_here(root) else ()


def open_pairs(root: Path, pairs: Path | None, split: str, both_directions: bool) -> FilePairs:
    """Each photograph once as a, with the next one of its category as b.

    Raises:
        DatasetError: none of the categories, or one with fewer than two photographs.
    """
    return FilePairs(NAME, root, pairs_within_categories(NAME, _categories(root)), both_directions=both_directions)


def open_source(root: Path, pairs: Path | None, split: str | None) -> PhotographSource:
    """All photographs by category; their masks are not read."""
    return PhotographSource(NAME, images_of(_categories(root)))


def _base(root: Path) -> Path | None:
    for base in (root, root / "Data"):
        if any((base / category).is_dir() for category in CATEGORIES):
            return base
    return None


def _categories(root: Path) -> dict[str, list[MaskedPhotograph]]:
    base = _base(root)
    if base is None:
        raise DatasetError(f"{NAME}: {root}: need the folders {', '.join(CATEGORIES)} there, got none of them")
    found = {}
    for category in CATEGORIES:
        folder = base / category
        if folder.is_dir():
            found[category] = [MaskedPhotograph(p, mask_of(p, folder / TRUTH)) for p in list_photographs(folder)]
    return found

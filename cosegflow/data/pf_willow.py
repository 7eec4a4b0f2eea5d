"""PF-WILLOW (Ham et al. 2016): photographs with ten key points each.

Layout: ``PF-dataset/<class>/*.png`` and one list of pairs ``*.csv`` (either form of `pairs_csv`), 450 rows officially.
The category is the name of the source image's folder, such as ``car(S)``.
"""

from pathlib import Path

from cosegflow.data.entries import FilePairs, PairEntry
from cosegflow.data.errors import DatasetError
from cosegflow.data.pairs_csv import find_pairs_csv, first_source, list_pairs_csv, read_pairs_csv, row_name
from cosegflow.data.photograph_source import PhotographSource

NAME = "pf-willow"
SPLITS: tuple[str, ...] = ("test",)
FULL_SIZE = {"test": 450}


def is_here(root: Path) -> bool:
    """Whether the folder of photographs, or a list that names it, is there."""
    if any((root / name).is_dir() for name in ("PF-dataset", "PF-dataset-WILLOW")):
        return True
    return any(first_source(path).startswith(("PF-dataset/", "PF-dataset-WILLOW/")) for path in list_pairs_csv(root))


def splits_here(root: Path) -> tuple[str, ...]:
    """The splits whose pairs are there."""
    return SPLITS if list_pairs_csv(root) else ()


def open_pairs(root: Path, pairs: Path | None, split: str, both_directions: bool) -> FilePairs:
    """The pairs of the list: 450 as written, 900 with `both_directions`.

    Raises:
        DatasetError: not one list of pairs in `root`, or one without key points, or a row that cannot be read.
    """
    path = pairs or find_pairs_csv(root, NAME)
    entries = []
    for row in read_pairs_csv(path, NAME):
        if row.points_a is None or row.points_b is None:
            raise DatasetError(f"{NAME}: {path}: need key points: columns XA, YA, XB, YB or XA1 .. YB10")
        image_a, image_b = root / row.source, root / row.target
        category = Path(row.source).parent.name or row.label
        entries.append(
            PairEntry(row_name(row), category, image_a, image_b, keypoints_a=row.points_a, keypoints_b=row.points_b)
        )
    return FilePairs(NAME, root, entries, both_directions=both_directions)


def open_source(root: Path, pairs: Path | None, split: str | None) -> PhotographSource:
    """All photographs of the list by category."""
    return PhotographSource(NAME, open_pairs(root, pairs, "test", False).photographs())

"""PF-PASCAL (Ham et al. 2017): photographs of the 20 PASCAL classes with key points and boxes.

Layout: ``PF-dataset-PASCAL/JPEGImages/*.jpg``, ``PF-dataset-PASCAL/Annotations/<class>/*.mat`` (optional; ``kps``
N x 2 with NaN, ``bbox``), and lists of pairs: test.csv (299 pairs), eval.csv or val.csv, train.csv. Where none of these
is there, the one CSV of pairs is the test list. The training list
has no key points and a column ``flip``: 1 asks for the mirror images of both photographs.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cosegflow.data.annotations import Values, as_box, as_points, read_mat
from cosegflow.data.entries import FilePairs, PairEntry
from cosegflow.data.errors import DatasetError
from cosegflow.data.pairs_csv import PairRow, first_source, list_pairs_csv, read_pairs_csv, row_name
from cosegflow.data.photograph_source import PhotographSource

NAME = "pf-pascal"
SPLITS: tuple[str, ...] = ("test", "val", "train")
FULL_SIZE = {"test": 299, "val": 308}
LISTS = {
    "test": ("test.csv", "test_pairs.csv", "test_pairs_pf_pascal.csv"),
    "val": ("eval.csv", "val.csv", "val_pairs.csv", "val_pairs_pf_pascal.csv"),
    "train": ("train.csv", "trn_pairs.csv", "train_pairs.csv", "trn_pairs_pf_pascal.csv"),
}
PHOTOGRAPHS = "PF-dataset-PASCAL"
LIST_FOLDERS = ("", "image_pairs", PHOTOGRAPHS)
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""PASCAL VOC's classes; the lists number them from 1."""


def is_here(root: Path) -> bool:
    """Whether the folder of photographs, or a list that names it, is there."""
    if (root / PHOTOGRAPHS).is_dir():
        return True
    return any(first_source(path).startswith(f"{PHOTOGRAPHS}/") for path in list_pairs_csv(root))


def splits_here(root: Path) -> tuple[str, ...]:
    """The splits whose pairs are there."""
    return tuple(split for split in SPLITS if _list(root, split))


def open_pairs(root: Path, pairs: Path | None, split: str, both_directions: bool) -> FilePairs:
    """The pairs of a list. Boxes, and key points where the list has none, come from the .mat files, where they are.

    Raises:
        DatasetError: the split's list is missing, or a row cannot be read.
    """
    path = pairs or _list(root, split)
    if path is None:
        raise DatasetError(f"{NAME}: {root}: need {' or '.join(LISTS[split][:2])} there, or the list's name (pairs)")
    entries = [_entry(root, row) for row in read_pairs_csv(path, NAME)]
    return FilePairs(NAME, root, entries, both_directions=both_directions, complete=_with_annotations(root))


def open_source(root: Path, pairs: Path | None, split: str | None) -> PhotographSource:
    """The photographs of a list by class; by default of the training list where it is there, else of the test list."""
    chosen = split or ("train" if _list(root, "train") else "test")
    return PhotographSource(NAME, open_pairs(root, pairs, chosen, False).photographs())


def _list(root: Path, split: str) -> Path | None:
    for folder in LIST_FOLDERS:
        for name in LISTS[split]:
            if (root / folder / name).is_file():
                return root / folder / name
    named = {name for names in LISTS.values() for name in names}
    found = list_pairs_csv(root)
    return found[0] if split == "test" and len(found) == 1 and found[0].name not in named else None


def _category(row: PairRow) -> str:
    if row.label.isdecimal() and 1 <= int(row.label) <= len(CLASSES):
        return CLASSES[int(row.label) - 1]
    return row.label


def _entry(root: Path, row: PairRow) -> PairEntry:
    category = _category(row)
    image_a, image_b = root / row.source, root / row.target
    folder = root / PHOTOGRAPHS / "Annotations" / category
    files = tuple(folder / f"{image.stem}.mat" for image in (image_a, image_b)) if folder.is_dir() else ()
    return PairEntry(
        row_name(row),
        category,
        image_a,
        image_b,
        keypoints_a=row.points_a,
        keypoints_b=row.points_b,
        mirrored=row.flip,
        annotations=files,
    )


def _with_annotations(root: Path) -> Callable[[PairEntry], PairEntry]:
    read: dict[Path, tuple[Values | None, Values | None]] = {}

    def annotation(path: Path) -> tuple[Values | None, Values | None]:
        if path not in read:
            read[path] = _read_annotation(path)
        return read[path]

    def complete(entry: PairEntry) -> PairEntry:
        if not entry.annotations:
            return entry
        (points_a, box_a), (points_b, box_b) = (annotation(path) for path in entry.annotations)
        if entry.keypoints_a is not None:
            return replace(entry, box_a=box_a, box_b=box_b)
        if points_a is not None and points_b is not None and len(points_a) != len(points_b):
            raise DatasetError(
                f"{NAME}: {entry.annotations[1]}: kps: {len(points_b)} points, "
                f"and {len(points_a)} in {entry.annotations[0].name}; need as many"
            )
        return replace(entry, keypoints_a=points_a, keypoints_b=points_b, box_a=box_a, box_b=box_b)

    return complete


def _read_annotation(path: Path) -> tuple[Values | None, Values | None]:
    """Key points and box of a .mat file; (None, None) where there is no such file."""
    if not path.exists():
        return None, None
    found = read_mat(path, NAME)
    points = as_points(found["kps"], "kps", path, NAME) if "kps" in found else None
    box = as_box(found["bbox"], "bbox", path, NAME) if "bbox" in found else None
    if points is None and box is None:
        raise DatasetError(f"{NAME}: {path}: need the variables kps and bbox")
    return points, box

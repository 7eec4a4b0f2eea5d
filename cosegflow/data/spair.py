"""SPair-71k (Min et al. 2019): 70,958 pairs of 18 categories with key points and boxes.

Layout: ``[SPair-71k/]JPEGImages/<category>/*.jpg``, ``PairAnnotation/{trn,val,test}/<line>.json`` and
``Layout/{large,small}/{trn,val,test}.txt`` with lines ``id-source-target:category``. Without Layout, the annotation
files themselves are the list. Where a photograph has another size than its annotation says, the coordinates are scaled.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from cosegflow.data.annotations import as_box, as_points, first_line, read_json
from cosegflow.data.entries import FilePairs, PairEntry
from cosegflow.data.errors import DatasetError
from cosegflow.data.photograph_source import PhotographSource

NAME = "spair-71k"
SPLITS: tuple[str, ...] = ("test", "val", "train")
FULL_SIZE = {"test": 12234, "val": 5384, "train": 53340}
ON_DISK = {"test": "test", "val": "val", "train": "trn"}
CONTAINER = "SPair-71k"


def is_here(root: Path) -> bool:
    """Whether the annotations of pairs, or their lists, are there."""
    return any((_base(root) / name).is_dir() for name in ("PairAnnotation", "Layout"))


def splits_here(root: Path) -> tuple[str, ...]:
    """The splits whose pairs are there."""
    base = _base(root)
    return tuple(split for split in SPLITS if _list(base, split) or _annotated(base, split))


def open_pairs(root: Path, pairs: Path | None, split: str, both_directions: bool) -> FilePairs:
    """The pairs of a split (layout "large", or "small" where only that is there), or of a list of such lines.

    Raises:
        DatasetError: no list of the split, or a line that cannot be read.
    """
    base = _base(root)
    lines, source = _lines(base, pairs, split)
    annotations = base / "PairAnnotation" / ON_DISK[split]
    image = cache(lambda category, stem: base / "JPEGImages" / category / f"{stem}.jpg")  # few images, many pairs
    entries = [_entry(line, image, annotations, f"{source}: line {number}") for number, line in lines]
    if not entries:
        raise DatasetError(f"{NAME}: {source}: has no pairs")
    return FilePairs(NAME, root, entries, both_directions=both_directions, complete=_complete)


def open_source(root: Path, pairs: Path | None, split: str | None) -> PhotographSource:
    """The photographs of a split by category; by default of train where it is listed, else of test."""
    base = _base(root)
    chosen = split or ("train" if _list(base, "train") or _annotated(base, "train") else "test")
    return PhotographSource(NAME, open_pairs(root, pairs, chosen, False).photographs())


def _base(root: Path) -> Path:
    return root / CONTAINER if (root / CONTAINER).is_dir() else root


def _list(base: Path, split: str) -> Path | None:
    for layout in ("large", "small"):
        path = base / "Layout" / layout / f"{ON_DISK[split]}.txt"
        if path.is_file():
            return path
    return None


def _annotated(base: Path, split: str) -> list[str]:
    try:
        names = [path.name for path in (base / "PairAnnotation" / ON_DISK[split]).iterdir()]
    except OSError:
        return []
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json") and not name.startswith("."))


def _lines(base: Path, pairs: Path | None, split: str) -> tuple[list[tuple[int, str]], Path]:
    path = pairs or _list(base, split)
    if path is None:
        folder = base / "PairAnnotation" / ON_DISK[split]
        names = _annotated(base, split)
        if not names:
            raise DatasetError(f"{NAME}: {base}: need Layout/large/{ON_DISK[split]}.txt or annotations in {folder}")
        return list(enumerate(names, 1)), folder
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{NAME}: {path}: cannot be read ({first_line(error)})") from None
    return [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()], path


def _entry(line: str, image: Callable[[str, str], Path], annotations: Path, where: str) -> PairEntry:
    names, _, category = line.partition(":")
    parts = names.split("-")
    if len(parts) != 3 or not all(parts) or not category:
        raise DatasetError(f"{NAME}: {where}: need id-source-target:category, got {line[:60]!r}")
    return PairEntry(
        line,
        category,
        image(category, parts[1]),
        image(category, parts[2]),
        annotations=(annotations / f"{line}.json",),
    )


def _complete(entry: PairEntry) -> PairEntry:
    path = entry.annotations[0]
    found = read_json(path, NAME)
    lacking = [k for k in ("src_kps", "trg_kps", "src_bndbox", "trg_bndbox") if k not in found]
    if lacking:
        raise DatasetError(f"{NAME}: {path}: missing: {', '.join(lacking)}")
    points_a, points_b = (as_points(found[f"{side}_kps"], f"{side}_kps", path, NAME) for side in ("src", "trg"))
    if len(points_a) != len(points_b):
        raise DatasetError(f"{NAME}: {path}: {len(points_a)} points in src_kps and {len(points_b)} in trg_kps")
    return replace(
        entry,
        keypoints_a=points_a,
        keypoints_b=points_b,
        box_a=as_box(found["src_bndbox"], "src_bndbox", path, NAME),
        box_b=as_box(found["trg_bndbox"], "trg_bndbox", path, NAME),
        size_a=_size(found.get("src_imsize"), path),
        size_b=_size(found.get("trg_imsize"), path),
    )


def _size(value: Any, path: Path) -> tuple[int, int] | None:
    """(width, height) from [width, height, channels]."""
    if value is None:
        return None
    try:
        width, height = int(value[0]), int(value[1])
    except (TypeError, ValueError, IndexError, KeyError):
        width = height = 0
    if width < 1 or height < 1:
        raise DatasetError(f"{NAME}: {path}: imsize: need width and height, got {str(value)[:40]}")
    return width, height

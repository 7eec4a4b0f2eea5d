"""TSS (Taniai et al. 2016): pairs with masks and flow in both directions.

Layout: ``[TSS_CVPR2016/]{FG3DCar,JODS,PASCAL}/<pair>/`` with image1.png, image2.png, mask1.png, mask2.png, flow1.flo,
flow2.flo and flip_gt.txt. flowN.flo lies on the grid of imageN and leads into the other image, as that is on disk, also
where flip_gt is 1. A list is optional: ``data.csv``, or the one CSV file with its columns
``imageA,imageB,flow_dir,flip,category``. In each row flow_dir is N, and imageB is imageN. So each directed pair here
has imageN as a and the other image as b.
"""

from pathlib import Path

from cosegflow.data.annotations import need_file
from cosegflow.data.entries import FilePairs, PairEntry
from cosegflow.data.errors import DatasetError
from cosegflow.data.folders import list_folders
from cosegflow.data.pairs_csv import header_of, list_csv, read_table
from cosegflow.data.photograph_source import PhotographSource

NAME = "tss"
SPLITS: tuple[str, ...] = ("test",)
FULL_SIZE = {"test": 800}
GROUPS = ("FG3DCar", "JODS", "PASCAL")
CONTAINER = "TSS_CVPR2016"
COLUMNS = ("imagea", "imageb", "flow_dir", "flip")


def is_here(root: Path) -> bool:
    """Whether one of the groups is there with a folder of a pair."""
    return bool(_list(root)) or any(_pair_folders(_base(root), group) for group in GROUPS)


def splits_here(root: Path) -> tuple[str, ...]:
    """The splits whose pairs are there."""
    return SPLITS if is_here(root) else ()


def open_pairs(root: Path, pairs: Path | None, split: str, both_directions: bool) -> FilePairs:
    """Every pair in both directions, whatever `both_directions` says; categories are FG3DCar, JODS and PASCAL.

    Raises:
        DatasetError: no pair, or a row of the list that cannot be used.
    """
    listed = pairs or _list(root)
    entries = _from_list(root, listed) if listed else _from_folders(root)
    return FilePairs(NAME, root, entries)


def open_source(root: Path, pairs: Path | None, split: str | None) -> PhotographSource:
    """All photographs by the object that they show (car, bike, horse, ...), as the folders' names tell."""
    found: dict[str, list[Path]] = {}
    for entry in open_pairs(root, pairs, "test", False).entries:
        folder = entry.image_a.parent
        label = "car" if entry.category == "FG3DCar" else folder.name.partition("_")[0]
        found.setdefault(label, []).extend((entry.image_a, entry.image_b))
    return PhotographSource(NAME, found)


def _base(root: Path) -> Path:
    return root / CONTAINER if (root / CONTAINER).is_dir() else root


def _list(root: Path) -> Path | None:
    found = [path for path in list_csv(root) if "flow_dir" in header_of(path)]
    named = [path for path in found if path.name == "data.csv"]
    return named[0] if named else found[0] if len(found) == 1 else None


def _pair_folders(base: Path, group: str) -> list[Path]:
    return [folder for folder in list_folders(base / group) if any((folder / f"image{n}.png").exists() for n in (1, 2))]


def _entry(folder: Path, group: str, number: int, flip: bool) -> PairEntry:
    other = 3 - number
    return PairEntry(
        f"{group}/{folder.name} {number}-{other}",
        group,
        folder / f"image{number}.png",
        folder / f"image{other}.png",
        mask_a=folder / f"mask{number}.png",
        mask_b=folder / f"mask{other}.png",
        flow=folder / f"flow{number}.flo",
        flip_gt=flip,
    )


def _from_folders(root: Path) -> list[PairEntry]:
    base, entries = _base(root), []
    for group in GROUPS:
        for folder in _pair_folders(base, group):
            path = folder / "flip_gt.txt"
            flip = _flag(path) if path.exists() else False
            entries += [_entry(folder, group, number, flip) for number in (1, 2)]
    if not entries:
        raise DatasetError(f"{NAME}: {root}: need {', '.join(GROUPS)} with a folder for each pair there, got none")
    return entries


def _flag(path: Path) -> bool:
    need_file(path, NAME)
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = "?"
    if text not in ("0", "1"):
        raise DatasetError(f"{NAME}: {path}: need 0 or 1, got {text[:20]!r}")
    return text == "1"


def _from_list(root: Path, path: Path) -> list[PairEntry]:
    entries: list[PairEntry] = []
    for line, row in read_table(path, NAME):
        where = f"{NAME}: {path}: line {line}"
        lacking = [name for name in COLUMNS if name not in row]
        if lacking:
            raise DatasetError(
                f"{NAME}: {path}: need the columns imageA, imageB, flow_dir and flip; missing: {lacking}"
            )
        if row["flow_dir"] not in ("1", "2") or row["flip"] not in ("0", "1"):
            raise DatasetError(
                f"{where}: need flow_dir 1 or 2 and flip 0 or 1, got {row['flow_dir']!r} and {row['flip']!r}"
            )
        number = int(row["flow_dir"])
        grid, other = Path(row["imageb"]), Path(row["imagea"])
        if grid.name != f"image{number}.png" or other != grid.with_name(f"image{3 - number}.png"):
            raise DatasetError(f"{where}: flow_dir {number} needs imageB image{number}.png and the other one as imageA")
        folder = root / grid.parent
        entries.append(_entry(folder, folder.parent.name, number, row["flip"] == "1"))
    if not entries:
        raise DatasetError(f"{NAME}: {path}: has no row")
    return entries

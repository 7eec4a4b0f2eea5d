"""Finds cut-outs (stamps) and backgrounds for the composer: real photographs, split into training and held-out ones.

Looked for in this order, the first that has stamps wins: the folder given by the caller; ``$COSEGFLOW_DATA`` (when it
is set, the next is not tried); ``../shared/data`` beside the checkout; Debian's tuxpaint-stamps package; at last the
photographs inside scikit-image's wheel, cut out along the outlines in `cutouts.py`. Nothing is ever downloaded.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cosegflow.data import cutouts
from cosegflow.data.annotations import first_line, read_json
from cosegflow.data.errors import DatasetError

DEBIAN_STAMPS = Path("/usr/share/tuxpaint/stamps")
LONGEST_STAMP = 192
LONGEST_BACKGROUND = 480
# Round or self-similar things have no unique flow.
WITHOUT_FLOW = {"apple", "citrus_roundfruit", "ball", "coin", "planet", "pepper_veg", "flower"}
# These backgrounds show animals, which are categories of the stamps.
WITH_OBJECTS = ("friends_by", "LadyBird", "Dragonfly", "Kleiber")
PHOTOGRAPHIC_FOLDERS = ("animals", "vehicles", "plants", "household", "hobbies", "food", "clothes")
DEBIAN_LIMIT = 200

Pixels = npt.NDArray[np.uint8]


class DataNotFoundError(DatasetError):
    """A folder that the user named holds no stamps."""


@dataclass(frozen=True, eq=False)
class Stamp:
    """A cut-out."""

    name: str
    category: str
    rgba: Pixels
    """(h, w, 4) uint8, not premultiplied; the longer side is at most 192."""
    held_out: bool = False


@dataclass(frozen=True, eq=False)
class Background:
    """A photograph to paste onto."""

    name: str
    rgb: Pixels
    """(h, w, 3) uint8."""
    held_out: bool = False


@dataclass(frozen=True, eq=False)
class Library:
    """Stamps and backgrounds of one origin."""

    stamps: tuple[Stamp, ...]
    backgrounds: tuple[Background, ...]
    origin: str
    """One line that says where they come from."""

    def split(self) -> tuple["Library", "Library"]:
        """(training, held-out): no stamp and no background is in both."""

        def part(held_out: bool) -> Library:
            return Library(
                tuple(s for s in self.stamps if s.held_out == held_out),
                tuple(b for b in self.backgrounds if b.held_out == held_out),
                self.origin,
            )

        return part(False), part(True)


def usual_folders() -> list[Path]:
    """Where data is looked for: ``$COSEGFLOW_DATA``, or where that is not set ``../shared/data``."""
    given = os.environ.get("COSEGFLOW_DATA")
    checkout = Path(__file__).resolve().parents[2]
    return [Path(given)] if given else [checkout.parent / "shared" / "data", Path("..") / "shared" / "data"]


def load_library(where: str | Path | None = None) -> Library:
    """Loads stamps and backgrounds.

    Args:
        where: a folder laid out like ``../shared/data`` or an unpacked Debian package (or its stamps folder);
            "none" for scikit-image's photographs; None to look in the usual places.

    Raises:
        DataNotFoundError: `where` names a folder without stamps.
    """
    if where is not None and str(where) != "none":
        library = _from_folder(Path(where))
        if library is None:
            raise DataNotFoundError(
                f"{where}: no stamps there (need stamps/index.json, or an unpacked tuxpaint-stamps package, "
                "or 'none' for scikit-image's photographs)"
            )
        return library
    for folder in [*usual_folders(), DEBIAN_STAMPS] if where is None else []:
        library = _from_folder(folder)
        if library is not None:
            return library
    return _from_scikit_image()


def _from_folder(folder: Path) -> Library | None:
    if (folder / "stamps" / "index.json").is_file():
        return _from_index(folder)
    debian = _debian_stamps(folder)
    return None if debian is None else _from_debian(debian)


def _debian_stamps(folder: Path) -> Path | None:
    for stamps in (folder, folder / "stamps", folder / "usr/share/tuxpaint/stamps", folder / "share/tuxpaint/stamps"):
        if (stamps / "animals").is_dir():
            return stamps
    return None


def _third(names: Iterable[str]) -> set[str]:
    """Every third name of the sorted list, at least one where there are two: the held-out ones."""
    ordered = sorted(set(names))
    return {name for i, name in enumerate(ordered) if i % 3 == 1}


def _split_by_category(files: dict[str, list[str]]) -> set[str]:
    """Held-out files, about a third of each category; a file of two categories is on one side only."""
    held: set[str] = set()
    seen: set[str] = set()
    for category in sorted(files):
        fresh = [name for name in files[category] if name not in seen]
        held |= _third(fresh)
        seen.update(fresh)
    return held


def has_stamps(folder: Path) -> bool:
    """Whether `load_library` finds stamps there."""
    if (folder / "stamps" / "index.json").is_file():
        return True
    debian = _debian_stamps(folder)
    # Debian sorts animals into folders; a folder of photographs by category may well have one of that name.
    return debian is not None and any(path.is_dir() for path in (debian / "animals").iterdir())


def stamp_files(folder: Path) -> dict[str, list[Path]]:
    """The stamps' files by category, as the index or Debian's folders name them; they may be missing.

    Raises:
        DatasetError: a damaged index.
    """
    root = folder / "stamps"
    if (root / "index.json").is_file():
        named = _read_index(root / "index.json")
        return {category: [root / "stamps" / name for name in names] for category, names in named.items()}
    debian = _debian_stamps(folder)
    return (
        {} if debian is None else {c: [debian / name for name in names] for c, names in _debian_files(debian).items()}
    )


def _read_index(path: Path) -> dict[str, list[str]]:
    """category -> files."""
    index = read_json(path, "stamps")
    try:
        return {str(category): [str(entry["file"]) for entry in entries] for category, entries in index.items()}
    except (TypeError, KeyError):
        raise DatasetError(f"stamps: {path}: need a list of {{'file': ...}} for each category") from None


def _from_index(folder: Path) -> Library:
    files = {c: names for c, names in _read_index(folder / "stamps" / "index.json").items() if c not in WITHOUT_FLOW}
    held = _split_by_category(files)
    root = folder / "stamps" / "stamps"
    stamps = [_read_stamp(root, name, category, name in held) for category, names in files.items() for name in names]
    found = tuple(stamp for stamp in stamps if stamp is not None)
    photos = sorted(p for p in (folder / "backgrounds").glob("*.jpg") if not any(w in p.name for w in WITH_OBJECTS))
    kept = _third(p.name for p in photos)
    backgrounds = tuple(Background(p.name, _read_background(p), p.name in kept) for p in photos)
    if len(photos) < 6:
        backgrounds = _scikit_backgrounds()
    return Library(
        found, backgrounds, f"{len(found)} photographic stamps and {len(backgrounds)} backgrounds in {folder}"
    )


def _debian_files(root: Path) -> dict[str, list[str]]:
    """category -> files, of photographs and drawings alike."""
    files: dict[str, list[str]] = {}
    for top in PHOTOGRAPHIC_FOLDERS:
        for path in sorted((root / top).rglob("*.png")):
            if not path.stem.endswith(("_mirror", "_flip", "_mirror_flip")):
                files.setdefault(str(path.parent.relative_to(root)), []).append(str(path.relative_to(root)))
    return {c: names for c, names in files.items() if c.rsplit("/")[-1] not in ("balls", "fruit", "fruits", "coins")}


def _from_debian(root: Path) -> Library | None:
    files = _debian_files(root)
    held = _split_by_category(files)
    stamps: list[Stamp] = []
    for category, names in files.items():
        for name in names:
            stamp = _read_stamp(root, name, category, name in held)
            if stamp is not None and _is_photographic(stamp.rgba):
                stamps.append(stamp)
            if len(stamps) >= DEBIAN_LIMIT:
                break
    if not any(s.held_out for s in stamps) or all(s.held_out for s in stamps):
        return None
    backgrounds = _scikit_backgrounds()
    origin = (
        f"{len(stamps)} photographic stamps of Debian's tuxpaint-stamps in {root}, scikit-image's photographs behind"
    )
    return Library(tuple(stamps), backgrounds, origin)


def _is_photographic(rgba: Pixels) -> bool:
    """Photographs have thousands of colours, drawings few; the object fills a fair share of its box."""
    solid = rgba[..., 3] > 127
    colours = np.unique(rgba[solid][:, :3].astype(np.int64) @ np.array((65536, 256, 1)))
    return bool(0.15 < solid.mean() < 0.9 and len(colours) > 1500)


def _read_stamp(root: Path, name: str, category: str, held_out: bool) -> Stamp | None:
    path = root / name
    if not path.is_file():
        return None
    try:
        with Image.open(path) as picture:
            if max(picture.size) < 80:
                return None
            rgba = picture.convert("RGBA")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DatasetError(f"stamps: {path}: damaged or unreadable image ({first_line(error)})") from None
    rgba.thumbnail((LONGEST_STAMP, LONGEST_STAMP), Image.Resampling.LANCZOS)
    return Stamp(name, category, np.asarray(rgba, dtype=np.uint8), held_out)


def _read_background(path: Path) -> Pixels:
    with Image.open(path) as picture:
        rgb = picture.convert("RGB")
    rgb.thumbnail((LONGEST_BACKGROUND, LONGEST_BACKGROUND), Image.Resampling.LANCZOS)
    return np.asarray(rgb, dtype=np.uint8)


def _scikit_backgrounds() -> tuple[Background, ...]:
    folder = cutouts.photograph_folder()
    return tuple(Background(name, _read_background(folder / name), held) for name, held in cutouts.BACKGROUNDS)


def _from_scikit_image() -> Library:
    stamps = tuple(
        Stamp(cut.name, cut.category, cutouts.cut_out(cut, LONGEST_STAMP), cut.held_out)
        for cut in (*cutouts.OUTLINES, *cutouts.random_patches())
    )
    backgrounds = _scikit_backgrounds()
    origin = f"{len(stamps)} cut-outs and {len(backgrounds)} backgrounds from scikit-image's photographs"
    return Library(stamps, backgrounds, origin)

"""Opens any data set by its name, for evaluation (pairs with truth) or for training (photographs by class label)."""

import os
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from cosegflow.data.entries import PairDataset
from cosegflow.data.errors import DatasetError
from cosegflow.data.stamps import ANYWHERE
from cosegflow.data.training import TrainingSource
from cosegflow.dataset_names import ALIASES, DATASETS

MODULES = {
    "tss": "tss",
    "internet": "internet",
    "pf-pascal": "pf_pascal",
    "pf-willow": "pf_willow",
    "spair-71k": "spair",
    "caltech-101": "caltech",
    "weizmann-horse": "weizmann",
    "folder": "folder",
    "stamps": "stamps",
}
WITHOUT_LIST = ("internet", "weizmann-horse", "folder", "stamps")
SPLIT_NAMES = {"trn": "train", "training": "train", "eval": "val", "validation": "val", "tst": "test"}


class Loader(Protocol):
    """What each module of a data set offers."""

    SPLITS: tuple[str, ...]
    """The splits it has; the first is the one that is evaluated."""
    FULL_SIZE: dict[str, int]
    """How many pairs the complete split has, where that is known."""

    def is_here(self, root: Path) -> bool:
        """Whether the folder looks like this data set; reads next to nothing."""
        ...

    def splits_here(self, root: Path) -> tuple[str, ...]:
        """The splits whose pairs are there."""
        ...

    def open_pairs(self, root: Path, pairs: Path | None, split: str, both_directions: bool) -> PairDataset:
        """The pairs of a split."""
        ...

    def open_source(self, root: Path, pairs: Path | None, split: str | None) -> TrainingSource:
        """The photographs by class label; `split` None is what one trains on by default."""
        ...


def canonical_name(name: str) -> str:
    """The data set's name as in `DATASETS`, for a name or alias in any case, with `_` or `-`.

    Raises:
        DatasetError: there is no such data set.
    """
    plain = name.strip().lower().replace("_", "-")
    plain = ALIASES.get(plain, plain)
    if plain not in DATASETS:
        raise DatasetError(f"dataset: need one of {', '.join(DATASETS)}, got {name!r}")
    return plain


def loader_of(name: str) -> Loader:
    """The module of a data set."""
    return cast(Loader, import_module(f"cosegflow.data.{MODULES[canonical_name(name)]}"))


def _folder(name: str, root: str | Path | None) -> Path:
    if name == "stamps" and (root is None or str(root) == "none"):
        return ANYWHERE if root is None else Path(root)
    if root is None or not str(root) or not os.path.isdir(_expanded(root)):
        raise DatasetError(f"{name}: root: need an existing folder, got {str(root) if root is not None else None!r}")
    return _expanded(root)


def _expanded(path: str | Path) -> Path:
    """With the home folder for ``~``, which no shell puts in for ``--root=~/x`` or in a configuration."""
    return Path(os.path.expanduser(path))


def _split(name: str, split: str, known: tuple[str, ...]) -> str:
    plain = SPLIT_NAMES.get(split, split)
    if plain not in known:
        raise DatasetError(f"{name}: split: need one of {', '.join(known)}, got {split!r}")
    return plain


def _pairs_file(name: str, root: Path, pairs: str | Path | None) -> Path | None:
    if pairs is None:
        return None
    if name in WITHOUT_LIST:
        raise DatasetError(f"{name}: pairs: this data set has no list of pairs, got {pairs}")
    for path in (_expanded(pairs), root / pairs):
        if os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
            return path
    raise DatasetError(f"{name}: pairs: {pairs}: no such file")


def open_dataset(
    name: str,
    root: str | Path | None,
    *,
    pairs: str | Path | None = None,
    split: str | None = None,
    both_directions: bool = False,
) -> PairDataset:
    """The pairs of a data set, with the truth that it has; docs/data.md tells each one's layout.

    Args:
        name: one of `DATASETS`, or an alias.
        root: the folder of the data set. For stamps None (look in the usual places) and "none" are allowed.
        pairs: the list of pairs, where the data set has one; image paths in it are relative to `root`.
        split: "test" (the default), "val" or "train", where the data set has them.
        both_directions: also give each pair with a and b exchanged, after all the others. TSS has both already.

    Raises:
        DatasetError: no such data set, split, folder or list, or a list that cannot be read. Reading a pair raises it
            for a photograph, mask, flow or annotation that is missing or damaged.
    """
    name = canonical_name(name)
    loader, folder = loader_of(name), _folder(name, root)
    listed = _pairs_file(name, folder, pairs)
    chosen = loader.SPLITS[0] if split is None else _split(name, split, loader.SPLITS)
    return loader.open_pairs(folder, listed, chosen, both_directions)


def open_training_source(
    name: str, root: str | Path | None, *, pairs: str | Path | None = None, split: str | None = None
) -> TrainingSource:
    """The photographs of a data set by class label, for `TrainingSamples`; no annotation is read.

    Args:
        name, root, pairs: as in `open_dataset`.
        split: "train", "val" or "test"; None is "train" where the data set has one, else all photographs.

    Raises:
        DatasetError: as `open_dataset`; a list without photographs.
    """
    name = canonical_name(name)
    loader, folder = loader_of(name), _folder(name, root)
    listed = _pairs_file(name, folder, pairs)
    return loader.open_source(folder, listed, None if split is None else _split(name, split, loader.SPLITS))


__all__ = ["DATASETS", "DatasetError", "PairDataset", "canonical_name", "open_dataset", "open_training_source"]

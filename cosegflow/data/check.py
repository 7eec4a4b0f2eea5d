"""What is there of each data set below a folder, and what is missing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cosegflow.data.entries import FilePairs, PairDataset
from cosegflow.data.errors import DatasetError
from cosegflow.data.folders import list_folders
from cosegflow.data.registry import DATASETS, Loader, loader_of

DEPTH = 2
"""Folders are looked into so many levels below the root."""


@dataclass(frozen=True)
class Finding:
    """A split of a data set in a folder."""

    dataset: str
    split: str
    folder: Path
    pairs: int = 0
    complete_pairs: int = 0
    """Those whose files are all there."""
    full_size: int | None = None
    """The pairs of the official split, where that is known; fewer are no fault."""
    photographs: int = 0
    categories: tuple[str, ...] = ()
    missing: tuple[Path, ...] = ()
    problems: tuple[str, ...] = field(default=())
    """Errors of the list or of files that could not be read."""

    @property
    def usable(self) -> bool:
        """At least one pair can be read."""
        return self.complete_pairs > 0

    @property
    def whole(self) -> bool:
        """Nothing is missing, nothing damaged."""
        return self.usable and not self.missing and not self.problems


def find_folders(name: str, root: Path) -> list[Path]:
    """The folders at or below `root` that look like the data set; none below one that does."""
    loader = loader_of(name)
    level = [root]
    for _ in range(DEPTH + 1):
        found = [folder for folder in level if loader.is_here(folder)]
        if found:
            return found
        level = [below for folder in level for below in list_folders(folder)]
    return []


def check_folder(root: Path, name: str | None = None, *, read: bool = False) -> list[Finding]:
    """Looks for data sets at and below `root`, and for every file that their pairs need.

    A folder for each category, which almost any folder looks like, is only taken for a data set where nothing else is
    found, and at `root` itself.

    Args:
        root: an existing folder.
        name: only this data set; where no folder looks like it, `root` is taken for it, to tell what is missing.
        read: also read every pair, which finds damaged files and takes long.
    """
    findings: list[Finding] = []
    for each in DATASETS if name is None else (name,):
        if each == "folder" and name is None and (findings or not loader_of(each).is_here(root)):
            continue
        folders = [root] if each == "folder" else find_folders(each, root)
        for folder in folders or ([root] if name else []):
            loader = loader_of(each)
            splits = loader.splits_here(folder) or loader.SPLITS[:1]
            findings += [_check_split(each, loader, folder, split, read) for split in splits]
    return findings


def _check_split(name: str, loader: Loader, folder: Path, split: str, read: bool) -> Finding:
    try:
        dataset = loader.open_pairs(folder, None, split, False)
    except DatasetError as error:
        return Finding(name, split, folder, problems=(str(error),))
    missing = [path for path in dataset.files() if not os.path.isfile(path)]
    problems = _unreadable(dataset, set(missing)) if read else []
    return Finding(
        name,
        split,
        folder,
        pairs=len(dataset),
        complete_pairs=_complete(dataset, set(missing)),
        full_size=loader.FULL_SIZE.get(split),
        photographs=sum(len(paths) for paths in dataset.photographs().values()),
        categories=tuple(dict.fromkeys(dataset.categories)),
        missing=tuple(missing),
        problems=tuple(problems),
    )


def _complete(dataset: PairDataset, missing: set[Path]) -> int:
    if not isinstance(dataset, FilePairs):
        return len(dataset)
    return sum(missing.isdisjoint(entry.files()) for entry in dataset.entries)


def _unreadable(dataset: PairDataset, missing: set[Path]) -> list[str]:
    """The errors of the pairs whose files are there, each once."""
    found: dict[str, None] = {}
    for index in range(len(dataset)):
        if isinstance(dataset, FilePairs) and not missing.isdisjoint(dataset.entries[index].files()):
            continue
        try:
            dataset[index]
        except DatasetError as error:
            found[str(error)] = None
    return list(found)


def relative(path: Path, folder: Path) -> str:
    """The path below the folder, for messages."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def not_found(findings: Sequence[Finding]) -> list[str]:
    """The data sets that no finding is of; "folder" does not count."""
    there = {finding.dataset for finding in findings}
    return [name for name in DATASETS if name not in there and name != "folder"]

"""Pairs as lists of files: what a data set's list says about each pair, and how a `Pair` is read from it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cosegflow.data.annotations import fit_mask, outline_mask, read_flo, read_mask
from cosegflow.data.errors import DatasetError
from cosegflow.data.pair import Pair
from cosegflow.data.photographs import read_photograph

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PairEntry:
    """One pair of files with what is known about it before they are read."""

    name: str
    category: str
    image_a: Path
    image_b: Path
    keypoints_a: Points | None = None
    """(K, 2) x, y; NaN rows are absent."""
    keypoints_b: Points | None = None
    box_a: Points | None = None
    """(4,) x0, y0, x1, y1."""
    box_b: Points | None = None
    size_a: tuple[int, int] | None = None
    """(width, height) that the coordinates of a refer to; None: the image's own."""
    size_b: tuple[int, int] | None = None
    mask_a: Path | None = None
    mask_b: Path | None = None
    outline_a: Points | None = None
    """(N, 2) x, y: a polygon, in place of a mask."""
    outline_b: Points | None = None
    flow: Path | None = None
    """A .flo file on the grid of a."""
    mirrored: bool = False
    """Both photographs are to be read as their mirror images (PF-PASCAL's training list)."""
    flip_gt: bool = False
    """TSS: one object faces the other way. The flow already leads into the image as it is."""
    annotations: tuple[Path, ...] = ()
    """Further files that the pair needs."""

    def swapped(self) -> "PairEntry":
        """The pair with a and b exchanged; a flow has no exact inverse and is left out."""
        return replace(
            self,
            name=f"{self.name} reversed",
            image_a=self.image_b,
            image_b=self.image_a,
            keypoints_a=self.keypoints_b,
            keypoints_b=self.keypoints_a,
            box_a=self.box_b,
            box_b=self.box_a,
            size_a=self.size_b,
            size_b=self.size_a,
            mask_a=self.mask_b,
            mask_b=self.mask_a,
            outline_a=self.outline_b,
            outline_b=self.outline_a,
            flow=None,
        )

    def files(self) -> list[Path]:
        """Every file that reading the pair needs."""
        optional = (self.mask_a, self.mask_b, self.flow, *self.annotations)
        return [self.image_a, self.image_b, *(path for path in optional if path is not None)]


class PairDataset(Dataset[Pair]):
    """Pairs with truth. Any order and any worker gives the same pairs; nothing is read before a pair is asked for."""

    def __init__(self, name: str, root: Path, categories: Sequence[str]) -> None:
        self.name, self.root = name, root
        self.categories = list(categories)
        """The category of each pair, known without reading an image."""

    def __len__(self) -> int:
        return len(self.categories)

    def __getitem__(self, index: int) -> Pair:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def files(self) -> list[Path]:
        """Every file that the pairs need, each once."""
        return []

    def photographs(self) -> dict[str, list[Path]]:
        """The photographs of the pairs by category, each once."""
        return {}


class FilePairs(PairDataset):
    """Pairs of files."""

    def __init__(
        self,
        name: str,
        root: Path,
        entries: Sequence[PairEntry],
        *,
        both_directions: bool = False,
        complete: Callable[[PairEntry], PairEntry] | None = None,
    ) -> None:
        """Args:
        name, root: of the data set.
        entries: the pairs.
        both_directions: append each pair with a and b exchanged.
        complete: reads an entry's own annotation file when the pair is asked for.
        """
        times = 2 if both_directions else 1
        super().__init__(name, root, [entry.category for entry in entries] * times)
        self.entries, self.complete = list(entries), complete

    def entry(self, index: int) -> PairEntry:
        """What is known about pair `index`, with its annotation, without reading an image.

        Raises:
            DatasetError: its annotation is missing or damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        found = self.entries[index % len(self.entries)]
        if self.complete is not None:
            found = self.complete(found)
        return found if index < len(self.entries) else found.swapped()

    def __getitem__(self, index: int) -> Pair:
        return load_pair(self.entry(index), self.name)

    def files(self) -> list[Path]:
        return list(dict.fromkeys(path for entry in self.entries for path in entry.files()))

    def photographs(self) -> dict[str, list[Path]]:
        found: dict[str, dict[Path, None]] = {}
        for entry in self.entries:
            found.setdefault(entry.category, {}).update({entry.image_a: None, entry.image_b: None})
        return {category: list(paths) for category, paths in found.items()}


def load_pair(entry: PairEntry, dataset: str) -> Pair:
    """Reads the files of a pair.

    Raises:
        DatasetError: one of them is missing or damaged, or does not fit the photograph.
    """
    image_a, image_b = read_photograph(entry.image_a, dataset), read_photograph(entry.image_b, dataset)
    mask_a = _mask(entry.mask_a, entry.outline_a, image_a, entry.image_a, dataset)
    mask_b = _mask(entry.mask_b, entry.outline_b, image_b, entry.image_b, dataset)
    flow, valid = None, None
    if entry.flow is not None:
        values, known = read_flo(entry.flow, dataset)
        if values.shape[1:] != image_a.shape[1:]:
            raise DatasetError(
                f"{dataset}: {entry.flow}: need the size of {entry.image_a.name}, "
                f"{image_a.shape[2]} x {image_a.shape[1]}, got {values.shape[2]} x {values.shape[1]}"
            )
        flow, valid = torch.from_numpy(values), torch.from_numpy(known)
    points_a = _scaled(entry.keypoints_a, entry.size_a, image_a)
    points_b = _scaled(entry.keypoints_b, entry.size_b, image_b)
    box_a, box_b = _scaled(entry.box_a, entry.size_a, image_a), _scaled(entry.box_b, entry.size_b, image_b)
    if entry.mirrored:
        points_a, points_b = _mirrored_points(points_a, image_a), _mirrored_points(points_b, image_b)
        box_a, box_b = _mirrored_box(box_a, image_a), _mirrored_box(box_b, image_b)
        image_a, image_b = image_a.flip(-1), image_b.flip(-1)
        mask_a = None if mask_a is None else mask_a.flip(-1)
        mask_b = None if mask_b is None else mask_b.flip(-1)
    return Pair(
        image_a, image_b, entry.category, mask_a, mask_b, flow, valid, points_a, points_b, box_a, box_b, entry.name
    )


def _mask(path: Path | None, outline: Points | None, image: Tensor, photograph: Path, dataset: str) -> Tensor | None:
    size = (image.shape[1], image.shape[2])
    if outline is not None:
        return torch.from_numpy(outline_mask(outline, size, photograph, dataset))
    if path is None:
        return None
    return torch.from_numpy(fit_mask(read_mask(path, dataset), size, path, dataset))


def _scaled(points: Points | None, size: tuple[int, int] | None, image: Tensor) -> Tensor | None:
    """Points or a box, from coordinates of an image of `size` (w, h) to the image's own: x' = (x + 0.5) s - 0.5."""
    if points is None:
        return None
    values = torch.from_numpy(np.asarray(points, dtype=np.float64))
    if size is not None and size != (image.shape[2], image.shape[1]):
        scale = torch.tensor((image.shape[2] / size[0], image.shape[1] / size[1]), dtype=torch.float64)
        values = ((values.reshape(-1, 2) + 0.5) * scale - 0.5).reshape(values.shape)
    return values.float()


def _mirrored_points(points: Tensor | None, image: Tensor) -> Tensor | None:
    if points is None:
        return None
    return torch.stack((image.shape[2] - 1 - points[:, 0], points[:, 1]), 1)


def _mirrored_box(box: Tensor | None, image: Tensor) -> Tensor | None:
    if box is None:
        return None
    last = image.shape[2] - 1
    return torch.stack((last - box[2], box[1], last - box[0], box[3]))

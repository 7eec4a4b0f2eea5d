"""The composer as a data set: stamps over photographs, with exact masks and flow; see `composer` and `sources`."""

from pathlib import Path

import numpy as np
import torch

from cosegflow.data.composer import ComposedPairs, compose_ground, compose_image, exact_flow
from cosegflow.data.entries import PairDataset
from cosegflow.data.errors import DatasetError
from cosegflow.data.pair import Pair
from cosegflow.data.sources import Library, has_stamps, load_library, stamp_files
from cosegflow.data.training import TrainingSample, Truth, place_in_pass

NAME = "stamps"
SPLITS: tuple[str, ...] = ("test", "train")
FULL_SIZE: dict[str, int] = {}
ANYWHERE = Path("<usual places>")
"""Stands for no folder: `load_library` looks in the usual places."""
LENGTH = 200
"""So many pairs of a split are composed; the same ones each time."""
SEED = 1
PER_STAMP = 8
"""A pass of training shows each stamp so many times, each time composed anew."""


class StampPairs(PairDataset):
    """Composed pairs of a split's stamps: each shows one stamp twice, with masks, flow and where it is known."""

    def __init__(self, root: Path, library: Library, both_directions: bool) -> None:
        self._composed = ComposedPairs(library, LENGTH, seed=SEED, truth=True)
        if both_directions:
            raise DatasetError(f"{NAME}: both_directions: the exact flow is known in one direction only")
        super().__init__(NAME, root, [self._composed.category(i) for i in range(LENGTH)])
        self._stamps = stamp_files(root)

    def __getitem__(self, index: int) -> Pair:
        return self._composed[index]._replace(name=f"{index:05d}")

    def photographs(self) -> dict[str, list[Path]]:
        return self._stamps

    def files(self) -> list[Path]:
        return [path for paths in self._stamps.values() for path in paths]


class StampSource:
    """Composed training samples: two or three images of one stamp, and a background with other things on it."""

    def __init__(self, library: Library) -> None:
        self.name, self.library = NAME, library

    @property
    def epoch_length(self) -> int:
        """Each stamp eight times."""
        return PER_STAMP * len(self.library.stamps)

    def with_at_least(self, count: int) -> "StampSource":
        """The source itself: of every stamp any number of images can be composed."""
        return self

    def draw(
        self, seed: int, number: int, *, size: int, triplets: bool, augment: bool, truth: bool = False
    ) -> TrainingSample:
        """Sample `number`; composing is the augmentation, `augment` changes nothing."""
        stamps, photos = self.library.stamps, self.library.backgrounds
        stamp = stamps[place_in_pass(seed, number, self.epoch_length) % len(stamps)]
        others = [s for s in stamps if s.category != stamp.category and s.name != stamp.name]
        rng = np.random.default_rng((seed, number, 2))
        order = rng.permutation(len(photos))
        chosen = [photos[order[i % len(photos)]].rgb for i in range(4)]
        count = 3 if triplets else 2
        composed = [compose_image(rng, stamp, photo, others, (size, size)) for photo in chosen[:count]]
        images = [image for image, _, _ in composed]
        ground = compose_ground(rng, chosen[3], others, (size, size))
        third = images[2] if triplets else None
        known = None
        if truth:
            (_, opacity_a, warp_a), (_, opacity_b, warp_b) = composed[:2]
            flow, valid = exact_flow(warp_a, warp_b, opacity_a, opacity_b)
            masks = torch.from_numpy(opacity_a > 0.5), torch.from_numpy(opacity_b > 0.5)
            known = Truth(*masks, torch.from_numpy(flow).float(), torch.from_numpy(valid))
        return TrainingSample(images[0], images[1], third, ground, stamp.category, number, known)


def is_here(root: Path) -> bool:
    """Whether there is an index of stamps, or an unpacked Debian package of them."""
    return has_stamps(root)


def splits_here(root: Path) -> tuple[str, ...]:
    """The splits whose pairs are there."""
    return SPLITS if is_here(root) or root == ANYWHERE else ()


def open_pairs(root: Path, pairs: Path | None, split: str, both_directions: bool) -> StampPairs:
    """200 pairs of the held-out stamps ("test") or of the others ("train").

    Raises:
        DatasetError: no stamps there; both directions.
    """
    return StampPairs(root, _library(root, split), both_directions)


def open_source(root: Path, pairs: Path | None, split: str | None) -> StampSource:
    """The stamps and backgrounds of a split; by default of train."""
    return StampSource(_library(root, split or "train"))


def _library(root: Path, split: str) -> Library:
    training, held_out = load_library(None if root == ANYWHERE else root).split()
    return held_out if split == "test" else training

"""Training samples from photographs by class label."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from torch import Tensor

from cosegflow.data import cutouts
from cosegflow.data.augment import change_colours, random_crop, square_view
from cosegflow.data.cache import PhotographCache
from cosegflow.data.errors import DatasetError
from cosegflow.data.folders import large_enough
from cosegflow.data.training import TrainingSample, place_in_pass

REDUCED = 1.5
"""Photographs are kept with a shorter side of this times S; a crop has three quarters of it on average."""

ATTEMPTS = 16


class PhotographSource:
    """Photographs by category. Pass k shows each once as a, in an order drawn from (seed, k)."""

    def __init__(self, name: str, categories: Mapping[str, Sequence[Path]]) -> None:
        """categories: the photographs of each class label; see `with_at_least` for what may be too few."""
        self.name = name
        self.categories = {category: tuple(dict.fromkeys(paths)) for category, paths in categories.items()}
        self._all = [(category, path) for category, paths in self.categories.items() for path in paths]
        counts = [len(paths) for paths in self.categories.values()]
        self._starts = dict(zip(self.categories, accumulate(counts, initial=0), strict=False))
        self._cache = PhotographCache()

    @property
    def epoch_length(self) -> int:
        """The number of photographs."""
        return len(self._all)

    def with_at_least(self, count: int) -> "PhotographSource":
        """Without the categories of fewer than `count` photographs, which one warning names.

        Raises:
            DatasetError: none is left.
        """
        kept = {category: list(paths) for category, paths in self.categories.items()}
        return PhotographSource(self.name, large_enough(self.name, kept, count))

    def choose(self, seed: int, number: int, triplets: bool) -> tuple[str, list[Path], Path]:
        """The category, two or three different photographs of it, and the photograph to paste on."""
        place = place_in_pass(seed, number, self.epoch_length)
        category = self._all[place][0]
        paths = self.categories[category]
        rng = np.random.default_rng((seed, number, 2))
        own = place - self._starts[category]
        # Numbers of the others, counted without the own one: no list of thousands of paths for each sample.
        rest = rng.permutation(len(paths) - 1)
        places = [own, *(int(i) + (int(i) >= own) for i in rest[: 2 if triplets else 1])]
        chosen = [paths[i] for i in places]
        return category, chosen, self._elsewhere(rng, category, chosen)

    def _elsewhere(self, rng: np.random.Generator, category: str, chosen: list[Path]) -> Path:
        """A photograph of another category; else another one of this category; else one of scikit-image's."""
        start, count = self._starts[category], len(self.categories[category])
        others = self.epoch_length - count
        for _ in range(ATTEMPTS if others else 0):
            i = int(rng.integers(others))
            path = self._all[i if i < start else i + count][1]
            if path not in chosen:  # a photograph may be in two categories
                return path
        rest = [path for path in self.categories[category] if path not in chosen]
        if not rest:
            folder = cutouts.photograph_folder()
            rest = [folder / name for name, _ in cutouts.BACKGROUNDS]
        return rest[int(rng.integers(len(rest)))]

    def draw(
        self, seed: int, number: int, *, size: int, triplets: bool, augment: bool, truth: bool = False
    ) -> TrainingSample:
        """Sample `number`: a pure function of the arguments.

        The mirror image is taken of the whole sample, so that objects that face one way still do.

        Raises:
            DatasetError: a photograph is missing or damaged; `truth` is asked for, which photographs do not have.
        """
        if truth:
            raise DatasetError(f"{self.name}: has no exact flow and masks to train with; composed samples (stamps) do")
        category, paths, ground = self.choose(seed, number, triplets)
        rng = np.random.default_rng((seed, number, 3))
        mirror = bool(augment and rng.random() < 0.5)
        images = [self._view(path, size, rng if augment else None, mirror) for path in paths]
        behind = self._view(ground, size, rng if augment else None, bool(augment and rng.random() < 0.5))
        return TrainingSample(images[0], images[1], images[2] if triplets else None, behind, category, number)

    def _view(self, path: Path, size: int, rng: np.random.Generator | None, mirror: bool) -> Tensor:
        pixels = self._cache.read(path, int(REDUCED * size), self.name)
        if rng is None:
            return square_view(pixels, size)
        crop = random_crop(rng, (pixels.shape[0], pixels.shape[1]))
        return change_colours(rng, square_view(pixels, size, crop, mirror=mirror))

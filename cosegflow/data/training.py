"""Training samples: photographs of one category, chosen and augmented as a pure function of (seed, number)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Truth(NamedTuple):
    """What the composer knows of a sample; read by training under exact supervision only, an upper bound."""

    mask_a: Tensor
    """(S, S) bool, the object in a; (B, S, S) after collation, as the others."""
    mask_b: Tensor
    """(S, S), in b."""
    flow_ab: Tensor
    """(2, S, S) float32, exact flow from a to b in pixels; 0 where it is not known."""
    valid_ab: Tensor
    """(S, S) bool: where it is known."""


class TrainingSample(NamedTuple):
    """What a training step reads: photographs and their common category, no annotation."""

    image_a: Tensor
    """(3, S, S) float32 in [0, 1], RGB; (B, 3, S, S) after collation, as the others."""
    image_b: Tensor
    """(3, S, S), another photograph of the category."""
    image_c: Tensor | None
    """(3, S, S), a third photograph of the category; None without triplets."""
    ground: Tensor
    """(3, S, S), a photograph from elsewhere, on which objects are pasted: of another category where there is one."""
    category: str | tuple[str, ...]
    """The class label; one per sample after collation."""
    number: int | Tensor
    """The sample's number; int64 (B,) after collation."""
    truth: Truth | None = None
    """Only where it was asked for (see `TrainingSamples`)."""


class TrainingSource(Protocol):
    """Photographs by class label; `open_training_source` makes one."""

    name: str

    @property
    def epoch_length(self) -> int:
        """How many samples make one pass over the photographs."""
        ...

    def with_at_least(self, count: int) -> "TrainingSource":
        """The source without the categories of fewer than `count` photographs; DatasetError if none remains."""
        ...

    def draw(
        self, seed: int, number: int, *, size: int, triplets: bool, augment: bool, truth: bool = False
    ) -> TrainingSample:
        """Sample `number`: a pure function of the arguments; DatasetError where `truth` is asked for and not known."""
        ...


class TrainingSamples(Dataset[TrainingSample]):
    """Samples of a source; sample `number`, any integer from 0 on, depends on (seed, number) only.

    So any order, any worker, any rank and any point of resumption gives the same samples. Numbers from
    k `epoch_length` to (k + 1) `epoch_length` - 1 are pass k: each photograph is `image_a` once, in an order
    of its own.
    There is no upper end: give a DataLoader a sampler (of numbers) that ends.
    """

    def __init__(
        self,
        source: TrainingSource,
        *,
        seed: int,
        size: int = 240,
        triplets: bool = False,
        augment: bool = True,
        truth: bool = False,
    ) -> None:
        """Args:
            source: see `open_training_source`.
            seed: 0 or more.
            size: S, the side of the square images, in pixels.
            triplets: also give `image_c`; categories of two photographs are then left out.
            augment: random crops, a mirror image of half of the samples, and a small change of colours.
            truth: also give what the composer knows; of composed samples only.

        Raises:
            ValueError: a seed below 0, or a size below 16.
            DatasetError: no category has enough photographs.
        """
        if seed < 0:
            raise ValueError(f"seed: need 0 or more, got {seed}")
        if size < 16:
            raise ValueError(f"size: need at least 16 pixels, got {size}")
        self.source = source.with_at_least(3 if triplets else 2)
        self.seed, self.size, self.triplets, self.augment, self.truth = seed, size, triplets, augment, truth

    @property
    def epoch_length(self) -> int:
        """How many samples make one pass over the photographs."""
        return self.source.epoch_length

    def __len__(self) -> int:
        """One pass; `__getitem__` takes larger numbers too."""
        return self.epoch_length

    def __getitem__(self, number: int) -> TrainingSample:
        if number < 0:
            raise IndexError(f"sample {number}: need 0 or more")
        return self.source.draw(
            self.seed, int(number), size=self.size, triplets=self.triplets, augment=self.augment, truth=self.truth
        )


def place_in_pass(seed: int, number: int, length: int) -> int:
    """Which of `length` things sample `number` shows: each once in a pass, in an order drawn from (seed, pass)."""
    passes, place = divmod(number, length)
    return int(_order(seed, passes, length)[place])


@lru_cache(maxsize=4)
def _order(seed: int, passes: int, length: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, passes, 1)).permutation(length)


def collate_training(samples: Sequence[TrainingSample]) -> TrainingSample:
    """A batch: images stacked, `number` an int64 tensor (B,), `category` a tuple.

    `image_c` and `truth` are None where any sample lacks it.

    Raises:
        ValueError: no samples.
    """
    if not samples:
        raise ValueError("collate_training: needs at least one sample, got none")
    thirds = [sample.image_c for sample in samples]
    truths = [sample.truth for sample in samples if sample.truth is not None]
    known = len(truths) == len(samples)
    return TrainingSample(
        torch.stack([sample.image_a for sample in samples]),
        torch.stack([sample.image_b for sample in samples]),
        None if any(third is None for third in thirds) else torch.stack([t for t in thirds if t is not None]),
        torch.stack([sample.ground for sample in samples]),
        tuple(str(sample.category) for sample in samples),
        torch.tensor([int(sample.number) for sample in samples], dtype=torch.int64),
        Truth(*(torch.stack(parts) for parts in zip(*truths, strict=True))) if known else None,
    )

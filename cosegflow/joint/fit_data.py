"""The data of a training run: which samples each process takes at each step, and the validation pairs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
from torch.utils.data import DataLoader, Dataset, Sampler

from cosegflow.data.composer import ComposedPairs
from cosegflow.data.mixed import MixedSource
from cosegflow.data.pair import collate_pairs
from cosegflow.data.registry import canonical_name, loader_of, open_training_source
from cosegflow.data.sources import load_library, usual_folders
from cosegflow.data.training import TrainingSamples, collate_training
from cosegflow.joint.config import AUTO, DataConfig

VALIDATION_SEED = 1_000_003
"""Added to the run's seed for validation."""


class StepBatches(Sampler[list[int]]):
    """Sample numbers: at step s, rank r of W takes (s W + r) B to (s W + r) B + B - 1.

    A pure function of the step: a run that resumes at step s goes on with the samples it would have had, and W ranks
    with batch B take together what one process takes with batch W B.
    """

    def __init__(self, steps: int, batch: int, *, first: int = 0, rank: int = 0, world: int = 1) -> None:
        self.steps, self.batch, self.first, self.rank, self.world = steps, batch, first, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.steps):
            start = (step * self.world + self.rank) * self.batch
            yield list(range(start, start + self.batch))

    def __len__(self) -> int:
        """All steps of the run, those before `first` included: Lightning counts on from the resumed step."""
        return self.steps


class StepLoader(DataLoader):
    """A loader whose position is the trainer's step; Lightning takes it for one that can resume, which it can."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: `FitData.train_dataloader` starts at the trainer's step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def find_photographs(config: DataConfig) -> Path | None:
    """The folder of photographs by category that the stamps are mixed with; None: none."""
    if canonical_name(config.dataset) != "stamps":
        return None
    if config.photographs != AUTO:
        return None if str(config.photographs) == "none" else config.photographs
    roots = usual_folders() if config.root is None else [config.root]
    found = (root / "Caltech-101" / "101_ObjectCategories" for root in roots)
    return next((folder for folder in found if folder.is_dir()), None)


class FitData(lightning.LightningDataModule):
    """Training samples and validation pairs of a `DataConfig`.

    Validation of stamps is on composed pairs of held-out stamps with exact masks and flow. Of every other data set it
    is on samples without augmentation, of its validation split where it has one.

    Raises:
        DatasetError: the data cannot be used; it is opened at construction, before any work.
    """

    def __init__(self, config: DataConfig, seed: int, truth: bool = False) -> None:
        """truth: training samples carry what the composer knows of them."""
        super().__init__()
        self.config, self.steps = config, 0
        name = canonical_name(config.dataset)
        source = open_training_source(name, config.root)
        photographs = find_photographs(config)
        if photographs is not None:
            source = MixedSource([source, open_training_source("folder", photographs)])
        chosen: dict[str, Any] = {"size": config.size, "triplets": config.triplets}
        self.samples = TrainingSamples(source, seed=seed, augment=config.augment, truth=truth, **chosen)
        self.exact = name == "stamps"
        self.held_out: Dataset[Any]
        if self.exact:
            library = load_library(None if config.root is None else str(config.root)).split()[1]
            size = (config.size, config.size)
            self.held_out = ComposedPairs(
                library, config.validation, seed=seed + VALIDATION_SEED, size=size, truth=True
            )
        else:
            if "val" in loader_of(name).SPLITS:
                source = open_training_source(name, config.root, split="val")
            self.held_out = TrainingSamples(source, seed=seed + VALIDATION_SEED, augment=False, **chosen)

    @property
    def epoch_length(self) -> int:
        """Samples in one pass over the photographs."""
        return self.samples.epoch_length

    def train_dataloader(self) -> DataLoader:
        """From the trainer's step on, which is above 0 where it resumes."""
        trainer = self.trainer
        assert trainer is not None
        batches = StepBatches(
            self.steps, self.config.batch, first=trainer.global_step, rank=trainer.global_rank, world=trainer.world_size
        )
        return StepLoader(
            self.samples, batch_sampler=batches, collate_fn=collate_training, num_workers=self.config.workers
        )

    def val_dataloader(self) -> DataLoader | list[Any]:
        """This rank's share of the validation samples."""
        trainer = self.trainer
        assert trainer is not None
        numbers = range(trainer.global_rank, self.config.validation, trainer.world_size)
        batch = self.config.batch
        batches = [list(numbers[i : i + batch]) for i in range(0, len(numbers), batch)]
        if not batches:
            return []
        return DataLoader(
            self.held_out,
            batch_sampler=batches,
            collate_fn=collate_pairs if self.exact else collate_training,
            num_workers=self.config.workers,
        )

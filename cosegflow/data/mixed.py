"""Training samples of several sources in turn."""

from collections.abc import Sequence

from cosegflow.data.training import TrainingSample, TrainingSource


class MixedSource:
    """Sample n is sample n // k of source n mod k, of k sources: each batch of a multiple of k has as many of each."""

    def __init__(self, sources: Sequence[TrainingSource]) -> None:
        self.sources = tuple(sources)
        self.name = "+".join(source.name for source in self.sources)

    @property
    def epoch_length(self) -> int:
        """So many that the longest source has made one pass."""
        return len(self.sources) * max(source.epoch_length for source in self.sources)

    def with_at_least(self, count: int) -> "MixedSource":
        """Each without its categories of fewer than `count` photographs; DatasetError if one has none left."""
        return MixedSource([source.with_at_least(count) for source in self.sources])

    def draw(
        self, seed: int, number: int, *, size: int, triplets: bool, augment: bool, truth: bool = False
    ) -> TrainingSample:
        """Sample `number`: a pure function of the arguments; DatasetError as the sources."""
        place, which = divmod(number, len(self.sources))
        source = self.sources[which]
        sample = source.draw(seed, place, size=size, triplets=triplets, augment=augment, truth=truth)
        return sample._replace(number=number)

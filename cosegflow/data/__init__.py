"""Data: one `Pair` type for all data sets, training samples by class label, the composer, photographs of your own."""

from cosegflow.data.composer import ComposedPairs, compose_pair
from cosegflow.data.entries import PairDataset
from cosegflow.data.errors import DatasetError
from cosegflow.data.pair import Pair, collate_pairs
from cosegflow.data.photographs import PhotographError, read_photograph
from cosegflow.data.registry import DATASETS, open_dataset, open_training_source
from cosegflow.data.sources import DataNotFoundError, Library, Stamp, load_library
from cosegflow.data.training import TrainingSample, TrainingSamples, collate_training

__all__ = [
    "DATASETS",
    "ComposedPairs",
    "DataNotFoundError",
    "DatasetError",
    "Library",
    "Pair",
    "PairDataset",
    "PhotographError",
    "Stamp",
    "TrainingSample",
    "TrainingSamples",
    "collate_pairs",
    "collate_training",
    "compose_pair",
    "load_library",
    "open_dataset",
    "open_training_source",
    "read_photograph",
]

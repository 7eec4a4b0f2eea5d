"""Image pairs: one `Pair` type, the composer that makes pairs with exact truth, and photographs of the user's own."""

from cosegflow.data.composer import ComposedPairs, compose_pair
from cosegflow.data.pair import Pair, collate_pairs
from cosegflow.data.photographs import PhotographError, read_photograph
from cosegflow.data.sources import DataNotFoundError, Library, Stamp, load_library

__all__ = [
    "ComposedPairs",
    "DataNotFoundError",
    "Library",
    "Pair",
    "PhotographError",
    "Stamp",
    "collate_pairs",
    "compose_pair",
    "load_library",
    "read_photograph",
]

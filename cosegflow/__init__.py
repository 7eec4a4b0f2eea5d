"""cosegflow: hand-written kernels for dense correspondence, and the joint training of matching and co-segmentation."""

from cosegflow._library import is_available
from cosegflow._version import __version__
from cosegflow.ops import correlation, match, soft_argmax, transfer, warmup, warp
from cosegflow.types import IndexedMatches, Matches

__all__ = [
    "IndexedMatches",
    "Matches",
    "__version__",
    "correlation",
    "is_available",
    "match",
    "soft_argmax",
    "transfer",
    "warmup",
    "warp",
]

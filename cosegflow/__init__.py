"""cosegflow: hand-written kernels for dense correspondence, and the joint training of matching and co-segmentation."""

from cosegflow._library import is_available
from cosegflow._version import __version__
from cosegflow.ops import (
    correlation,
    cycle_error,
    local_correlation,
    match,
    match_both,
    resize_flow,
    soft_argmax,
    transfer,
    warmup,
    warp,
)
from cosegflow.types import CycleError, IndexedMatches, Matches

__all__ = [
    "CycleError",
    "IndexedMatches",
    "Matches",
    "__version__",
    "correlation",
    "cycle_error",
    "is_available",
    "local_correlation",
    "match",
    "match_both",
    "resize_flow",
    "soft_argmax",
    "transfer",
    "warmup",
    "warp",
]

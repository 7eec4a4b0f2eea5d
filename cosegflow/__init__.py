"""cosegflow: hand-written kernels for dense correspondence, and the joint training of matching and co-segmentation."""

from cosegflow._version import __version__
from cosegflow.ops import warp
from cosegflow.types import IndexedMatches, Matches


__all__ = ["IndexedMatches", "Matches", "__version__", "warp"]

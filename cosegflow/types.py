"""The result types of the operations."""

from typing import NamedTuple

from torch import Tensor
from torch.utils import _pytree


class Matches(NamedTuple):
    """Dense correspondences of every pixel of image a in image b.

    All three are float32 (float64 for float64 inputs).
    """

    flow: Tensor
    """(B, 2, Ha, Wa), pixels of b minus pixels of a; channel 0 is x (right), channel 1 is y (down)."""
    lse: Tensor
    """(B, Ha, Wa), natural log of the softmax denominator, with beta and the mask in it; -inf where nothing matches."""
    confidence: Tensor
    """(B, Ha, Wa), the largest matching probability, in [0, 1]; carries no gradient."""


class CycleError(NamedTuple):
    """How far each pixel of a ends from where it began, carried to b and back."""

    error: Tensor
    """(B, Ha, Wa), pixels of a; float32 (float64 for float64 flows); 0 where not valid."""
    valid: Tensor
    """(B, Ha, Wa) bool: the pixel's match lies in b, and both flows are finite there."""


class IndexedMatches(NamedTuple):
    """`Matches` with the most probable target of each pixel."""

    flow: Tensor
    """(B, 2, Ha, Wa), as in `Matches`."""
    lse: Tensor
    """(B, Ha, Wa), as in `Matches`."""
    confidence: Tensor
    """(B, Ha, Wa), as in `Matches`."""
    index: Tensor  # type: ignore[assignment]  # tuple.index is hidden, as the contract names the field
    """(B, Ha, Wa) int64, flat position ``y * Wb + x`` of the most probable target; -1 where nothing matches."""
    score: Tensor
    """(B, Ha, Wa), the score (before beta and mask) at `index`; -inf where nothing matches."""


# A name for each in files of torch.export.save, so that an exported model may return them.
if hasattr(_pytree, "_register_namedtuple"):
    for _result in (Matches, CycleError, IndexedMatches):
        _pytree._register_namedtuple(_result, serialized_type_name=f"cosegflow.types.{_result.__name__}")

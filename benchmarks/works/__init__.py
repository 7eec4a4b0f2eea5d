"""The registry of works, in the order in which they are measured."""

from .base import Work
from .match import MATCH, MATCH_BOTH, TRANSFER
from .sampling import CYCLE_ERROR, LOCAL_CORRELATION, LOOKUP, WARP
from .volume import CORRELATION, SOFT_ARGMAX

WORKS: dict[str, Work] = {
    work.name: work
    for work in (MATCH, WARP, CORRELATION, SOFT_ARGMAX, MATCH_BOTH, TRANSFER, LOCAL_CORRELATION, LOOKUP, CYCLE_ERROR)
}

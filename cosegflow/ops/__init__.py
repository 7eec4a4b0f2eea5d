"""The public operations, one module each."""

from cosegflow.ops._trust import warmup
from cosegflow.ops.correlation import correlation
from cosegflow.ops.cycle_error import cycle_error
from cosegflow.ops.local_correlation import local_correlation
from cosegflow.ops.match import match
from cosegflow.ops.match_both import match_both
from cosegflow.ops.resize_flow import resize_flow
from cosegflow.ops.soft_argmax import soft_argmax
from cosegflow.ops.transfer import transfer
from cosegflow.ops.warp import warp

__all__ = [
    "correlation",
    "cycle_error",
    "local_correlation",
    "match",
    "match_both",
    "resize_flow",
    "soft_argmax",
    "transfer",
    "warmup",
    "warp",
]

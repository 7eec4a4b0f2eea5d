"""The public operations, one module each."""

from cosegflow.ops._trust import warmup
from cosegflow.ops.correlation import correlation
from cosegflow.ops.match import match
from cosegflow.ops.soft_argmax import soft_argmax
from cosegflow.ops.transfer import transfer
from cosegflow.ops.warp import warp

__all__ = ["correlation", "match", "soft_argmax", "transfer", "warmup", "warp"]

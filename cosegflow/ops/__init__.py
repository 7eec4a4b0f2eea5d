"""The public operations, one module each."""

from cosegflow.ops.warp import warp

__all__ = ["warp"]

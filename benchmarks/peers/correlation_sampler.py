"""Pytorch-Correlation-extension (`spatial-correlation-sampler`): windowed correlation.

Its release builds against a CUDA build of torch only.
"""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

import torch
from torch import Tensor

from ..case import Case
from ..works.base import Function, Inputs
from .base import Peer, Unavailable


def version() -> str:
    """'' where it is not installed."""
    try:
        return version_of("spatial-correlation-sampler")
    except PackageNotFoundError:
        return ""


def _local(case: Case, device: torch.device) -> Function:
    try:
        from spatial_correlation_sampler import spatial_correlation_sample
    except ImportError as error:
        raise Unavailable(
            f"{error}: pip install --no-build-isolation spatial-correlation-sampler (needs a CUDA build of torch)"
        ) from None
    if case.a != case.b:
        raise Unavailable("both feature maps must have one size")
    if device.type == "cpu" and case.dtype not in ("float32", "float64"):
        raise Unavailable(f"no {case.dtype} on the CPU")
    window = 2 * case.radius + 1

    def call(inputs: Inputs) -> Tensor:
        out: Tensor = spatial_correlation_sample(
            inputs["fa"].contiguous(), inputs["fb"].contiguous(), kernel_size=1, patch_size=window
        )
        return out.flatten(1, 2)  # (B, dy, dx, H, W)

    return call


PEER = Peer(
    name="spatial-correlation-sampler",
    summary="Pytorch-Correlation-extension",
    works={"local_correlation": _local},
    version=version,
)

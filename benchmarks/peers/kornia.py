"""kornia: remap (grid_sample in pixels) and spatial_soft_argmax2d."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

import torch
from torch import Tensor

from ..case import Case
from ..works.base import Function, Inputs
from .base import Peer, Unavailable
from .eager import positions, to_flow


def version() -> str:
    """'' where it is not installed."""
    try:
        return version_of("kornia")
    except PackageNotFoundError:
        return ""


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise Unavailable(f"{error}: pip install 'cosegflow[bench]'") from None


def _warp(case: Case, device: torch.device) -> Function:
    remap = _module("kornia.geometry.transform").remap

    def call(inputs: Inputs) -> Tensor:
        flow = inputs["flow"]
        at = flow + positions(*case.a, flow).T.unflatten(1, case.a)
        x = inputs["x"]
        out: Tensor = remap(x, at[:, 0].to(x.dtype), at[:, 1].to(x.dtype), align_corners=True)
        return out

    return call


def _soft_argmax(case: Case, device: torch.device) -> Function:
    if case.foreground < 1:
        raise Unavailable("spatial_soft_argmax2d takes no mask")
    soft_argmax = _module("kornia.geometry.subpix").spatial_soft_argmax2d
    if tuple(int(n) for n in version().split(".")[:2]) < (0, 9):
        raise Unavailable(f"needs kornia >= 0.9, which divides by the temperature; here is {version()}")

    def call(inputs: Inputs) -> Tensor:
        corr = inputs["corr"].flatten(1, 2)
        return to_flow(soft_argmax(corr, 1 / case.beta, normalized_coordinates=False), case, {})

    return call


PEER = Peer(
    name="kornia",
    summary="kornia.geometry: remap, spatial_soft_argmax2d",
    works={"warp": _warp, "soft_argmax": _soft_argmax},
    version=version,
)

"""Backbones: modules that yield a feature pyramid. The default is pretrained and works offline."""

from torch import nn

from cosegflow.joint.backbones.protocol import Backbone, BackboneError
from cosegflow.joint.backbones.pyramid import PyramidBackbone
from cosegflow.joint.backbones.tiny import TinyBackbone

__all__ = ["NAMES", "Backbone", "BackboneError", "PyramidBackbone", "TinyBackbone", "as_backbone", "make_backbone"]

NAMES = (
    "efficientnet-lite0", "mobilenet-v2", "resnet50", "resnet101", "dinov2-small", "dinov2-base", "dinov2-large",
    "tiny",
)  # fmt: skip
EXTRA_HINT = "pip install 'cosegflow[joint]'"


def make_backbone(name: str, weights: str | None = None) -> nn.Module:
    """The backbone `name`, one of `NAMES` ("tiny" has random weights, for tests).

    Args:
        name: which one.
        weights: a local file (DINOv2: or folder); None: the pip package of EfficientNet-lite0, a hub for all others.

    Raises:
        BackboneError: unknown name, or weights that are missing or do not fit; the message says what to do.
        ModuleNotFoundError: the package of EfficientNet-lite0 is missing; the message says what to install.
    """
    if name not in NAMES:
        raise BackboneError(f"backbone: {name!r} is unknown; there are {', '.join(NAMES)}")
    if name == "tiny":
        if weights is not None:
            raise BackboneError(f"weights: backbone 'tiny' takes none, got {weights}")
        return TinyBackbone()
    if name == "mobilenet-v2":
        from cosegflow.joint.backbones.mobilenet import MobileNetV2

        return MobileNetV2(weights)
    if name.startswith("resnet"):
        from cosegflow.joint.backbones.resnet import ResNet

        return ResNet(name, weights)
    if name.startswith("dinov2"):
        from cosegflow.joint.backbones.dinov2 import DinoV2

        return DinoV2(name, weights)
    from cosegflow.joint.backbones.efficientnet import EfficientNetLite0

    try:
        return EfficientNetLite0(weights)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is missing: {EXTRA_HINT}", name=error.name) from None


def as_backbone(module: nn.Module) -> nn.Module:
    """The module itself where it is a `Backbone`, else in a `PyramidBackbone`."""
    return module if isinstance(module, Backbone) else PyramidBackbone(module)

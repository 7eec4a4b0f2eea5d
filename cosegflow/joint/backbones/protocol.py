"""What the joint model needs of a backbone, and what all of ours share."""

from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)

Module = TypeVar("Module", bound=nn.Module)


class BackboneError(ValueError):
    """A backbone or its weights cannot be used; one line that says what is missing and what to do."""


@runtime_checkable
class Backbone(Protocol):
    """A feature pyramid whose first levels are frozen and whose last one adapts.

    A backbone may also have `stem_channels: int` and `stem(image)`, its features at stride 2 (B, stem_channels, H/2,
    W/2), for the last skip connection of the decoder "paper"; and `semantic(x)`, from what the tail takes to the
    frozen stride-16 features and the last ones before they are pooled, both on a grid of stride 16, for `foreground`.
    Without it the adapted stride-16 features serve as both.
    """

    channels: tuple[int, int, int]
    """Channels at strides 4, 8 and 16."""
    descriptor_channels: int
    """Length c of the pooled descriptor."""

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) in [0, 1], H and W multiples of 16, to the features at strides 4 and 8 and what the tail takes.

        Frozen. For a plain network the tail takes the stride-8 features again.
        """

    def make_tail(self) -> nn.Module:
        """A trainable copy of the layers that give the stride-16 features, (B, channels[2], H/16, W/16)."""

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, c), the pooled features of the contrast loss; differentiable in the image."""


def check_image(image: Tensor) -> None:
    """Raises a ValueError unless image is (B, 3, H, W) with sides that are multiples of 16."""
    if image.dim() != 4 or image.shape[1] != 3 or image.shape[2] % 16 or image.shape[3] % 16:
        raise ValueError(f"image: need (B, 3, H, W) with H and W multiples of 16, got {tuple(image.shape)}")


class FrozenStatistics(nn.Sequential):
    """Layers whose weights may train while batch norm keeps the statistics it came with."""

    def train(self, mode: bool = True) -> "FrozenStatistics":
        """Stays in evaluation mode."""
        return super().train(False)


class FrozenBackbone(nn.Module):
    """A pretrained network that does not learn; batch-norm statistics stay those that it came with."""

    def train(self: Module, mode: bool = True) -> Module:
        """Stays in evaluation mode."""
        return nn.Module.train(self, False)

    def freeze(self) -> None:
        """To be called at the end of `__init__`."""
        self.requires_grad_(False)
        self.eval()


def standardise(image: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1], minus ImageNet's mean, over its standard deviation."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=image.dtype, device=image.device)[:, None, None]
    deviation = torch.tensor(IMAGENET_DEVIATION, dtype=image.dtype, device=image.device)[:, None, None]
    return (image - mean) / deviation


class ResidualTail(nn.Module):
    """Stride-16 features that adapt: x + W x with a 1 x 1 convolution W that is zero at the start."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.change(x)

"""Any module of the user's as a backbone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from cosegflow.joint.backbones.protocol import BackboneError, FrozenBackbone, ResidualTail, check_image, standardise

STRIDES = (4, 8, 16)
PROBE = 64


class PyramidBackbone(FrozenBackbone):
    """A module that returns feature maps at strides 4, 8 and 16, among others if it likes; frozen.

    A residual 1 x 1 convolution on its stride-16 map adapts. The pooled descriptor is that map's average.

    Args:
        module: (B, 3, H, W) to a sequence of maps (B, C, H/s, W/s) or a dictionary with such values, in any order.
        normalise: hand it images minus ImageNet's mean over its deviation; False: images in [0, 1].

    Raises:
        BackboneError: it fails on an image of 64 x 64 pixels, or gives no map, or two, of one of the strides.
    """

    def __init__(self, module: nn.Module, normalise: bool = True) -> None:
        super().__init__()
        self.module = module
        self.normalise = normalise
        self.freeze()
        first = next(self.parameters(), torch.empty(0))
        try:
            with torch.no_grad():
                maps = self._maps(torch.zeros(1, 3, PROBE, PROBE, dtype=first.dtype, device=first.device))
        except BackboneError:
            raise
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise BackboneError(
                f"backbone: {type(module).__name__} fails on an image (1, 3, {PROBE}, {PROBE}): {reason}"
            ) from None
        self.channels = (maps[0].shape[1], maps[1].shape[1], maps[2].shape[1])
        self.descriptor_channels = self.channels[2]

    def _maps(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.module(standardise(image) if self.normalise else image)
        maps = list(found.values()) if isinstance(found, Mapping) else found
        name = type(self.module).__name__
        if not isinstance(maps, Sequence) or not all(isinstance(m, Tensor) and m.dim() == 4 for m in maps):
            kind = type(found).__name__
            raise BackboneError(f"backbone: {name}: need feature maps (B, C, H, W) at strides 4, 8 and 16, got {kind}")
        height, width = image.shape[2:]
        chosen = []
        for stride in STRIDES:
            fitting = [m for m in maps if tuple(m.shape[2:]) == (height // stride, width // stride)]
            if len(fitting) != 1:
                shapes = ", ".join(str(tuple(m.shape)) for m in maps)
                raise BackboneError(
                    f"backbone: {name}: need one map at each of the strides 4, 8 and 16, got {len(fitting)} at stride"
                    f" {stride} (an image {tuple(image.shape)} gives {shapes})"
                )
            chosen.append(fitting[0])
        return chosen[0], chosen[1], chosen[2]

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone.trunk`."""
        check_image(image)
        return self._maps(image)

    def make_tail(self) -> nn.Module:
        """A residual 1 x 1 convolution."""
        return ResidualTail(self.channels[2])

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, C) of the stride-16 map."""
        return self.trunk(image)[2].mean((2, 3))

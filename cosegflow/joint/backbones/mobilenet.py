"""MobileNetV2; names of tensors as in torchvision's file."""

import copy

from torch import Tensor, nn

from cosegflow.joint.backbones.protocol import FrozenBackbone, FrozenStatistics, check_image, standardise
from cosegflow.joint.backbones.weights import hub_state, load_state, read_state

SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage (Sandler et al., CVPR 2018, table 2)."""


def conv_layers(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; a skip where shapes allow."""

    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.skips = stride == 1 and channels == out
        layers: list[nn.Module] = [] if expansion == 1 else [conv_layers(channels, hidden, 1)]
        layers += [
            conv_layers(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out, H / stride, W / stride)."""
        return x + self.conv(x) if self.skips else self.conv(x)


class MobileNetV2(FrozenBackbone):
    """MobileNetV2 with ImageNet's weights, mean and deviation; frozen.

    Features at strides 2 (16 channels), 4 (24), 8 (32) and 16 (96, the end of the last stage of that stride).

    Args:
        weights: a local file with torchvision's names; None: from a hub, by torchvision.

    Raises:
        BackboneError: no weights.
    """

    channels = (24, 32, 96)
    stem_channels = 16
    descriptor_channels = 1280
    _ENDS = (2, 4, 7, 14)  # where strides 2, 4, 8 and 16 end in `features`

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        state = hub_state("mobilenet_v2", "MobileNet_V2_Weights.IMAGENET1K_V1") if not weights else read_state(weights)
        layers: list[nn.Module] = [conv_layers(3, 32, 3, stride=2)]
        channels = 32
        for expansion, out, count, stride in SETTINGS:
            for i in range(count):
                layers.append(InvertedResidual(channels, out, stride if i == 0 else 1, expansion))
                channels = out
        self.features = nn.Sequential(*layers, conv_layers(channels, 1280, 1))
        load_state(self, state, "mobilenet-v2", weights or "the hub", head="classifier.")
        self.freeze()

    def stem(self, image: Tensor) -> Tensor:
        """(B, 16, H/2, W/2)."""
        return self.features[: self._ENDS[0]](standardise(image))

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone.trunk`."""
        check_image(image)
        _, fine_end, middle_end, _ = self._ENDS
        fine = self.features[self._ENDS[0] : fine_end](self.stem(image))
        middle = self.features[fine_end:middle_end](fine)
        return fine, middle, middle

    def make_tail(self) -> nn.Module:
        """features[7:14]."""
        layers = list(self.features)[self._ENDS[2] : self._ENDS[3]]
        return FrozenStatistics(*copy.deepcopy(layers)).requires_grad_(True)

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, 1280): the last features, averaged over the image."""
        check_image(image)
        return self.features(standardise(image)).mean((2, 3))

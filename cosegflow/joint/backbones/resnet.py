"""ResNet-50 and ResNet-101, the paper's backbone; names of tensors as in torchvision's files."""

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from cosegflow.joint.backbones.protocol import FrozenBackbone, FrozenStatistics, check_image, standardise
from cosegflow.joint.backbones.weights import hub_state, load_state, read_state

DEPTHS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
HUB = {
    "resnet50": ("ResNet50_Weights.IMAGENET1K_V1", "resnet50.tv_in1k"),
    "resnet101": ("ResNet101_Weights.IMAGENET1K_V1", "resnet101.tv_in1k"),
}


class Bottleneck(nn.Module):
    """The residual block of He et al., CVPR 2016, with the stride in its 3 x 3 convolution."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 width, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def make_layer(channels: int, width: int, count: int, stride: int) -> nn.Sequential:
    """`count` blocks, the first of which has the stride."""
    rest = (Bottleneck(4 * width, width, 1) for _ in range(count - 1))
    return nn.Sequential(Bottleneck(channels, width, stride), *rest)


class ResNet(FrozenBackbone):
    """ResNet cut after layer3 (conv4), ImageNet's mean and deviation; frozen.

    Features at strides 2 (64 channels), 4 (256), 8 (512) and 16 (1024); the descriptor is layer4's, pooled (pool5).

    Args:
        name: "resnet50" or "resnet101".
        weights: a local file with torchvision's names; None: from a hub, by torchvision or timm.

    Raises:
        BackboneError: no weights.
    """

    channels = (256, 512, 1024)
    stem_channels = 64
    descriptor_channels = 2048

    def __init__(self, name: str = "resnet101", weights: str | None = None) -> None:
        super().__init__()
        state = hub_state(name, *HUB[name]) if weights is None else read_state(weights)
        depths = DEPTHS[name]
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = make_layer(64, 64, depths[0], 1)
        self.layer2 = make_layer(256, 128, depths[1], 2)
        self.layer3 = make_layer(512, 256, depths[2], 2)
        self.layer4 = make_layer(1024, 512, depths[3], 2)
        load_state(self, state, name, weights or "the hub", head="fc.")
        self.freeze()

    def stem(self, image: Tensor) -> Tensor:
        """(B, 64, H/2, W/2)."""
        return F.relu(self.bn1(self.conv1(standardise(image))))

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone.trunk`."""
        check_image(image)
        fine = self.layer1(F.max_pool2d(self.stem(image), 3, stride=2, padding=1))
        middle = self.layer2(fine)
        return fine, middle, middle

    def make_tail(self) -> nn.Module:
        """layer3."""
        return FrozenStatistics(*copy.deepcopy(list(self.layer3))).requires_grad_(True)

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, 2048): pool5."""
        return self.layer4(self.layer3(self.trunk(image)[1])).mean((2, 3))

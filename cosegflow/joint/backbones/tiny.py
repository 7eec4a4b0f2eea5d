"""A backbone for tests: four convolutions with fixed random weights."""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosegflow.joint.backbones.protocol import FrozenBackbone, FrozenStatistics, check_image


class TinyBackbone(FrozenBackbone):
    """Four strided convolutions with fixed random weights, for tests."""

    channels = (8, 12, 16)
    stem_channels = 8
    descriptor_channels = 16

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        widths = (3, 8, 8, 12, 16)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in itertools.pairwise(widths))
        self.freeze()

    def stem(self, image: Tensor) -> Tensor:
        """(B, 8, H/2, W/2)."""
        return F.leaky_relu(self.layers[0](image - 0.5), 0.1)

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone.trunk`."""
        check_image(image)
        fine = F.leaky_relu(self.layers[1](self.stem(image)), 0.1)
        middle = F.leaky_relu(self.layers[2](fine), 0.1)
        return fine, middle, middle

    def make_tail(self) -> nn.Module:
        """The last convolution."""
        return FrozenStatistics(copy.deepcopy(self.layers[3])).requires_grad_(True)

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, 16)."""
        return self.layers[3](self.trunk(image)[1]).mean((2, 3))

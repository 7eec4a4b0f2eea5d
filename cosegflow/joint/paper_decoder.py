"""The paper's mask decoder: features beside the raw correlation with the other photograph, up to full resolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bilinear_(layer: nn.ConvTranspose2d) -> None:
    """Sets a transposed convolution (k3, s2) to bilinear upsampling of a random projection of channels, without bias.

    Each output channel upsamples a mix of all input channels with weights from N(0, 1 / inputs). Upsampling channel i
    to channel i alone, where there are fewer outputs than inputs, would leave out the correlation at the start.
    """
    tap = torch.tensor((0.5, 1.0, 0.5))
    mix = torch.randn(layer.weight.shape[:2]) / layer.weight.shape[0] ** 0.5
    with torch.no_grad():
        layer.weight.copy_(mix[..., None, None] * (tap[:, None] * tap))
        assert layer.bias is not None
        layer.bias.zero_()


class PaperDecoder(nn.Module):
    """Four transposed convolutions (k3, s2, p1, output padding 1), BN + ReLU between, added skips (section 1).

    C_A = cat(f_A, S_BA): C16 + cells -> C8, + stride 8; -> C4, + stride 4; -> C2, + stride 2; -> 1, the logits. The
    channels are the backbone's (ResNet: 1249 -> 512 -> 256 -> 64 -> 1, as printed). f_A has unit length over C. A
    backbone without a stride-2 level has no skip there, and a quarter of C4 channels.

    Args:
        channels: at strides 4, 8 and 16.
        stem_channels: at stride 2; 0: there is no such level.
        cells: positions of the other photograph's stride-16 grid, which fixes its size.
    """

    def __init__(self, channels: tuple[int, int, int], stem_channels: int, cells: int) -> None:
        super().__init__()
        half = stem_channels or max(4, channels[0] // 4)
        widths = (channels[2] + cells, channels[1], channels[0], half, 1)
        layers = [
            nn.ConvTranspose2d(widths[i], widths[i + 1], 3, stride=2, padding=1, output_padding=1) for i in range(4)
        ]
        for layer in layers:
            bilinear_(layer)
        self.up = nn.ModuleList(layers)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:4])

    def forward(self, pyramid: tuple[Tensor, Tensor, Tensor], stem: Tensor | None, volume: Tensor) -> Tensor:
        """Logits (B, H, W).

        Args:
            pyramid: features at strides 4, 8 and 16.
            stem: features at stride 2, or None.
            volume: (B, cells, H/16, W/16), the correlation with each position of the other photograph.
        """
        x = torch.cat((F.normalize(pyramid[2], dim=1), volume.to(pyramid[2].dtype)), 1)
        for layer, norm, skip in zip(self.up[:3], self.norms, (pyramid[1], pyramid[0], stem), strict=True):
            x = F.relu(norm(layer(x)))
            if skip is not None:
                x = x + skip
        return self.up[3](x).squeeze(1)

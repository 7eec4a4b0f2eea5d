"""The default mask decoder: features, what the matching says, and skip connections, to a logit per stride-4 cell."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosegflow.joint.foreground import SHARPNESS

CUES = 8
DISCRIMINANT = 7
"""The cue that an untrained decoder thresholds."""


class MaskDecoder(nn.Module):
    """Stride-16, 8 and 4 features and matching cues to mask logits (B, H/4, W/4).

    The paper concatenates the raw correlation (one channel per cell of the other image), which fixes the image size;
    ours takes `CUES` summaries of it per cell, so any sizes work. Skips are added, as in the paper.
    """

    def __init__(self, channels: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(channels[2], width, 1)
        self.middle = nn.Conv2d(channels[1], width, 1)
        self.fine = nn.Conv2d(channels[0], width // 2, 1)
        self.cues = nn.Conv2d(CUES, width, 3, padding=1)
        self.block8 = nn.Sequential(
            nn.GroupNorm(4, width),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.GELU(),
            nn.Conv2d(width, width // 2, 3, padding=1),
        )
        self.block4 = nn.Sequential(
            nn.GroupNorm(4, width // 2), nn.GELU(), nn.Conv2d(width // 2, width // 2, 3, padding=1)
        )
        self.head = nn.Conv2d(width // 2, 1, 1)
        self.skip = nn.Conv2d(CUES, 1, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        with torch.no_grad():  # starts as a soft threshold on the discriminant: the mask without training
            self.skip.weight.zero_()
            self.skip.weight[0, DISCRIMINANT] = SHARPNESS
            self.skip.bias.zero_()  # type: ignore[union-attr]

    def project(self, pyramid: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What the features of strides 4, 8 and 16 say, at strides 8 and 4; the same in every round."""
        fine, middle, coarse = (F.normalize(level, dim=1) * level.shape[1] ** 0.5 for level in pyramid)
        upper = F.interpolate(self.coarse(coarse), size=middle.shape[-2:], mode="bilinear", align_corners=False)
        return upper + self.middle(middle), self.fine(fine)

    def forward(self, projected: tuple[Tensor, Tensor], cues: Tensor) -> Tensor:
        """Logits (B, H/4, W/4) from `project` and cues (B, CUES, H/8, W/8), or as fine as stride 4."""
        middle, fine = projected
        size8, size4 = middle.shape[-2:], fine.shape[-2:]
        coarse_cues = cues if cues.shape[-2:] == size8 else F.adaptive_avg_pool2d(cues, (size8[0], size8[1]))
        x = self.block8(middle + self.cues(coarse_cues))
        x = F.interpolate(x, size=size4, mode="bilinear", align_corners=False) + fine
        plain = F.interpolate(self.skip(cues), size=size4, mode="bilinear", align_corners=False)
        return (self.head(x + self.block4(x)) + plain).squeeze(1)

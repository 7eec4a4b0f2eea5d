"""Zero-shot matching: cosine nearest neighbour of a pretrained backbone's stride-16 features, nothing trained.

The baseline that joint training has to beat with the same backbone. Photographs are squashed to 240 x 240 (bilinear,
antialiased), which gives 15 x 15 cells. A position moves between the photograph and a grid by x' = (x + 0.5) s - 0.5.
The descriptor at a position of a is interpolated bilinearly between cells; its match is the centre of the cell of b
with the largest cosine.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cosegflow
from cosegflow.joint.matcher import spatial_size
from cosegflow.joint.predict import Prediction

IMAGE_SIZE = 240
BLOCK = 1 << 16
"""So many positions are matched at a time: bounds the memory that interpolated descriptors take."""


class ZeroShotMatcher(nn.Module):
    """Matches photographs of any size by pretrained features alone; its masks are the whole photographs."""

    def __init__(self, backbone: nn.Module, image_size: int = IMAGE_SIZE) -> None:
        """backbone: a `Backbone`. image_size: both sides in pixels, a multiple of 16."""
        super().__init__()
        if image_size < 16 or image_size % 16:
            raise ValueError(f"image_size: need a multiple of 16, got {image_size}")
        source: Any = backbone
        self.backbone = source
        self.tail: nn.Module = source.make_tail()
        self.image_size = image_size
        self.eval()

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """(1, C, image_size / 16, image_size / 16) of a photograph (3, H, W) in [0, 1]."""
        size = (self.image_size, self.image_size)
        small = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)
        return self.tail(self.backbone.trunk(small.clamp(0, 1))[-1])

    @torch.no_grad()
    def transfer(self, image_a: Tensor, image_b: Tensor, points: Tensor) -> Tensor:
        """Where key points (K, 2) of a photograph (3, Ha, Wa) lie in b (3, Hb, Wb): (K, 2) float32; NaN stays."""
        found, _ = nearest_positions(
            self.features(image_a), self.features(image_b), points, spatial_size(image_a), spatial_size(image_b)
        )
        return found

    @torch.no_grad()
    def forward(self, image_a: Tensor, image_b: Tensor) -> Prediction:
        """Flow and cosine of every pixel for (1, 3, Ha, Wa) and (1, 3, Hb, Wb); the masks are all foreground."""
        if image_a.shape[0] != 1 or image_b.shape[0] != 1:
            raise ValueError(f"image_a: zero-shot takes one pair at a time, got a batch of {image_a.shape[0]}")
        fa, fb = self.features(image_a[0]), self.features(image_b[0])
        height, width = spatial_size(image_a[0])
        rows = max(1, BLOCK // width)
        flow = image_a.new_empty(2, height, width)
        score = image_a.new_empty(height, width)
        x = torch.arange(width, device=image_a.device, dtype=torch.float32)
        for top in range(0, height, rows):
            y = torch.arange(top, min(top + rows, height), device=image_a.device, dtype=torch.float32)
            here = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2).reshape(-1, 2)
            found, cosine = nearest_positions(fa, fb, here, (height, width), spatial_size(image_b[0]))
            flow[:, top : top + len(y)] = (found - here).T.reshape(2, len(y), width)
            score[top : top + len(y)] = cosine.reshape(len(y), width)
        ones = [image.new_ones(1, *spatial_size(image)) for image in (image_a[0], image_b[0])]
        return Prediction(flow[None], ones[0], ones[1], score.clamp(0, 1)[None])


def nearest_positions(
    fa: Tensor, fb: Tensor, points: Tensor, size_a: tuple[int, int], size_b: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The nearest cell of b for positions in a.

    Args:
        fa, fb: (1, C, ha, wa) and (1, C, hb, wb), features of the whole images.
        points: (N, 2) x, y in pixels of a; outside the image the nearest cell's descriptor counts.
        size_a, size_b: (H, W) of the images.

    Returns:
        (N, 2) float32, pixels of b, NaN for a NaN point, and (N,) the cosines.
    """
    if not len(points):
        return points.new_empty(0, 2), points.new_empty(0)
    known = points.isfinite().all(1, keepdim=True)
    scale = points.new_tensor((fa.shape[3] / size_a[1], fa.shape[2] / size_a[0]))
    cells = (torch.where(known, points, 0.0) + 0.5) * scale - 0.5
    count = len(points)
    grid = torch.stack((torch.arange(count, device=fa.device), torch.zeros(count, device=fa.device)), 1)
    step = (cells - grid).T.reshape(1, 2, 1, count).to(fa.dtype)
    described = cosegflow.warp(fa, step, padding="border")
    matched = cosegflow.match(described, fb, return_index=True)
    index, width = matched.index.reshape(count), fb.shape[3]
    centres = torch.stack((index % width, index // width), 1).float() + 0.5
    found = centres * centres.new_tensor((size_b[1] / fb.shape[3], size_b[0] / fb.shape[2])) - 0.5
    return torch.where(known, found, torch.nan), matched.score.reshape(count)

"""Correspondence by the features of any vision transformer: DINOv2, DINO, MAE, CLIP, or your own.

    python examples/dino_correspondence.py

`dense_features` takes any module that returns tokens (B, N, C), with or without class and register tokens in front, or
a map (B, C, h, w). The example runs offline, so it uses a small transformer with random weights, `RandomViT`: that
shows the mechanics, not the quality of a pretrained one. To use DINOv2 (patches of 14 pixels, images standardised with
ImageNet's mean and deviation, sides that are multiples of 14), make one of these your `model`:

    net = torch.hub.load("facebookresearch/dinov2", "dinov2_vits14").eval()
    model = lambda x: net.get_intermediate_layers(x, 1, reshape=True)[0]          # (B, C, h, w)
    net = timm.create_model("vit_small_patch14_dinov2", pretrained=True, dynamic_img_size=True).eval()
    model = net.forward_features                                                  # (B, 1 + N, C)

The pairs are crops of scikit-image's photographs (`pip install scikit-image`), shifted by whole patches, so that the
truth is known: the flow of an identical pair is 0, and shifts come out as they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import skimage.data
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cosegflow

PATCH = 14
SHIFT = (2, -1)  # patches to the right, patches down


class RandomViT(nn.Module):
    """Stands in for a pretrained transformer: patches, two blocks of attention, a class token in front."""

    def __init__(self, channels: int = 96) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, PATCH, stride=PATCH)
        block = nn.TransformerEncoderLayer(channels, 4, 2 * channels, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.class_token = nn.Parameter(torch.zeros(1, 1, channels))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1 + N, C)."""
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat((self.class_token.expand(len(image), -1, -1), tokens), 1))


def dense_features(model: Callable[[Tensor], Tensor], images: Tensor, patch: int) -> Tensor:
    """(B, C, H / patch, W / patch), each channel less its mean over the image."""
    height, width = images.shape[2] // patch, images.shape[3] // patch
    with torch.no_grad():
        found = model(images)
    if found.dim() == 3:  # tokens: those of patches come last, row by row
        found = found[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))
    if found.shape[2:] != (height, width):
        raise ValueError(f"model: need one feature for each {patch} x {patch} patch, got {tuple(found.shape)}")
    return found - found.mean((2, 3), keepdim=True)  # what all positions share says nothing about where


class Correspondence(NamedTuple):
    """Of a pair of images."""

    cells: Tensor  # (B, 2, h, w), patches: windowed soft argmax, between the centres of patches
    pixels: Tensor  # (B, 2, H, W): the same for every pixel of a
    points_a: Tensor  # (K, 2), pixels (x, y) of a: the centres of patches that are mutual nearest neighbours
    points_b: Tensor  # (K, 2), pixels of b


def correspond(fa: Tensor, fb: Tensor, size_a: tuple[int, int], size_b: tuple[int, int], patch: int) -> Correspondence:
    """Dense and sparse matches of features (1, C, h, w) of images of these sizes."""
    # The window keeps a second, distant peak from drawing the mean: SFNet's kernel soft argmax, sigma in patches.
    ab = cosegflow.match(fa, fb, beta=100.0, kernel_sigma=2.0, return_index=True)
    ba = cosegflow.match(fb, fa, beta=100.0, return_index=True)
    to_b, to_a = ab.index.flatten(), ba.index.flatten()  # flat positions y * w + x
    mutual = (to_a[to_b] == torch.arange(len(to_b), device=fa.device)).nonzero()[:, 0]

    def centres(index: Tensor, width: int) -> Tensor:
        cell = torch.stack((index % width, index // width), 1)
        return (cell + 0.5) * patch - 0.5  # the centre of a patch, where the centres of pixels are integers

    pixels = cosegflow.resize_flow(ab.flow, size_a, size_b, from_size_b=(fb.shape[2], fb.shape[3]))
    return Correspondence(ab.flow, pixels, centres(mutual, fa.shape[3]), centres(to_b[mutual], fb.shape[3]))


def crops(name: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(1, 3, *size) each, of one photograph: what is at (x, y) of a is at (x, y) + SHIFT * PATCH of b."""
    photograph = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None] / 255.0
    photograph = F.interpolate(
        photograph, size=(size[0] + 4 * PATCH, size[1] + 4 * PATCH), antialias=True, mode="bilinear"
    )
    x, y = (2 * PATCH - s * PATCH for s in SHIFT)  # where b's corner lies, a's being at (2, 2) patches
    a = photograph[:, :, 2 * PATCH : 2 * PATCH + size[0], 2 * PATCH : 2 * PATCH + size[1]]
    return a, photograph[:, :, y : y + size[0], x : x + size[1]]


def check(what: str, value: float, limit: float, least: bool = False) -> None:
    """Prints one line; ends the program where the value is beyond the limit or NaN."""
    print(f"{what}: {value:.3f} ({'at least' if least else 'at most'} {limit:g})")
    if not (value >= limit if least else value <= limit):
        raise SystemExit(f"dino_correspondence: {what} is {value:.4g}, beyond {limit:g}")


def main() -> None:
    """Identical pairs and shifted ones."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = RandomViT().eval().to(device)
    size = (16 * PATCH, 20 * PATCH)
    shift = torch.tensor(SHIFT, device=device)
    for name in ("astronaut", "coffee", "chelsea"):
        fa, fb = (dense_features(model, image.to(device), PATCH) for image in crops(name, size))
        same = correspond(fa, fa, size, size, PATCH)
        check(f"{name}, identical: mean length of the flow, pixels", same.pixels.norm(dim=1).mean().item(), 1.0)
        found = correspond(fa, fb, size, size, PATCH)
        right = ((found.points_b - found.points_a) == shift * PATCH).all(1).float()
        print(f"{name}, shifted: {len(right)} mutual nearest neighbours")
        check(f"{name}, shifted: part of them with exactly the shift", right.mean().item(), 0.9, least=True)
        y, x = slice(1, None), slice(0, -2)  # patches of a that are in b
        error = (found.cells[:, :, y, x] - shift[:, None, None]).norm(dim=1)
        check(f"{name}, shifted: median error of the flow, patches", error.median().item(), 0.1)
        y, x = slice(2 * PATCH, -PATCH), slice(PATCH, -3 * PATCH)
        error = (found.pixels[:, :, y, x] - PATCH * shift[:, None, None]).norm(dim=1)
        check(f"{name}, shifted: median error of the flow, pixels", error.median().item(), 0.1 * PATCH)


if __name__ == "__main__":
    main()

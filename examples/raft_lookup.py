"""RAFT's correlation lookup without its all-pairs volume: a CorrBlock that calls `cosegflow.local_correlation`.

    python examples/raft_lookup.py

RAFT (Teed and Deng 2020, arXiv 2003.12039, section 3.2) stores the inner products of all pairs of pixels, pools them
over the targets to a pyramid, and reads a window around each pixel's current match at every level. Pooling inner
products over targets is pooling the features of the targets, so each level is a `local_correlation` with pooled
features, and the volume is never stored. `CorrBlock` below has RAFT's interface; `PlainCorrBlock` is what it replaces.
Values and gradients of both are compared, for sizes that 2, 4 and 8 divide and for others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import cosegflow


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(1, 2, height, width): x and y of each pixel."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y))[None].to(like)


class CorrBlock:
    """Drop-in for RAFT's CorrBlock: features (B, C, H, W) in, then `corr_fn(coords)` at every iteration."""

    def __init__(self, fmap1: Tensor, fmap2: Tensor, num_levels: int = 4, radius: int = 4) -> None:
        self.radius = radius
        self.fmap1 = fmap1.float() / fmap1.shape[1] ** 0.5  # RAFT divides the products by sqrt(C)
        self.pyramid = [fmap2.float()]
        for _ in range(num_levels - 1):
            self.pyramid.append(F.avg_pool2d(self.pyramid[-1], 2, stride=2))

    def __call__(self, coords: Tensor) -> Tensor:
        """coords (B, 2, H, W), x then y: pixels of fmap2. Returns (B, num_levels (2r+1)^2, H, W)."""
        side = 2 * self.radius + 1
        grid = pixel_grid(coords.shape[2], coords.shape[3], coords)
        out = []
        for level, fmap2 in enumerate(self.pyramid):
            flow = coords / 2**level - grid  # p + flow(p) is the match at this level's scale
            window = cosegflow.local_correlation(self.fmap1, fmap2, self.radius, flow)
            # Ours runs row by row, k = (dy + r) side + dx + r; RAFT's column by column, k = (dx + r) side + dy + r.
            out.append(window.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2))
        return torch.cat(out, 1)


class PlainCorrBlock:
    """The same in plain torch: volume, pooled volume, grid_sample."""

    def __init__(self, fmap1: Tensor, fmap2: Tensor, num_levels: int = 4, radius: int = 4) -> None:
        self.radius = radius
        batch, channels, height, width = fmap1.shape
        volume = torch.einsum("bcij,bckl->bijkl", fmap1, fmap2) / channels**0.5
        self.pyramid = [volume.reshape(batch * height * width, 1, *fmap2.shape[2:])]
        for _ in range(num_levels - 1):
            self.pyramid.append(F.avg_pool2d(self.pyramid[-1], 2, stride=2))

    def __call__(self, coords: Tensor) -> Tensor:
        """As of `CorrBlock`."""
        batch, _, height, width = coords.shape
        offsets = torch.arange(-self.radius, self.radius + 1).to(coords)
        delta = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), -1)  # delta[i, j] = (x: i - r, y: j - r)
        centres = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
        out = []
        for level, volume in enumerate(self.pyramid):
            size = torch.tensor([volume.shape[3], volume.shape[2]]).to(coords)
            points = 2 * (centres / 2**level + delta) / (size - 1) - 1  # pixels to grid_sample's -1 .. 1
            window = F.grid_sample(volume, points, align_corners=True)
            out.append(window.reshape(batch, height, width, -1))
        return torch.cat(out, -1).permute(0, 3, 1, 2)


def check(what: str, error: float, limit: float) -> None:
    """Prints one line; ends the program where the error is above the limit or NaN."""
    print(f"{what}: largest difference {error:.1e} (limit {limit:.0e})")
    if not error <= limit:
        raise SystemExit(f"raft_lookup: {what} differs by {error:.3g}, more than {limit:.3g}")


def compare(size: tuple[int, int], device: str, generator: torch.Generator) -> None:
    """Values and gradients of both blocks, with 4 levels of radius 4, 32 channels."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    fmap1, fmap2 = (random(2, 32, *size).requires_grad_() for _ in range(2))
    # Some matches lie outside of the image, where both give 0.
    coords = (pixel_grid(*size, fmap1) + 6 * random(2, 2, *size)).requires_grad_()
    upstream = random(2, 4 * 81, *size)
    results = []
    for block in (CorrBlock, PlainCorrBlock):
        corr = block(fmap1, fmap2, num_levels=4, radius=4)(coords)
        results.append((corr, *torch.autograd.grad((corr * upstream).sum(), (fmap1, fmap2, coords))))
    names = ("values", "gradient of fmap1", "gradient of fmap2", "gradient of coords")
    for name, ours, plain in zip(names, *results, strict=True):
        scale = plain.abs().max().clamp(min=1).item()
        check(f"{size[0]}x{size[1]}, {name}", (ours - plain).abs().max().item() / scale, 1e-4)


def initial_flow(fmap1: Tensor, fmap2: Tensor) -> Tensor:
    """A start for RAFT's `flow_init`: soft argmax over all targets, again without the volume."""
    return cosegflow.match(fmap1, fmap2, beta=fmap1.shape[1] ** -0.5, normalize=False).flow


def main() -> None:
    """Runs all checks."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    for size in ((32, 24), (29, 35)):
        compare(size, device, generator)

    # Where the volume itself is wanted there is `correlation`; `match` is its soft argmax.
    fmap1, fmap2 = (torch.randn(1, 32, 16, 20, generator=generator).to(device) for _ in range(2))
    volume = cosegflow.correlation(fmap1, fmap2) / 32**0.5
    plain = PlainCorrBlock(fmap1, fmap2, num_levels=1).pyramid[0]
    check("all-pairs volume", (volume.reshape(plain.shape) - plain).abs().max().item(), 1e-4)
    grid = pixel_grid(16, 20, fmap1)
    expected = plain.reshape(320, 320).softmax(1) @ grid.flatten(2)[0].T
    flow = expected.T.reshape(1, 2, 16, 20) - grid
    check("flow to start from", (initial_flow(fmap1, fmap2) - flow).abs().max().item(), 1e-3)


if __name__ == "__main__":
    main()

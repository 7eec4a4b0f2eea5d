"""The operations as a careful user of plain PyTorch writes them: what the kernels are timed against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def positions(height: int, width: int, like: Tensor) -> Tensor:
    """(H*W, 2): x and y of each pixel, in the dtype and on the device of `like`."""
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device), torch.arange(width, device=like.device), indexing="ij"
    )
    return torch.stack((x, y), -1).reshape(-1, 2).to(like.dtype)


def match(fa: Tensor, fb: Tensor, log_mask_b: Tensor | None = None, beta: float = 50.0) -> Tensor:
    """Flow (B, 2, Ha, Wa): normalize, baddbmm with the log mask and beta fused in, softmax, matmul."""
    batch, _, ha, wa = fa.shape
    a = F.normalize(fa, dim=1).flatten(2).transpose(1, 2)
    b = F.normalize(fb, dim=1).flatten(2)
    bias = a.new_zeros(1, 1, 1) if log_mask_b is None else log_mask_b.reshape(batch, 1, -1)
    p = torch.baddbmm(bias, a, b, alpha=beta).softmax(-1)
    expected = p @ positions(fb.shape[2], fb.shape[3], p).expand(batch, -1, -1)
    return (expected - positions(ha, wa, p)).transpose(1, 2).reshape(batch, 2, ha, wa)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """grid_sample, with the construction of its grid."""
    height, width = x.shape[2:]
    at = positions(flow.shape[2], flow.shape[3], flow).reshape(*flow.shape[2:], 2) + flow.permute(0, 2, 3, 1)
    size = torch.tensor([max(width - 1, 1), max(height - 1, 1)], dtype=at.dtype, device=at.device)
    grid = (at * (2 / size) - 1).to(x.dtype)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)

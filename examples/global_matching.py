"""Global matching as in GMFlow, by `cosegflow.match`, `match_both`, `cycle_error` and `transfer`.

    python examples/global_matching.py

GMFlow (Xu et al. 2022, arXiv 2111.13680) takes the flow as an expectation over all targets: the softmax of the inner
products over sqrt(C), times the pixel grid, minus the pixel (section 3.2). It does so in both directions, drops what is
not consistent between them, and propagates the flow to the rest by self-attention (section 3.3). All matrices of
pixels x pixels are streamed here, never stored. Each step is compared with plain torch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import cosegflow


def global_matching(feature0: Tensor, feature1: Tensor) -> tuple[Tensor, Tensor]:
    """Flow 0 to 1 and 1 to 0, each (B, 2, H, W), from features (B, C, H, W), out of one product of the features."""
    forward, backward = cosegflow.match_both(feature0, feature1, beta=feature0.shape[1] ** -0.5, normalize=False)
    return forward.flow, backward.flow


def consistent(forward: Tensor, backward: Tensor, alpha: float = 0.01, beta: float = 0.5) -> Tensor:
    """(B, H, W) bool: there and back ends within alpha (|forward| + |backward|) + beta pixels of the start."""
    error, valid = cosegflow.cycle_error(forward, backward)
    return valid & (error <= alpha * (forward.norm(dim=1) + backward.norm(dim=1)) + beta)


def propagate(query: Tensor, key: Tensor, flow: Tensor, known: Tensor | None = None) -> Tensor:
    """softmax(query key^T / sqrt(C)) flow over the pixels of one image. With `known` (B, H, W) only those give flow."""
    return cosegflow.transfer(query, key, flow, mask_b=known, beta=query.shape[1] ** -0.5, normalize=False)


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(1, 2, height, width): x and y of each pixel."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack((x, y))[None].to(like)


def attend(query: Tensor, key: Tensor, values: Tensor, known: Tensor | None = None) -> Tensor:
    """In plain torch: softmax over all targets, (B, N, N) stored; values (B, V, H, W)."""
    q, k, v = (t.flatten(2).transpose(1, 2) for t in (query, key, values))
    scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5
    if known is not None:
        scores = scores.masked_fill(~known.flatten(1)[:, None], -torch.inf)
    return (scores.softmax(2) @ v).transpose(1, 2).reshape(len(q), -1, *query.shape[2:])


def plain_cycle_error(forward: Tensor, backward: Tensor) -> Tensor:
    """(B, H, W) in plain torch: |forward(p) + backward(p + forward(p))|."""
    height, width = backward.shape[2:]
    at = pixel_grid(forward.shape[2], forward.shape[3], forward) + forward
    points = 2 * at.permute(0, 2, 3, 1) / torch.tensor([width - 1, height - 1]).to(at) - 1  # grid_sample's -1 .. 1
    return (forward + F.grid_sample(backward, points, align_corners=True)).norm(dim=1)


def check(what: str, error: float, limit: float) -> None:
    """Prints one line; ends the program where the error is above the limit or NaN."""
    print(f"{what}: largest difference {error:.1e} (limit {limit:.0e})")
    if not error <= limit:
        raise SystemExit(f"global_matching: {what} differs by {error:.3g}, more than {limit:.3g}")


def largest(difference: Tensor) -> float:
    """The largest absolute value."""
    return difference.abs().max().item()


def main() -> None:
    """Two views that differ by a shift: 3 pixels to the right, 2 down; what has left the view has no match."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = 2, 64, 30, 36
    feature0, feature1 = (2 * torch.randn(batch, channels, height, width, generator=generator) for _ in range(2))
    feature1[:, :, 2:, 3:] = feature0[:, :, :-2, :-3]
    feature0, feature1 = feature0.to(device).requires_grad_(), feature1.to(device).requires_grad_()
    overlap = torch.zeros(batch, height, width, dtype=torch.bool, device=device)
    overlap[:, :-2, :-3] = True

    forward, backward = global_matching(feature0, feature1)
    grid = pixel_grid(height, width, forward)
    plain_forward = attend(feature0, feature1, grid.expand(batch, -1, -1, -1)) - grid
    plain_backward = attend(feature1, feature0, grid.expand(batch, -1, -1, -1)) - grid
    check("forward flow", largest(forward - plain_forward), 1e-3)
    check("backward flow", largest(backward - plain_backward), 1e-3)
    grads, plain_grads = (
        torch.autograd.grad(ab.square().mean() + ba.square().mean(), (feature0, feature1))
        for ab, ba in ((forward, backward), (plain_forward, plain_backward))
    )
    check("gradients", max(largest(g - p) for g, p in zip(grads, plain_grads, strict=True)), 1e-4)

    forward, backward = forward.detach(), backward.detach()
    error, valid = cosegflow.cycle_error(forward, backward)
    check("cycle error", largest((error - plain_cycle_error(forward, backward))[valid]), 1e-3)
    kept = consistent(forward, backward)
    print(f"consistent: {int(kept.sum())} of {kept.numel()} pixels; {int(overlap.sum())} are in both views")
    if not torch.equal(kept, overlap):
        raise SystemExit("global_matching: the consistent pixels are not those that are in both views")

    # GMFlow's propagation, then the same with the inconsistent pixels excluded as sources of flow.
    query = key = feature0.detach() / 2
    check("propagated flow", largest(propagate(query, key, forward) - attend(query, key, forward)), 1e-3)
    filled = propagate(query, key, forward, kept)
    check("propagated from the consistent", largest(filled - attend(query, key, forward, kept)), 1e-3)
    shift = torch.tensor([3.0, 2.0], device=device)[None, :, None, None]
    check("shift of (3, 2) pixels, everywhere", largest(filled - shift), 0.05)


if __name__ == "__main__":
    main()

"""Smoothing of a flow: exact on affine flows, deaf to outliers, and to what lies outside of the mask."""

import pytest
import torch
import torch.nn.functional as F

from cosegflow.joint.smoothing import SIGMA, locally_affine, robust_flow

pytestmark = pytest.mark.usefixtures("one_thread")

CELL = 8.0
MAPS = torch.tensor([[[0.15, -0.2, 1.5], [0.1, -0.25, -2.0]], [[-0.3, 0.05, 0.0], [0.2, 0.2, 4.0]]])
"""Two affine flows: columns for x, y and 1, in cells."""


def affine_flow(height: int, width: int, maps: torch.Tensor = MAPS, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(B, 2, height, width)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x))).to(dtype)
    return torch.einsum("bij,jhw->bihw", maps.to(dtype), points)


def length(flow: torch.Tensor) -> torch.Tensor:
    return flow.square().sum(1).sqrt()


@pytest.mark.parametrize("size", [(30, 30), (18, 41), (33, 8), (2, 25), (25, 2), (3, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_an_affine_flow_is_reproduced(size: tuple[int, int], dtype: torch.dtype, tolerance: float):
    flow = affine_flow(*size, dtype=dtype)
    weight = 0.1 + 0.9 * torch.rand(2, *size, dtype=dtype)
    fit = locally_affine(flow, weight, SIGMA / CELL, ridge=0.0)
    assert fit.dtype == dtype and fit.shape == flow.shape
    assert float((fit - flow).abs().max()) <= tolerance


def test_it_is_the_weighted_least_squares_fit():
    """Position by position by `lstsq`, in float64: weights times a Gaussian of the distance, cut off at 3 sigma."""
    height, width, sigma = 7, 9, 1.3
    flow = torch.randn(2, 2, height, width, dtype=torch.float64)
    weight = torch.rand(2, height, width, dtype=torch.float64) + 0.01
    fit = locally_affine(flow, weight, sigma, ridge=0.0)
    y, x = (v.double() for v in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    reach = int(3 * sigma + 0.5)
    for b in range(2):
        for row, column in ((0, 0), (3, 4), (6, 8), (2, 8)):
            dy, dx = y - row, x - column
            near = torch.exp(-(dy**2 + dx**2) / (2 * sigma**2)) * (dy.abs() <= reach) * (dx.abs() <= reach)
            root = (near * weight[b]).sqrt().flatten()[:, None]
            basis = torch.stack((torch.ones_like(dx), dx, dy), -1).reshape(-1, 3)
            found = torch.linalg.lstsq(root * basis, root * flow[b].flatten(1).T).solution
            torch.testing.assert_close(fit[b, :, row, column], found[0], rtol=1e-8, atol=1e-8)


def test_the_ridge_makes_fits_of_few_matches_constant():
    flow = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    weight = torch.full((1, 6, 6), 1e-12, dtype=torch.float64)
    weight[0, 2, 3] = 1.0  # one match only: no slope to be seen
    fit = locally_affine(flow, weight, 2.0)
    assert float((fit - flow[:, :, 2:3, 3:4]).abs().max()) <= 1e-6


def test_outliers_are_rejected():
    """30 % of the matches lead anywhere."""
    flow = affine_flow(30, 30)
    wrong = torch.rand(2, 30, 30, generator=torch.Generator().manual_seed(1)) < 0.3
    noise = (torch.rand(2, 2, 30, 30, generator=torch.Generator().manual_seed(2)) - 0.5) * 40
    seen = torch.where(wrong[:, None], flow + noise, flow)
    weight = torch.ones(2, 30, 30)
    robust = length(robust_flow(seen, weight, CELL) - flow)
    plain = length(locally_affine(seen, weight, SIGMA / CELL) - flow)
    assert float(robust.mean()) < 0.5 and float(robust.quantile(0.95)) < 0.5
    assert float(plain.mean()) > 1.0 and float(plain.mean()) > 5 * float(robust.mean())


def test_background_stays_outside_only_with_the_mask():
    """An object that moves to the right over a ground that moves to the left."""
    inside = torch.zeros(1, 30, 30, dtype=torch.bool)
    inside[:, 8:20, 10:22] = True
    flow = torch.zeros(1, 2, 30, 30)
    flow[:, 0] = torch.where(inside, 1.0, -1.0)  # too near each other to be outliers: 16 pixels apart
    with_mask = length(robust_flow(flow, inside.float(), CELL) - flow)[inside]
    without = length(robust_flow(flow, torch.ones(1, 30, 30), CELL) - flow)[inside]
    assert float(with_mask.max()) <= 0.02
    assert float(without.max()) > 0.2 and float(without.mean()) > 5 * float(with_mask.mean())


def test_each_flow_of_a_batch_is_smoothed_by_itself():
    flow, weight = torch.randn(3, 2, 9, 14), torch.rand(3, 9, 14)
    together = robust_flow(flow, weight, CELL)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], robust_flow(flow[i : i + 1], weight[i : i + 1], CELL))


def test_window_and_outliers_are_in_pixels():
    """The same field on cells of 8 and of 4 pixels is smoothed alike; a window of as many cells would not."""

    def field(cell: int) -> torch.Tensor:
        """A wave of 96 pixels, 192 x 192 pixels, in cells."""
        middle = torch.arange(192 // cell) * cell + (cell - 1) / 2
        wave = 8 * torch.sin(middle * 2 * torch.pi / 96)
        return torch.stack((wave.expand(len(middle), -1), wave[:, None].expand(-1, len(middle))))[None] / cell

    def smooth(cell: int, taken_for: float) -> torch.Tensor:
        """Pixels, on cells of 8."""
        flow = field(cell)
        found = robust_flow(flow, torch.ones(1, *flow.shape[-2:]), taken_for) * cell
        return F.avg_pool2d(found, 8 // cell)[..., 4:-4, 4:-4]

    coarse = smooth(8, 8.0)
    assert float((coarse - smooth(4, 4.0)).abs().max()) <= 0.3
    assert float((coarse - smooth(4, 8.0)).abs().max()) > 1.0


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (7, 2), (1, 9), (9, 1), (20, 20)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_it_stays_finite(size: tuple[int, int], value: float):
    flow = torch.randn(2, 2, *size) * 5
    found = robust_flow(flow, torch.full((2, *size), value), CELL)
    assert found.shape == flow.shape and bool(torch.isfinite(found).all())
    assert float(found.abs().max()) <= 3 * float(flow.abs().max())
    one = torch.zeros(2, *size)
    one[:, 0, 0] = 1.0
    found = robust_flow(flow, one, CELL)
    assert bool(torch.isfinite(found).all())


def test_trusting_nothing_is_trusting_all_alike():
    flow = torch.randn(1, 2, 12, 12)
    nothing, all_ = (robust_flow(flow, torch.full((1, 12, 12), value), CELL) for value in (0.0, 1.0))
    torch.testing.assert_close(nothing, all_, rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_flow_through_the_last_fit():
    """Its weights are constants: a fit of constant weights is linear in the flow, and the gradient is its transpose."""
    flow = torch.randn(1, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(1, 6, 7, dtype=torch.float64, requires_grad=True)
    found = robust_flow(flow, weight, CELL)
    cotangent = torch.randn_like(found)
    grad, none = torch.autograd.grad(found, (flow, weight), cotangent, allow_unused=True)
    assert none is None and bool(torch.isfinite(grad).all())
    torch.testing.assert_close((grad * flow).sum(), (cotangent * found).sum())
    moved = torch.full((1, 2, 6, 7), 1.5, dtype=torch.float64)  # a shift of all matches shifts every fit
    torch.testing.assert_close((grad * moved).sum(), (cotangent * 1.5).sum())


def test_autocast_changes_nothing():
    """Validation of a bf16-mixed run: moments in bfloat16 would not tell a fit from noise."""
    flow, weight = affine_flow(20, 24), torch.rand(2, 20, 24)
    expected = robust_flow(flow, weight, CELL)
    with torch.autocast("cpu", torch.bfloat16):
        found = robust_flow(flow, weight, CELL)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)

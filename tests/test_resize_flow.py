"""resize_flow: positions convert as x' = (x + 0.5) s - 0.5, at both ends."""

import pytest
import torch
from errors import assert_close
from torch import Tensor

import cosegflow

Size = tuple[int, int]


def centres(size: Size) -> Tensor:
    """(2, H, W) in float64: x and y of each pixel."""
    y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    return torch.stack((x, y)).double()


def scale(old: Size, new: Size) -> Tensor:
    return torch.tensor((new[1] / old[1], new[0] / old[0]), dtype=torch.float64).reshape(2, 1, 1)


def equal_content(a: Size, b: Size) -> Tensor:
    """(1, 2, *a): the flow between two pictures of the same thing."""
    return ((centres(a) + 0.5) * scale(a, b) - 0.5 - centres(a))[None]


@pytest.mark.parametrize("size_b", [(60, 90), (64, 64), (5, 2)])
def test_equal_content_stays_equal(size_b: Size):
    """Up to the edges; on grids of different sizes this is not zero flow."""
    grid_a, grid_b, size_a = (4, 5), (6, 3), (40, 70)
    full = cosegflow.resize_flow(equal_content(grid_a, grid_b), size_a, size_b, from_size_b=grid_b)
    assert_close(full, equal_content(size_a, size_b), 1e-12)
    shifted = equal_content(grid_a, grid_b) + torch.tensor((1.0, 0.0)).reshape(1, 2, 1, 1)
    moved = cosegflow.resize_flow(shifted, size_a, size_b, from_size_b=grid_b) - equal_content(size_a, size_b)
    assert_close(moved[0, 0], torch.full(size_a, size_b[1] / grid_b[1], dtype=torch.float64), 1e-12)
    assert_close(moved[0, 1], torch.zeros(size_a).double(), 1e-12)


def test_zero_flow_between_equal_grids_stays_zero():
    assert_close(cosegflow.resize_flow(torch.zeros(2, 2, 3, 5), (7, 4), (7, 4)), torch.zeros(2, 2, 7, 4), 1e-6)


def test_affine_flow_is_exact_between_the_outermost_centres():
    old_a, old_b, new_a, new_b = (6, 9), (7, 4), (31, 20), (12, 30)
    matrix, shift = torch.tensor([[0.7, 0.2], [-0.3, 1.1]]).double(), torch.tensor([1.5, -0.5]).double()

    def where_in_b(points: Tensor) -> Tensor:
        return torch.einsum("ij,jhw->ihw", matrix, points) + shift.reshape(2, 1, 1)

    flow = (where_in_b(centres(old_a)) - centres(old_a))[None]
    resized = cosegflow.resize_flow(flow, new_a, new_b, from_size_b=old_b)
    points = (centres(new_a) + 0.5) * scale(new_a, old_a) - 0.5
    expected = (where_in_b(points) + 0.5) * scale(old_b, new_b) - 0.5 - centres(new_a)
    limits = torch.tensor((old_a[1] - 1, old_a[0] - 1)).reshape(2, 1, 1)
    inside = ((points >= 0) & (points <= limits)).all(0)
    assert 0.6 < inside.double().mean() < 1
    assert_close(resized[0][:, inside], expected[:, inside], 1e-12)


@pytest.mark.parametrize("from_size_b", [None, (3, 8)])
def test_by_hand(from_size_b: Size | None):
    """Pixel by pixel: interpolate the flow less that of equal content, add that of equal content, convert the match."""
    old_a, new_a, new_b = (4, 5), (7, 3), (9, 6)
    old_b = from_size_b or old_a
    flow = torch.randn(1, 2, *old_a, dtype=torch.float64)
    resized = cosegflow.resize_flow(flow, new_a, new_b, from_size_b=from_size_b)
    base = equal_content(old_a, old_b)[0]
    for row in range(new_a[0]):
        for column in range(new_a[1]):
            x, y = (column + 0.5) * old_a[1] / new_a[1] - 0.5, (row + 0.5) * old_a[0] / new_a[0] - 0.5
            at_x, at_y = min(max(x, 0.0), old_a[1] - 1.0), min(max(y, 0.0), old_a[0] - 1.0)
            x0, y0 = min(int(at_x), old_a[1] - 2), min(int(at_y), old_a[0] - 2)
            wx, wy = at_x - x0, at_y - y0
            rest = (flow[0] - base)[:, y0 : y0 + 2, x0 : x0 + 2]
            rest = (
                rest
                * torch.tensor([[1 - wy], [wy]], dtype=torch.float64)
                * torch.tensor([1 - wx, wx], dtype=torch.float64)
            ).sum((1, 2))
            match = (
                (x + 0.5) * old_b[1] / old_a[1] - 0.5 + rest[0].item(),
                (y + 0.5) * old_b[0] / old_a[0] - 0.5 + rest[1].item(),
            )
            expected = (
                (match[0] + 0.5) * new_b[1] / old_b[1] - 0.5 - column,
                (match[1] + 0.5) * new_b[0] / old_b[0] - 0.5 - row,
            )
            assert_close(
                resized[0, :, row, column], torch.tensor(expected, dtype=torch.float64), 1e-12, f"{row}, {column}"
            )


def test_round_trip():
    """Up by an odd factor and back: the old centres are centres of the new grid."""
    flow = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    large = cosegflow.resize_flow(flow, (12, 15), (18, 8), from_size_b=(6, 4))
    there = large[..., 1::3, 1::3] + 3 * centres((4, 5)) + 1  # where these pixels' matches lie, in pixels
    assert_close((there + 0.5) / scale((6, 4), (18, 8)) - 0.5 - centres((4, 5)), flow, 1e-12)
    same = cosegflow.resize_flow(flow, (4, 5), (6, 4), from_size_b=(6, 4))
    assert_close(same, flow, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    flow = torch.randn(1, 2, 3, 4).to(dtype).requires_grad_()
    resized = cosegflow.resize_flow(flow, (6, 8), (9, 12))
    assert resized.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(resized, cosegflow.resize_flow(flow.double(), (6, 8), (9, 12)), 1e-6)
    resized.sum().backward()
    assert flow.grad is not None and flow.grad.dtype == dtype


def test_derivatives_and_transforms():
    flow = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def call(f: Tensor) -> Tensor:
        return cosegflow.resize_flow(f, (5, 3), (4, 6), from_size_b=(2, 7))

    assert torch.autograd.gradcheck(call, flow) and torch.autograd.gradgradcheck(call, flow)
    _, tangent = torch.func.jvp(call, (flow.detach(),), (torch.ones_like(flow),))
    assert_close(tangent, call(torch.ones_like(flow)) - call(torch.zeros_like(flow)), 1e-12)
    stacked = torch.stack((flow, 2 * flow)).detach()
    assert_close(torch.func.vmap(call)(stacked)[1], call(2 * flow), 1e-12)
    assert torch.func.jacrev(call)(flow.detach()).shape == (2, 2, 5, 3, 2, 2, 3, 4)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda f: cosegflow.resize_flow(f, (f.shape[2] * 2, 7), f.shape[2:]),
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    for size in ((3, 4), (5, 6)):
        flow = torch.randn(1, 2, *size, requires_grad=True)
        assert_close(compiled(flow), cosegflow.resize_flow(flow, (size[0] * 2, 7), size), 1e-6)
        compiled(flow).sum().backward()


def test_empty_batch_and_meta():
    assert cosegflow.resize_flow(torch.zeros(0, 2, 3, 4), (6, 8), (1, 1)).shape == (0, 2, 6, 8)
    assert cosegflow.resize_flow(torch.zeros(1, 2, 3, 4, device="meta"), (6, 8), (1, 1)).shape == (1, 2, 6, 8)


def test_wrong_arguments():
    flow = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"flow must have shape \(B, 2, H, W\), got \(1, 3, 4, 5\)"):
        cosegflow.resize_flow(torch.zeros(1, 3, 4, 5), (3, 4), (3, 4))
    with pytest.raises(ValueError, match=r"size_a must be \(H, W\), both at least 1, got \(0, 4\)"):
        cosegflow.resize_flow(flow, (0, 4), (3, 4))
    with pytest.raises(ValueError, match=r"from_size_b must be \(H, W\).* got \(1, 2, 3\)"):
        cosegflow.resize_flow(flow, (3, 4), (3, 4), from_size_b=(1, 2, 3))
    with pytest.raises(TypeError, match=r"size_b must be two numbers \(H, W\), got 5"):
        cosegflow.resize_flow(flow, (3, 4), 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"size_b must be two numbers \(H, W\), got \(5.5, 2\)"):
        cosegflow.resize_flow(flow, (3, 4), (5.5, 2))  # type: ignore[arg-type]

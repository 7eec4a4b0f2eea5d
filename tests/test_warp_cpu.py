"""warp on the CPU: what small tests on one thread do not see of its packed images, parts and chunks."""

import math

import pytest
import torch
from errors import EPS, assert_close
from test_warp import difficult_flow, on_the_grid_of

import cosegflow
from cosegflow import reference


def results(threads, x, flow, grad, mode, padding):
    """Output, valid and gradients on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, flow = x.clone().requires_grad_(), flow.clone().requires_grad_()
        out, valid = cosegflow.warp(x, flow, mode=mode, padding=padding, return_valid=True)
        return out.detach(), valid, *torch.autograd.grad(out, (x, flow), grad)
    finally:
        torch.set_num_threads(before)


# (B, C, H, W, Ho, Wo): parts of units; more units than threads; images too large to be packed by every thread alone,
# with blocks that do not fit together; and far more pixels in x than in the output.
SHAPES = [
    (1, 3, 200, 230, 210, 190), (2, 40, 60, 70, 80, 90), (1, 20, 380, 400, 300, 310), (2, 4, 720, 750, 520, 540),
    (1, 5, 90, 110, 7, 9),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode, padding", [("bilinear", "zeros"), ("bilinear", "border"), ("nearest", "zeros")])
def test_bits_do_not_depend_on_the_threads(shape, mode, padding):
    batch, channels, height, width, ho, wo = shape
    x = torch.randn(batch, channels, height, width)
    centre = torch.tensor([width - wo, height - ho]).reshape(1, 2, 1, 1) / 2
    flow = on_the_grid_of(torch.float32, difficult_flow(batch, ho, wo) + torch.randn(batch, 2, ho, wo) * 30)
    flow = torch.where(flow.abs() < 1000, flow + centre, flow).float()
    grad = torch.randn(batch, channels, ho, wo)
    grad[~torch.isfinite(flow).all(1, keepdim=True).expand_as(grad)] = math.nan
    expected = results(1, x, flow, grad, mode, padding)
    for threads in (2, 3):
        for got, want in zip(results(threads, x, flow, grad, mode, padding), expected, strict=True):
            assert torch.equal(got, want)
    x64, flow64 = x.double().requires_grad_(), flow.double().requires_grad_()
    out, valid = reference.warp(x64, flow64, mode, padding)
    finite_grad = torch.where(torch.isfinite(grad), grad, 0.0).double()
    exact = torch.autograd.grad(out, (x64, flow64), finite_grad, allow_unused=True, materialize_grads=True)
    assert_close(expected[0], out, 4 * EPS[torch.float32], "out")
    assert torch.equal(expected[1], valid)
    assert_close(expected[2], exact[0], 40 * EPS[torch.float32], "grad x")
    assert_close(expected[3], exact[1], 100 * EPS[torch.float32], "grad flow")


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8, 16, 19])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_of_channels_and_layouts(channels, dtype):
    """Full and partial blocks of channels, tails of rows, and every layout gives the same bits."""
    acc = reference.accumulate_dtype(dtype)
    base = torch.randn(2, channels, 9, 21).to(dtype)
    flow = on_the_grid_of(dtype, difficult_flow(2, 10, 37)).to(acc)
    grad = torch.randn(2, channels, 10, 37).to(dtype)
    expected = None
    for last in (False, True):
        layout = torch.channels_last if last else torch.contiguous_format
        x, f = base.contiguous(memory_format=layout).requires_grad_(), flow.clone().requires_grad_()
        out = cosegflow.warp(x, f)
        grads = torch.autograd.grad(out, (x, f), grad.contiguous(memory_format=layout))
        got = (out.detach(), *grads)
        expected = got if expected is None else expected
        assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))
    x64, flow64 = base.double().requires_grad_(), flow.double().requires_grad_()
    out = reference.warp(x64, flow64)[0]
    exact = (out.detach(), *torch.autograd.grad(out, (x64, flow64), grad.double()))
    for g, e, eps in zip(expected, exact, (EPS[dtype], EPS[dtype], EPS[acc]), strict=True):
        assert_close(g, e, 4 * eps + 100 * EPS[acc])


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_values_that_are_not_finite_stay_where_they_are_read(padding):
    """A NaN or inf in x reaches the points whose taps it is, and no other; so does one in the incoming gradient."""
    x = torch.randn(1, 6, 8, 9)
    x[0, 0, 0, 0], x[0, 1, 7, 8], x[0, 2, 3, 8], x[0, 3, 7, 2] = math.nan, math.inf, math.nan, -math.inf
    flow = on_the_grid_of(torch.float32, torch.randn(1, 2, 12, 13) * 4).float()
    out, expected = cosegflow.warp(x, flow, padding=padding), reference.warp(x, flow, "bilinear", padding)[0]
    assert torch.equal(torch.isfinite(out), torch.isfinite(expected))
    grad = torch.randn(1, 6, 12, 13)
    grad[torch.rand(grad.shape) < 0.02] = math.nan
    leaf = torch.randn(1, 6, 8, 9, requires_grad=True)
    (got,) = torch.autograd.grad(cosegflow.warp(leaf, flow, padding=padding), leaf, grad)
    (want,) = torch.autograd.grad(reference.warp(leaf, flow, "bilinear", padding)[0], leaf, grad)
    assert torch.isnan(got).any() and not torch.isnan(got).all()
    assert not bool((torch.isnan(got) & ~torch.isnan(want)).any())

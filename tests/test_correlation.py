"""correlation on every backend, against reference.correlation in float64."""

from functools import partial

import pytest
import torch
from backends import KERNELS, options_of
from errors import EPS, assert_close, assert_no_worse

import cosegflow
from cosegflow import reference

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# (B, C, Ha, Wa, Hb, Wb)
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 7, 4, 6),
    (1, 33, 1, 13, 11, 1),
    (2, 64, 9, 9, 9, 9),
    (1, 40, 17, 9, 13, 19),
    (1, 1025, 2, 3, 3, 2),
]


def run(function, fa, fb, grad, *options):
    fa, fb = fa.clone().requires_grad_(), fb.clone().requires_grad_()
    corr = function(fa, fb, *options)
    corr.backward(grad.to(corr.dtype))
    return corr.detach(), fa.grad, fb.grad


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("normalize, relu", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(backend, shape, dtype, normalize, relu, kernels):
    correlation = partial(backend.correlation, **options_of(kernels, backend, dtype))
    batch, channels, ha, wa, hb, wb = shape
    fa, fb = torch.randn(batch, channels, ha, wa).to(dtype), torch.randn(batch, channels, hb, wb).to(dtype)
    grad = torch.randn(batch, ha, wa, hb, wb).to(dtype)
    exact = run(reference.correlation, fa.double(), fb.double(), grad, normalize, False)
    if relu:  # the gate as the rounded output has it: a score that rounds to 0 passes no gradient
        gate = run(correlation, fa, fb, grad, normalize, True)[0] > 0
        masked = torch.where(gate, grad.double(), 0.0)
        exact = (exact[0].relu(), *run(reference.correlation, fa.double(), fb.double(), masked, normalize, False)[1:])
    actual = run(correlation, fa, fb, grad, normalize, relu)
    plain = run(reference.correlation, fa, fb, grad, normalize, relu)
    for name, a, p, e in zip(("corr", "grad fa", "grad fb"), actual, plain, exact, strict=True):
        assert a.dtype == dtype
        if dtype == torch.float64:
            assert_close(a, e, 1e-11, name)
        else:
            assert_no_worse(a, p, e, 30 * EPS[torch.float32] + EPS[dtype], name)


def test_long_sums():
    """No slack here: the gradients, sums over 1600 positions, must not be one long chain of float32 adds."""
    fa, fb, grad = torch.randn(1, 64, 40, 40), torch.randn(1, 64, 40, 40), torch.randn(1, 40, 40, 40, 40)
    exact = run(reference.correlation, fa.double(), fb.double(), grad, True, False)
    plain = run(reference.correlation, fa, fb, grad, True, False)
    actual = run(lambda a, b: cosegflow.correlation(a, b, normalize=True), fa, fb, grad)
    for name, a, p, e in zip(("corr", "grad fa", "grad fb"), actual, plain, exact, strict=True):
        assert_no_worse(a, p, e, 0.0, name)


def test_gradcheck(backend):
    fa, fb = (torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: backend.correlation(a, b, True), (fa, fb))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(backend, dtype):
    fa, fb = torch.randn(2, 16, 5, 6).to(dtype), torch.randn(2, 16, 7, 4).to(dtype)
    expected = backend.correlation(fa, fb)
    last = backend.correlation(fa.contiguous(memory_format=torch.channels_last), fb.flip(3).contiguous().flip(3))
    assert_close(last, expected, 4 * EPS[dtype])
    grad = torch.randn(2, 7, 4, 5, 6).to(dtype).permute(0, 3, 4, 1, 2)  # not contiguous
    strided = run(backend.correlation, fa, fb, grad)
    for a, e in zip(strided, run(backend.correlation, fa, fb, grad.contiguous()), strict=True):
        assert_close(a, e, 4 * EPS[dtype])


def test_zero_feature(backend):
    fa = torch.randn(1, 4, 2, 2).double()
    fa[0, :, 0, 0] = 0
    fb = torch.randn(1, 4, 2, 2).double()
    grad = torch.randn(1, 2, 2, 2, 2).double()
    for a, e in zip(run(backend.correlation, fa, fb, grad, True), run(reference.correlation, fa, fb, grad, True),
                    strict=True):  # fmt: skip
        scale = e.abs().clamp(min=1)
        assert_close(a / scale, e / scale, 1e-9)


def test_empty_batch(backend):
    assert backend.correlation(torch.zeros(0, 8, 3, 4), torch.zeros(0, 8, 5, 6)).shape == (0, 3, 4, 5, 6)


def test_wrong_arguments():
    f = torch.zeros(1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"fb must have shape \(B, C, H, W\), got \(4, 5\)"):
        cosegflow.correlation(f, torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"same batch size and number of channels, got fa \(1, 3, 4, 5\) and"):
        cosegflow.correlation(f, torch.zeros(2, 3, 4, 5))
    with pytest.raises(TypeError, match=r"fa must be a tensor, got NoneType"):
        cosegflow.correlation(None, f)  # type: ignore[arg-type]

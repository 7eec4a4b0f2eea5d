"""The kernels over tiles of local_correlation without flow: what their pieces, units and stages can get wrong."""

import pytest
import torch
from errors import EPS, assert_close
from test_local_correlation import FLOATING, check, check_orders, run

from cosegflow import reference

NAMES = ("out", "grad fa", "grad fb")


def check_size(backend, dtype, size, radius, normalize, prepare=lambda t: t):
    """`prepare` lays a feature map out."""
    batch, channels, ha, wa, hb, wb = size
    fa = prepare(torch.randn(batch, channels, ha, wa).to(dtype))
    fb = prepare(torch.randn(batch, channels, hb, wb).to(dtype))
    check(backend, fa, fb, radius, None, normalize)


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalize"])
@pytest.mark.parametrize("dtype", FLOATING, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(
    "size, radius",
    [
        (
            (2, 37, 9, 64, 11, 68),
            4,
        ),  # rows of whole units: all is read in place
        ((3, 18, 18, 68, 17, 64), 4),  # high tiles; rows and columns that no tile divides
        ((1, 51, 5, 36, 6, 33), 3),  # a window smaller than its piece
        ((1, 17, 6, 35, 9, 40), 9),  # 3 x 3 pieces
        ((2, 5, 3, 4, 4, 8), 40),  # pieces that reach nothing
    ],
    ids=["in-place", "high", "small-window", "pieces", "beyond"],
)
def test_tiles(backend, size, radius, dtype, normalize):
    check_size(backend, dtype, size, radius, normalize)


@pytest.mark.parametrize("dtype", FLOATING, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(
    "prepare",
    [
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: torch.cat((t, t), 3)[..., 1 : 1 + t.shape[3]],  # strides of whole units, pointers that are not
        lambda t: torch.cat((t, t), 3)[..., : t.shape[3]],
        lambda t: t.flip(2).contiguous().flip(2),
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    ],
    ids=["channels_last", "unaligned", "padded", "copied", "transposed"],
)
def test_layouts(backend, prepare, dtype):
    check_size(backend, dtype, (2, 19, 6, 40, 7, 36), 4, False, prepare)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_channel(backend, dtype):
    """As channels last has it: the stride of the only channel is 1, and no stage may go along it."""
    check_size(
        backend,
        dtype,
        (1, 1, 6, 40, 6, 36),
        4,
        False,
        lambda t: t.as_strided(t.shape, (t.stride(0), 1, *t.stride()[2:])),
    )


@pytest.mark.parametrize("radius", [3, 4, 6])
@pytest.mark.parametrize("dtype", FLOATING, ids=lambda d: str(d).removeprefix("torch."))
def test_only_the_window_counts(backend, dtype, radius):
    """A tile's products have zeros beyond the window and the image; 0 times inf must not be seen."""
    fa, fb = torch.randn(1, 20, 9, 40).to(dtype), torch.randn(1, 20, 8, 36).to(dtype)
    grad = torch.randn(1, (2 * radius + 1) ** 2, 9, 40).to(dtype)
    fa[0, :, 4, 6], fb[0, 2, 3, 21] = float("nan"), float("inf")
    grad[0, :, 8, 39] = float("nan")  # most of its targets are outside of b
    grad[0, 5, 0, 13] = float("-inf")
    exact = run(reference.local_correlation, fa.double(), fb.double(), radius, None, grad.double())
    actual = run(backend.local_correlation, fa, fb, radius, None, grad)
    for name, a, e in zip(NAMES, actual, exact, strict=True):
        assert torch.equal(torch.isnan(a), torch.isnan(e)), name
        assert torch.equal(torch.isinf(a), torch.isinf(e)), name
        finite = torch.isfinite(e)
        assert 0 < finite.sum() < finite.numel(), name
        assert_close(a[finite], e[finite], 4 * EPS[dtype] + 1e-5 * (dtype != torch.float64), name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_norms(backend, dtype):
    """Features of norm 1e-4: its inverse times the incoming gradient is beyond float16."""
    fa, fb = torch.randn(1, 8, 5, 12).to(dtype), torch.randn(1, 8, 5, 12).to(dtype)
    fa[:, :, 2], fb[:, :, 3] = fa[:, :, 2] * 1e-4, fb[:, :, 3] * 1e-4
    if dtype == torch.bfloat16:
        fb[:, :, 1, 4] = 0
    grad = (torch.randn(1, 81, 5, 12) * 30).to(dtype)
    grad[:, :, 2] *= 1e-3
    grad[:, :, :, :4] *= 1e-3
    actual = run(backend.local_correlation, fa, fb, 4, None, grad, True)
    exact = run(reference.local_correlation, fa.double(), fb.double(), 4, None, grad, True)
    for name, a, e in zip(NAMES, actual, exact, strict=True):
        fits = (e.abs() < 0.9 * torch.finfo(dtype).max).all(1, keepdim=True).expand_as(e)
        assert 0.5 * fits.numel() < fits.sum(), name
        scale = e.abs().amax(1, keepdim=True).clamp(min=1e-30).expand_as(e)
        assert_close((a / scale)[fits], (e / scale)[fits], 8 * EPS[dtype], name)


@pytest.mark.parametrize("radius", [4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_the_order(radius, dtype):
    """hostsim: the same bits in any order of blocks and threads, with no deterministic flag set."""
    fa, fb = torch.randn(1, 33, 9, 40).to(dtype), torch.randn(1, 33, 10, 36).to(dtype)
    grad = torch.randn(1, (2 * radius + 1) ** 2, 9, 40).to(dtype)
    check_orders(fa, fb, radius, None, grad, True)

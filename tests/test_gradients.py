"""The shared pieces of the backward passes on hostsim, against NumPy in float64.

csrc/cuda/normalize_backward.cuh and csrc/cuda/gradient_product_mma.cuh.
"""

import shutil

import numpy as np
import pytest
from backends import hostsim_module

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="hostsim needs g++")
EPS = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 3e-7, "float64": 1e-15}


def store(x, kind):
    """As the array that hostsim takes: bfloat16 is uint16, its bits."""
    if kind != "bfloat16":
        return x.astype(kind)
    u = x.astype(np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def values(x):
    return ((x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x).astype(np.float64)


# (kind, channels, positions, parts): rows whole in registers, in tiles of half as many pixels, and read twice; planes
# that take stores of 16 bytes, of two pixels, of one.
NORMALIZE = [
    ("bfloat16", 40, 72, 1),
    ("float16", 8, 1496, 1),
    ("float16", 1024, 34, 3),
    ("float16", 1032, 40, 1),
    ("bfloat16", 2056, 18, 2),
    ("float16", 33, 35, 2),
    ("float32", 300, 20, 2),
    ("float32", 1024, 17, 1),
    ("float64", 70, 26, 2),
    ("float64", 514, 9, 1),
]


@pytest.mark.parametrize("kind, channels, positions, parts", NORMALIZE)
@pytest.mark.parametrize("masked, folded", [(False, False), (True, True)], ids=["dense", "masked-folded"])
def test_normalize_backward(kind, channels, positions, parts, masked, folded):
    rng = np.random.default_rng(channels)
    batch, acc = 2, "float64" if kind == "float64" else "float32"
    pitch = (channels + 7) // 8 * 8
    counts = np.array([positions, positions // 3] if masked else [positions] * 2, np.int32)
    index = np.full((batch, positions), -1, np.int32)
    for b, count in enumerate(counts):
        index[b, :count] = np.sort(rng.permutation(positions)[:count])
    rows = max(counts) + (3 if masked else 0)
    grads = np.full((parts, batch, rows, channels), np.nan, acc)
    features = store(np.full((batch, positions, pitch), np.nan), kind)
    scale = np.full((batch, positions + 5, 2 if masked else 1), np.nan, acc)
    unscale = np.array([0.25, 8], np.float32) if folded else None
    exact = np.zeros((batch, channels, positions))
    for b, count in enumerate(counts):
        f = store(np.pad(rng.standard_normal((count, channels)), ((0, 0), (0, pitch - channels))), kind)
        f[2] = 0  # a clamped norm
        features[b, :count] = f
        f = values(f)[:, :channels]
        inv_norm = (1 / np.maximum(np.sqrt((f * f).sum(1, keepdims=True)), 1e-12)).astype(acc)
        scale[b, :count, :1] = inv_norm
        grads[:, b, :count] = rng.standard_normal((parts, count, channels))
        if not folded:
            grads[:, b, 2] *= 1e-12
        d = grads[:, b, :count].astype(np.float64).sum(0)
        f_hat = f * inv_norm
        g = d - (d * f_hat).sum(1, keepdims=True) * f_hat
        g = g * unscale[b] if folded else g * inv_norm
        exact[b, :, index[b, :count]] = g
    sim = hostsim_module()
    grad = store(np.full((batch, channels, positions), np.nan), kind)
    sim.set_order("random", channels)
    sim.normalize_backward(
        grads, features=features, inv_norm=scale, index=index, count=counts, unscale=unscale, folded=folded, grad=grad
    )
    sim.set_order("forward", 0)
    actual = values(grad)
    assert (np.abs(actual - exact) <= EPS[kind] * (4 + np.abs(exact))).all()
    for b, count in enumerate(counts):
        excluded = np.setdiff1d(np.arange(positions), index[b, :count])
        assert (actual[b, :, excluded] == 0).all()


def test_values_without_normalization():
    grads = np.random.default_rng(0).standard_normal((2, 1, 10, 5)).astype(np.float32)
    grad = np.full((1, 5, 10), np.nan, np.float32)
    hostsim_module().normalize_backward(grads, grad=grad)
    np.testing.assert_array_equal(grad[0], (grads[0, 0] + grads[1, 0]).T)


# (kind, transposed, gated, pitch beyond the numbers, rows, depth, channels, splits)
PRODUCTS = [
    ("bfloat16", False, False, 0, 136, 200, 136, 1),
    ("bfloat16", True, False, 8, 200, 136, 7, 3),
    ("float16", False, True, 0, 40, 72, 250, 2),
    ("float16", True, True, 0, 144, 70, 24, 1),
    ("bfloat16", False, True, 4, 130, 40, 64, 1),
    ("float16", True, True, 2, 36, 100, 129, 1),
    ("bfloat16", False, False, 1, 36, 68, 8, 1),
    ("float16", True, False, 1, 70, 40, 16, 2),
]


@pytest.mark.parametrize("kind, transposed, gated, beyond, rows, depth, channels, splits", PRODUCTS)
@pytest.mark.parametrize("window", [False, True], ids=["dense", "window"])
def test_gradient_product(kind, transposed, gated, beyond, rows, depth, channels, splits, window):
    rng = np.random.default_rng(rows)
    batch, row_begin, depth_begin = (3, 11, 5) if window else (1, 0, 0)
    row_count = np.array([row_begin + rows - 9, 4, 1000], np.int32) if window else None
    depth_count = np.array([1000, depth_begin + depth - 3, 2], np.int32) if window else None
    pitch = (rows if transposed else depth) + beyond
    lhs = store(rng.standard_normal((batch, depth if transposed else rows, pitch)), kind)
    gate = rng.standard_normal(lhs.shape)
    gate[:, 0, :4] = [0, -0.0, np.nan, 1e-30]
    gate = store(np.sign(gate) if kind == "float16" else gate, kind) if gated else None
    padded = (channels + 7) // 8 * 8
    rhs = store(
        np.pad(rng.standard_normal((batch, depth + 8, channels)), ((0, 0), (0, 0), (0, padded - channels))), kind
    )
    before = rng.standard_normal((splits, batch, rows + 12, channels)).astype(np.float32)
    exact = before.astype(np.float64).sum(0) if window else np.full(before.shape[1:], np.nan)
    for b in range(batch):
        live = min(rows, row_count[b] - row_begin) if window else rows
        terms = min(depth, depth_count[b] - depth_begin) if window else depth
        live, terms = max(live, 0), max(terms, 0)
        left = values(lhs[b])
        if gated:
            left = np.where(values(gate[b]) <= 0, 0, left)
        left = left.T if transposed else left
        right = values(rhs[b, depth_begin : depth_begin + terms])[:, :channels]
        product = left[:live, :terms] @ right
        exact[b, row_begin : row_begin + live] = product + (exact[b, row_begin : row_begin + live] if window else 0)
        # What lies beyond the counts is not looked at.
        nothing = 0x7FFF if kind == "bfloat16" else np.nan
        (lhs[b].T if transposed else lhs[b])[live:] = (lhs[b].T if transposed else lhs[b])[:, terms:] = nothing
        rhs[b, depth_begin + terms :] = nothing
    out = before if window else np.full_like(before, np.nan)
    sim = hostsim_module()
    sim.set_order("random", rows)
    sim.gradient_product(
        lhs, gate, rhs, rows=rows, depth=depth, transposed=transposed, row_count=row_count, depth_count=depth_count,
        row_begin=row_begin, depth_begin=depth_begin, accumulate=window, out=out,
    )  # fmt: skip
    sim.set_order("forward", 0)
    written = slice(row_begin, row_begin + rows)
    assert (np.abs(out.astype(np.float64).sum(0) - exact)[:, written] <= 2e-5).all()
    if window:
        np.testing.assert_allclose(out.sum(0)[:, :row_begin], exact[:, :row_begin], rtol=1e-5, atol=1e-5)


def test_correlation_splits_its_depth():
    """Two parts of 1056 positions each are added up behind the product."""
    rng = np.random.default_rng(0)
    fa, fb = (
        rng.standard_normal((1, 8, 33, 32)).astype(np.float16),
        rng.standard_normal((1, 8, 3, 5)).astype(np.float16),
    )
    grad = rng.standard_normal((1, 33, 32, 3, 5)).astype(np.float16)
    _, grad_b = hostsim_module().correlation_backward(grad, fa, fb, None, False, False, False, (False, True), True)
    exact = np.einsum("ahwij,achw->acij", values(grad), values(fa))
    np.testing.assert_allclose(values(grad_b), exact, atol=EPS["float16"] * np.abs(exact).max())

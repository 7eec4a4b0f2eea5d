"""The shared pieces of the backward passes (csrc/cuda/normalize_backward.cuh) on hostsim, against NumPy in float64."""

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

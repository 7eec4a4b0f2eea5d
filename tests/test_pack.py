"""The packing pass of the Hopper kernels (csrc/cuda/pack_tiles*) on hostsim, against plain NumPy.

Every array starts as 0xff bytes; what must not be written is compared with them. A NaN fails a comparison unless NaN is
expected.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

REPO = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("hostsim_build", REPO / "csrc" / "hostsim" / "build.py")
hostsim_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostsim_build)
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="hostsim needs g++")

ORDERS = [("forward", 0), ("reverse", 0), ("random", 1)]
STEP = 256  # rows of scale and place are valid up to a multiple of it
KINDS = ["float16", "bfloat16", "float32x1", "float32x3"]  # float32 as one or three terms


@pytest.fixture(scope="session")
def plain():
    named = os.environ.get("COSEGFLOW_HOSTSIM_MODULE")
    out_dir = REPO / "build" / "hostsim" / "pack-plain"
    return hostsim_build.import_module(named or hostsim_build.build(ops=["pack"], out_dir=out_dir))


@pytest.fixture
def sim(plain):
    yield plain
    plain.set_order("forward", 0)


def to_bf16(x):
    """Rounds float32 to bfloat16 (nearest even), as its 16 bits."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = ((u.astype(np.uint64) + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where((u & 0x7FFFFFFF) > 0x7F800000, np.uint16(0x7FFF), bits)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def features(rng, shape, kind):
    x = rng.standard_normal(shape).astype(np.float32)
    if kind == "float16":
        return x.astype(np.float16)
    return to_bf16(x) if kind == "bfloat16" else x


def values(x):
    """As float32: bfloat16 comes as uint16."""
    return from_bf16(x) if x.dtype == np.uint16 else x.astype(np.float32)


def weights(mask, shape):
    """(weight > 0, log of the weight in float64)"""
    if mask is None:
        return np.ones(shape, bool), np.zeros(shape)
    if mask.dtype == bool:
        return mask.view(np.uint8) != 0, np.zeros(shape)  # any byte but 0 is allowed
    largest = float(from_bf16(np.array([0x7F7F], np.uint16))[0])
    largest = largest if mask.dtype == np.uint16 else float(np.finfo(mask.dtype).max)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        w = (from_bf16(mask) if mask.dtype == np.uint16 else mask).astype(np.float64)
    allowed = w > 0
    return allowed, np.log(np.where(allowed, np.minimum(w, largest), 1.0))


def packed_row(x, kind, first):
    """The 16 bits of the rows of pixels (N, C) of the first or second side."""
    n, c = x.shape
    padded = np.zeros((n, (c + 7) // 8 * 8), x.dtype)
    padded[:, :c] = x
    if kind in ("float16", "bfloat16"):
        return padded.view(np.uint16)
    hi = to_bf16(padded)
    if kind == "float32x1":
        return hi
    with np.errstate(invalid="ignore"):
        rest = np.where(np.isfinite(from_bf16(hi)), padded - from_bf16(hi), 0).astype(np.float32)
    lo = to_bf16(rest)
    return np.concatenate([hi, hi, lo] if first else [hi, lo, hi], axis=1)


def check_side(out, x, mask, kind, first, normalize=True):
    """Every array of one side, to the last row."""
    batch, channels, height, width = x.shape
    n = height * width
    pixels = x.transpose(0, 2, 3, 1).reshape(batch, n, channels)
    allowed, log_weight = (v.reshape(batch, n) for v in weights(mask, (batch, height, width)))
    bits = out["features"]
    assert bits.shape == (batch, n, ((channels + 7) // 8 * 8) * (3 if kind == "float32x3" else 1))
    assert out["scale"].shape == out["place"].shape == (batch, (n + STEP - 1) // STEP * STEP, 2)
    for b in range(batch):
        (rows,) = np.nonzero(allowed[b])
        count = len(rows)
        end = (max(count, 1) + STEP - 1) // STEP * STEP
        assert out["count"][b] == count
        np.testing.assert_array_equal(out["index"][b, :count], rows)
        assert (out["index"][b, count:] == -1).all()  # not written
        np.testing.assert_array_equal(bits[b, :count], packed_row(pixels[b, rows], kind, first))
        assert (bits[b, count : min(end, n)] == 0).all()
        assert (bits[b, min(end, n) :] == 0xFFFF).all()
        f = values(pixels[b, rows]).astype(np.float64)
        inv_norm = 1 / np.maximum(np.sqrt((f * f).sum(1)), 1e-12) if normalize else np.ones(count)
        np.testing.assert_allclose(out["scale"][b, :count, 0], inv_norm, rtol=1e-6)
        np.testing.assert_allclose(out["scale"][b, :count, 1], log_weight[b, rows], rtol=1e-6, atol=1e-7)
        centred = np.stack([rows % width - (width - 1) / 2, rows // width - (height - 1) / 2], 1)
        np.testing.assert_array_equal(out["place"][b, :count], centred)
        assert (out["scale"][b, count:end] == [0, -np.inf]).all()
        assert (out["place"][b, count:end] == 0).all()
        assert (out["scale"][b, end:].view(np.uint32) == 0xFFFFFFFF).all()
        assert (out["place"][b, end:].view(np.uint32) == 0xFFFFFFFF).all()


def check(sim, fa, fb, mask_a, mask_b, kind, normalize=True, **options):
    terms = 3 if kind == "float32x3" else 1
    a, b = sim.pack_tiles(fa, fb, mask_a, mask_b, terms=terms, normalize=normalize, **options)
    check_side(a, fa, mask_a, kind, True, normalize)
    check_side(b, fb, mask_b, kind, False, normalize)
    return a, b


def holes(rng, shape, dtype=np.float32):
    """Weights with zeros, negative and tiny numbers, NaN and infinities."""
    special = np.array([0, -1, np.nan, np.inf, -np.inf, 1, 0.25, 3, 1e-30, 2**-24])
    with np.errstate(over="ignore", under="ignore"):
        mask = special[rng.integers(0, len(special), shape)]
        return to_bf16(mask.astype(np.float32)) if dtype == "bfloat16" else mask.astype(dtype)


def layout(x, how):
    """The values of x (B, C, H, W) in other strides; what lies between them is NaN."""

    def wider(shape):
        wide = np.empty(shape, x.dtype)
        wide.view(np.uint8)[...] = 0xFF
        return wide

    batch, channels, height, width = x.shape
    if how == "channels_last":
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if how == "sliced":  # rows wider than the image, from an odd element on
        wide = wider((batch, channels, height, width + 4))[..., 1 : 1 + width]
    elif how == "padded":  # rows wider than the image, of an even number of pixels
        wide = wider((batch, channels, height, (width + 3) // 2 * 2))[..., :width]
    elif how == "padded_planes":  # an even number of pixels from one to the next; nothing after the last one
        n, pitch = height * width, (height * width + 3) // 2 * 2
        flat = wider((batch * channels - 1) * pitch + n)
        strides = np.array([channels * pitch, pitch, width, 1]) * x.itemsize
        wide = np.lib.stride_tricks.as_strided(flat, x.shape, strides)
    elif how == "reversed":
        return x[:, ::-1, ::-1, ::-1].copy()[:, ::-1, ::-1, ::-1]
    elif how in ("padded_channels", "shifted_channels"):  # contiguous channels, in aligned pixels or from 1 on
        first = how == "shifted_channels"
        wide = wider((batch, height, width, (channels + 15) // 8 * 8))
        wide = wide[..., first : first + channels].transpose(0, 3, 1, 2)
    else:
        assert how == "planes"
        return np.ascontiguousarray(x)
    wide[...] = x
    return wide


PLANES = ["planes", "sliced", "padded", "padded_planes", "reversed"]
LAYOUTS = [*PLANES, "channels_last", "padded_channels", "shifted_channels"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3, 8, 72, 130])
def test_sizes_and_masks(sim, kind, channels):
    rng = np.random.default_rng(channels)
    for k, ((ha, wa), (hb, wb)) in enumerate([((1, 1), (7, 9)), ((15, 17), (8, 10))]):
        sim.set_order(*ORDERS[(k + channels) % 3])
        fa, fb = features(rng, (3, channels, ha, wa), kind), features(rng, (3, channels, hb, wb), kind)
        mask_a, mask_b = holes(rng, (3, ha, wa)), rng.random((3, hb, wb)) < 0.4
        mask_b[1], mask_b[2] = False, True
        check(sim, fa, fb, mask_a, mask_b, kind)
        check(sim, fb, fa, None, None, kind)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_rows(sim, kind, order):
    """Count below, at and above a multiple of the step; tails longer than a block and beyond the last pixel."""
    sim.set_order(*order)
    rng = np.random.default_rng(7)
    fa, fb = features(rng, (3, 72, 40, 50), kind), features(rng, (3, 72, 16, 32), kind)
    mask_a = rng.random((3, 40, 50)) < 0.3
    mask_b = np.ones(3 * 512, bool).reshape(3, 512)
    mask_b[0, rng.permutation(512)[:256]] = False
    mask_b[1, rng.permutation(512)[:255]] = False
    mask_b[2, 300:500] = False
    check(sim, fa, fb, mask_a, mask_b.reshape(3, 16, 32), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", LAYOUTS)
def test_layouts(sim, how, kind):
    rng = np.random.default_rng(3)
    for channels, width in ((3, 6), (72, 6), (264, 6), (130, 6), (8, 7), (130, 7)):
        fa, fb = (layout(features(rng, (2, channels, height, width), kind), how) for height in (8, 7))
        mask = holes(rng, (2, 7, width))
        mask_b = mask[:, ::-1].copy()[:, ::-1] if how == "reversed" else layout(mask[:, None], "sliced")[:, 0]
        mask_a = np.broadcast_to(np.array([[True], [False], [True], [True]] * 2), (2, 8, width))
        check(sim, fa, fb, mask_a, mask_b, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_expanded(sim, kind):
    """Strides of 0: one image for the batch, one row for the image, one mask for the batch."""
    rng = np.random.default_rng(4)
    fa = np.broadcast_to(features(rng, (1, 10, 6, 8), kind), (3, 10, 6, 8))
    fb = np.broadcast_to(features(rng, (3, 10, 1, 8), kind), (3, 10, 6, 8))
    check(
        sim, fa, fb, np.broadcast_to(holes(rng, (1, 6, 8)), (3, 6, 8)), np.broadcast_to(np.float32(2), (3, 6, 8)), kind
    )
    check(sim, layout(fb, "channels_last"), np.broadcast_to(fb[:, :1, :, :1], (3, 10, 6, 8)), None, None, kind)


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16", np.float32, np.float64])
def test_mask_types(sim, dtype):
    rng = np.random.default_rng(5)
    fa, fb = features(rng, (2, 8, 9, 10), "float16"), features(rng, (2, 8, 5, 5), "float16")
    for limit in (16384, 0):
        check(sim, fa, fb, holes(rng, (2, 9, 10), dtype), holes(rng, (2, 5, 5), dtype), "float16", False,
              single_launch_positions=limit)  # fmt: skip
    out, _ = sim.pack_tiles(fa, fb, np.full((2, 9, 10), 1e-300), None)  # a float64 weight whose logarithm is float64's
    assert abs(out["scale"][0, 0, 1] - np.log(1e-300)) <= 1e-4


BITS = {"bool": np.uint8, "float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}
MASK_TYPES = {"bool": bool, "float16": np.float16, "bfloat16": np.uint16, "float32": np.float32, "float64": np.float64}


def special_mask(rng, shape, dtype):
    """Half zeros and special numbers (both signs of each, the numbers next to them), half any bits."""
    bits = BITS[dtype]
    top = 8 * bits(0).itemsize - 1
    infinity = {"bool": 1, "float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF << 52}[dtype]
    special = np.array([0, 0, 1, 2, infinity - 1, infinity, infinity + 1, 2**top - 1], bits)
    special = np.concatenate([special, special | bits(1 << top)])
    anything = rng.integers(0, 2 ** (top + 1), shape, bits)
    return np.where(rng.random(shape) < 0.5, rng.choice(special, shape), anything).view(MASK_TYPES[dtype])


def placed(mask, how):
    """The values of a mask (B, H, W) elsewhere: `how` elements behind an aligned address, or in other strides."""
    batch, height, width = mask.shape
    if how == "rows apart":
        wide = np.ones((batch, height, width + 3), mask.dtype)
        wide[..., 2 : 2 + width] = mask
        return wide[..., 2 : 2 + width]
    if how == "transposed":
        return mask.transpose(0, 2, 1).copy().transpose(0, 2, 1)
    if how == "columns apart":
        return np.repeat(mask, 2, 2)[..., ::2]
    buffer = np.ones(mask.size + 64, mask.dtype)
    first = -buffer.ctypes.data % 64 // mask.itemsize + how
    out = buffer[first : first + mask.size].reshape(mask.shape)
    out[...] = mask
    return out


@pytest.mark.parametrize("dtype", BITS)
def test_layouts_of_masks(sim, dtype):
    """Masks that start at aligned addresses and not, of any number of pixels, and in any strides."""
    rng = np.random.default_rng(12)
    nothing = np.zeros((3, 1, 1, 1), np.float16)
    places = [0, 1, 7, 15, "rows apart", "transposed", "columns apart"]
    for k, size in enumerate([(1, 1), (1, 15), (15, 1), (15, 15), (32, 32), (33, 31), (3, 347), (347, 3), (25, 49)]):
        fa = features(rng, (3, 1, *size), "float16")
        for place in [0, places[1:4][k % 3], places[4:][k % 3], places[4:][(k + 1) % 3]]:
            mask = placed(special_mask(rng, (3, *size), dtype), place)
            check(sim, fa, nothing, mask, None, "float16", False, single_launch_positions=4096 if k % 2 else 0)
            if size == (33, 31):
                check(sim, fa, nothing, mask, None, "float16", False, single_launch_positions=4096)


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("place", [0, 3])
def test_layouts_of_large_masks(sim, dtype, place):
    """More vectors than the threads of a block load at once."""
    rng = np.random.default_rng(13)
    size = {"bool": (95, 93), "float16": (71, 70), "bfloat16": (71, 70)}.get(dtype, (51, 50))
    x, nothing = features(rng, (1, 1, *size), "float16"), np.zeros((1, 1, 1, 1), np.float16)
    mask = placed(special_mask(rng, (1, *size), dtype), place)
    check(sim, x, nothing, mask, None, "float16", False, single_launch_positions=10000)


def test_every_half(sim):
    """Every float16 and every bfloat16 number: counting and packing go by one rule."""
    bits = np.random.default_rng(14).permutation(65536).astype(np.uint16).reshape(16, 64, 64)
    x = np.zeros((16, 1, 64, 64), np.float16)
    a, b = check(sim, x, x, bits.view(np.float16), bits, "float16", False)
    assert a["count"].sum() == 0x7C00
    assert b["count"].sum() == 0x7F80


@pytest.mark.parametrize("order", ORDERS)
def test_two_launches(sim, order):
    """Above the limit a masked side is counted first; the results are the same."""
    sim.set_order(*order)
    rng = np.random.default_rng(6)
    fa, fb = features(rng, (2, 8, 40, 70), "bfloat16"), features(rng, (2, 8, 8, 8), "bfloat16")
    mask_a, mask_b = holes(rng, (2, 40, 70)), holes(rng, (2, 8, 8))
    mask_a[0, :20] = 0
    for masks in ((mask_a, mask_b), (mask_a, None), (None, mask_b)):
        for limit, launches in ((16384, 1), (2800, 1), (64, 2 if masks[0] is not None else 1), (63, 2)):
            sim.counters(True)
            check(sim, fa, fb, *masks, "bfloat16", single_launch_positions=limit)
            assert sim.counters(False)["launches"] == launches
    check(sim, fb, fa, mask_b, mask_a, "bfloat16", single_launch_positions=0)


def test_built_in_limit(sim):
    """64 x 64 pixels are one launch, more are two."""
    rng = np.random.default_rng(8)
    fb = features(rng, (1, 1, 2, 2), "float16")
    for size, launches in (((64, 64), 1), ((64, 65), 2)):
        fa = features(rng, (1, 1, *size), "float16")
        sim.counters(True)
        check(sim, fa, fb, rng.random((1, *size)) < 0.5, None, "float16")
        assert sim.counters(False)["launches"] == launches


@pytest.mark.parametrize("how", ["planes", "channels_last"])
def test_split_reproduces_float32(sim, how):
    rng = np.random.default_rng(9)
    x = (rng.standard_normal((1, 16, 8, 8)) * 10.0 ** rng.integers(-30, 30, (1, 16, 8, 8))).astype(np.float32)
    x[0, 0, 0, :4] = [np.inf, -np.inf, np.nan, 3.4e38]
    x[0, 1, 0, :2] = [0.0, -0.0]
    a, b = sim.pack_tiles(layout(x, how), layout(x, how), terms=3)
    check_bits = packed_row(x.transpose(0, 2, 3, 1).reshape(64, 16), "float32x3", True)
    np.testing.assert_array_equal(a["features"][0], check_bits)
    ha, hb = from_bf16(a["features"][0]).reshape(64, 3, 16), from_bf16(b["features"][0]).reshape(64, 3, 16)
    np.testing.assert_array_equal(ha, hb[:, [0, 2, 1]])
    whole = ha[4:, 0].astype(np.float64) + ha[4:, 2]
    want = x.transpose(0, 2, 3, 1).reshape(64, 16)[4:].astype(np.float64)
    assert (np.abs(whole - want) <= 2.0**-16 * np.abs(want)).all()
    assert (ha[:4, 2, 0] == 0).all()  # nothing is left of what is not finite
    np.testing.assert_array_equal(ha[:4, 0, 0], [np.inf, -np.inf, np.nan, np.inf])
    np.testing.assert_array_equal(a["scale"][0, :4, 0], [0, 0, np.nan, 0])


@pytest.mark.parametrize("kind", ["float16", "float32x3"])
def test_excluded_features_are_not_read_into_rows(sim, kind):
    """NaN at excluded pixels reaches neither the rows nor the zero tail."""
    rng = np.random.default_rng(10)
    for how in LAYOUTS:
        x = features(rng, (1, 24, 10, 10), kind)
        mask = rng.random((1, 10, 10)) < 0.5
        x[:, :, ~mask[0]] = np.nan
        out, _ = check(sim, layout(x, how), x[..., :1, :1], mask, None, kind)
        assert np.isfinite(out["scale"][0, : mask.sum(), 0]).all()


def test_zero_and_small_norms(sim):
    x = np.zeros((1, 4, 2, 2), np.float32)
    x[0, 0] = [[0, 1e-13], [1e-12, 2]]
    out, _ = sim.pack_tiles(x, x)
    np.testing.assert_allclose(out["scale"][0, :4, 0], [1e12, 1e12, 1e12, 0.5], rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_excluded_outputs_and_counters(sim, order):
    sim.set_order(*order)
    rng = np.random.default_rng(11)
    shape = (3, 9, 8)
    x, mask = features(rng, (3, 8, 9, 8), "float16"), holes(rng, shape)
    mask[1] = 0

    def outputs():
        floats = [np.full(s, 7, np.float32) for s in ((3, 2, 9, 8), shape, shape, shape)]
        floats[1] = np.full((3, 8, 9), 7, np.float32).transpose(0, 2, 1)  # the strides of a view hold
        return (*floats[:3], np.full(shape, 7, np.int64), floats[3])

    allowed = mask > 0
    counters = np.full(5000, -1, np.int32)
    of_a, of_b = outputs(), outputs()
    sim.pack_tiles(x, x, mask, None, excluded_a=of_a, excluded_b=of_b, counters=counters)
    assert (counters == 0).all()
    for array, value in zip(of_a, (0, -np.inf, 0, -1, -np.inf), strict=True):
        pixels = array.reshape(3, -1, 9, 8)
        for k in range(pixels.shape[1]):
            np.testing.assert_array_equal(pixels[:, k], np.where(allowed, 7, value))
    assert all((array == 7).all() for array in of_b)  # no mask, nothing excluded
    of_b = (None, None, None, None, outputs()[4])
    sim.pack_tiles(x, x, None, mask, excluded_b=of_b)
    np.testing.assert_array_equal(of_b[4], np.where(allowed, 7, -np.inf))


def test_empty_batch(sim):
    counters = np.full(3, -1, np.int32)
    x = np.zeros((0, 8, 4, 4), np.float16)
    sim.pack_tiles(x, x, counters=counters)
    assert (counters == 0).all()


@pytest.mark.parametrize("terms", [1, 3])
def test_arena(sim, terms):
    """take_tile_side: six arrays in order, aligned, apart, and as many bytes as they need."""
    batch, n, channels = 3, 1500, 13
    begins, size = sim.tile_side_layout(batch, n, channels, terms)
    sizes = [batch * n * 16 * terms * 2, batch * 1536 * 8, batch * 1536 * 8, batch * n * 4, batch * 4, batch * 2 * 4]
    assert all(begin % 64 == 0 for begin in begins)
    assert all(begin + s <= end for begin, s, end in zip(begins, sizes, [*begins[1:], size], strict=True))

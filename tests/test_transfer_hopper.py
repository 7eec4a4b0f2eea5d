"""transfer's own kernels for Hopper: what the shapes of test_transfer.py do not reach, and what only they promise.

As test_match_hopper.py: hostsim has 6 multiprocessors, so small problems already make blocks share row tiles and walk
over several of them. On a GPU of compute capability 9.0 the same cases run through the operator.
"""

import os
import subprocess
import sys

import backends
import pytest
import torch
from backends_transfer import transfer
from errors import assert_close, assert_no_worse
from test_match import HALF, NAN, features, masks, poison_excluded
from test_match_hopper import BUILD, SHAPES

from cosegflow import reference

BETA = torch.tensor(20.0)
PRECISION = {"high": 1, "medium": 2}


@pytest.fixture(params=["hostsim", "cuda"])
def backend(request):
    if request.param == "cuda" and (not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0)):
        pytest.skip("no GPU of compute capability 9.0: hostsim runs the same kernels")
    return backends.get(request.param)


def lse_of(fa, fb, mask_a, mask_b, beta):
    return reference.match(fa, fb, mask_a, mask_b, beta=beta)[1]


def check(backend, shape, channels, kind, dtype, values_dtype=None, **options):
    mask_a, mask_b = masks(kind, shape[0], *shape[2:])
    fa, fb = features(*shape, dtype)
    values = torch.randn(shape[0], channels, *shape[4:]).to(values_dtype or dtype)
    poison_excluded(fa, fb, mask_a, mask_b)
    if mask_b is not None:
        values.masked_fill_(~(mask_b > 0).unsqueeze(1), NAN)
    out, lse = transfer(backend, fa, fb, values, mask_a, mask_b, BETA, **options)
    assert out.dtype == torch.float32 and out.shape == (shape[0], channels, *shape[2:4])
    exact = reference.transfer(fa.double(), fb.double(), values.double(), mask_a, mask_b, BETA.double())
    plain = reference.transfer(fa.float(), fb.float(), values.float(), mask_a, mask_b, BETA)
    assert_no_worse(out, plain, exact, 4e-6, "out")
    exact = lse_of(fa.double(), fb.double(), mask_a, mask_b, BETA.double())
    assert_no_worse(lse, lse_of(fa.float(), fb.float(), mask_a, mask_b, BETA), exact, 4e-6, "lse")


@pytest.mark.parametrize("channels", [1, 3, 8], ids=["one plane", "two planes", "four planes"])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(backend, name, channels):
    check(backend, SHAPES[name], channels, "none" if channels == 3 else "holes", HALF[channels % 2])


@pytest.mark.parametrize("channels", [2, 4, 5, 7, 9, 11, 16, 18, 32, 33])
def test_value_channels(backend, channels):
    """Planes that are not full, several passes that are not full; beyond 32 the portable kernels."""
    check(backend, (2, 24, 15, 22, 13, 17), channels, "holes", torch.float16)


@pytest.mark.parametrize("values_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_values_of_another_dtype(backend, values_dtype):
    for dtype in HALF:
        check(backend, (2, 40, 9, 11, 12, 13), 5, "one image empty", dtype, values_dtype)


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("channels", [6, 11])
def test_float32_precision(backend, precision, channels):
    """At most twice the error of products of numbers rounded to 16 bits of mantissa ("high") or bfloat16 ("medium")."""
    shape = SHAPES["resident rows, the last slab not full"]
    _, mask_b = masks("soft", shape[0], *shape[2:])
    fa, fb = features(*shape, torch.float32)
    values = torch.randn(shape[0], channels, *shape[4:])
    out, lse = transfer(backend, fa, fb, values, None, mask_b, BETA, precision=PRECISION[precision])

    def rounded(x):
        kept = x.bfloat16().double()
        if precision == "high":
            kept += (x.double() - kept).bfloat16()
        return kept / x.double().norm(dim=1, keepdim=True)

    exact = reference.transfer(fa.double(), fb.double(), values.double(), None, mask_b, BETA.double())
    plain = reference.transfer(rounded(fa), rounded(fb), values.double(), None, mask_b, BETA.double(), False)
    assert_no_worse(out, plain, exact, 4e-6, "out")
    exact = lse_of(fa.double(), fb.double(), None, mask_b, BETA.double())
    plain = reference.match(rounded(fa), rounded(fb), None, mask_b, beta=BETA.double(), normalize=False)[1]
    assert_no_worse(lse, plain, exact, 4e-6, "lse")


@pytest.mark.parametrize("channels", [3, 8])
def test_nothing_allowed(backend, channels):
    """Neither a source nor a target in an image, beside images that have some."""
    fa, fb = features(3, 24, 9, 15, 8, 17, torch.float16)
    mask_a, mask_b = torch.ones(3, 9, 15), torch.ones(3, 8, 17)
    mask_a[0], mask_b[2] = 0, 0
    poison_excluded(fa, fb, mask_a, mask_b)
    fa[2, 5, 3, 4] = NAN  # matches nothing, as its neighbours do
    values = torch.randn(3, channels, 8, 17).half()
    values[2] = NAN
    out, lse = transfer(backend, fa, fb, values, mask_a, mask_b, BETA)
    for image in (0, 2):
        assert bool((out[image] == 0).all()) and bool((lse[image] == -torch.inf).all())
    exact = reference.transfer(*(t[1:2].double() for t in (fa, fb, values)), None, None, BETA.double())
    assert_close(out[1:2], exact, 1e-5)


@pytest.mark.parametrize("beta", [3e38, -3e38, 1e30, 1e21, 3e12, -1e9, 2.5e8, 3e6])
@pytest.mark.parametrize("channels", [1, 4, 8])
def test_huge_beta(backend, beta, channels):
    """Never NaN while float32 can hold beta * s, and ties share the weight."""
    fa, fb = torch.ones(1, 1, 1, 300).half(), torch.full((1, 1, 1, 270), -1.1).half()
    fb[..., 7] = fb[..., 200] = 1.0
    values = torch.arange(270.0).reshape(1, 1, 1, 270).expand(-1, channels, -1, -1)
    for normalize in (False, True):
        out, _ = transfer(backend, fa, fb, values, None, None, torch.tensor(beta), normalize)
        tied = values[0, 0, 0][(fb == fb.max() if beta > 0 else fb == fb.min()).flatten()]
        assert_close(out, torch.full_like(out, tied.mean()), 1e-5)


@pytest.mark.parametrize("name", ["fragments and several images", "three slabs, four places"])
def test_bits_do_not_depend_on_the_order(name):
    """hostsim: of threads, and of blocks: who comes last merges the fragments in the order of the columns."""
    module, shape = backends.hostsim_module(), SHAPES[name]
    mask_a, mask_b = masks("holes", shape[0], *shape[2:])
    fa, fb = features(*shape, torch.float16)
    values, results = torch.randn(shape[0], 7, *shape[4:]), []
    try:
        for order in (("forward", 0), ("reverse", 0), ("random", 1)):
            module.set_order(*order)
            results.append(transfer(backends.Hostsim(), fa, fb, values, mask_a, mask_b, BETA))
    finally:
        module.set_order("forward", 0)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("channels, launches", [(1, 3), (8, 3), (9, 4), (32, 6)])
def test_launches(channels, launches):
    """One packs, one gathers values, then one for every 8 values, masks or not."""
    module, shape = backends.hostsim_module(), (2, 24, 9, 15, 15, 9)
    fa, fb = features(*shape, torch.bfloat16)
    for kind in ("none", "holes"):
        module.counters(True)
        transfer(backends.Hostsim(), fa, fb, torch.randn(2, channels, 15, 9), *masks(kind, 2, *shape[2:]), BETA)
        assert module.counters(True)["launches"] == launches


SAYS = """
import runpy, numpy as np
sim = runpy.run_path({build!r})["load"]()
for dtype, channels, options in ((np.float16, 3, {{}}), (np.float16, 33, {{}}), (np.float16, 3, {{"portable": True}}),
                                 (np.float16, 3, {{"simple": True}}), (np.float32, 3, {{}}),
                                 (np.float32, 80, {{"precision": 1}}), (np.float32, 81, {{"precision": 2}})):
    f, values = np.ones((1, 8, 2, 3), dtype), np.ones((1, channels, 2, 3), dtype)
    sim.transfer(f, f, values, None, None, np.ones(1, np.float32), **options)
"""


def test_log_says_which_path_and_why():
    done = subprocess.run(
        [sys.executable, "-c", SAYS.format(build=str(BUILD))],
        env={**os.environ, "COSEGFLOW_LOG": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("cosegflow: transfer")] == [
        "cosegflow: transfer: Hopper kernels (wgmma, TMA)",
        "cosegflow: transfer: portable kernels (mma.sync): over 32 values of half features: their probabilities, "
        "once, are cheaper than scores for every 8",
        "cosegflow: transfer: portable kernels (mma.sync): the portable kernels were asked for",
        "cosegflow: transfer: simple kernels: the simple kernels were asked for",
        'cosegflow: transfer: portable kernels (FMA): float32 at precision "highest" takes multiply-adds, as accurate '
        "as float32",
        "cosegflow: transfer: portable kernels (FMA): over 80 values of float32 features: their probabilities, once, "
        "are cheaper than scores for every 8",
    ], done.stderr

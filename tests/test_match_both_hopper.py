"""match_both's own kernels for Hopper: what test_match_both.py does not reach, and what only they promise."""

import os
import subprocess
import sys

import backends
import numpy as np
import pytest
import torch
from errors import assert_no_worse
from test_match import features, poison_excluded
from test_match_both import NAMES, both_masks, by_reference
from test_match_hopper import BUILD, PRECISIONS, SHAPES, _tf32

import cosegflow


@pytest.fixture(params=["hostsim", "cuda"])
def run(request):
    """match_both(fa, fb, mask_a, mask_b, beta, precision) on a backend whose halves take the Hopper kernels."""
    if request.param == "cuda":
        if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("no GPU of compute capability 9.0: hostsim runs the same kernels")
        return _on_cuda
    return _on_hostsim


def _on_hostsim(fa, fb, mask_a, mask_b, beta, precision="highest", normalize=True, **options):
    arrays = [backends.to_numpy(t) for t in (fa, fb, mask_a, mask_b)]
    per_image = np.broadcast_to(np.float32(beta), fa.shape[0])
    module = backends.hostsim_module()
    out = module.match_both(*arrays, per_image, normalize, precision=PRECISIONS.index(precision), **options)
    return [backends.to_torch(o) for o in out]


def _on_cuda(fa, fb, mask_a, mask_b, beta, precision="highest", normalize=True):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        moved = [None if t is None else t.cuda() for t in (fa, fb, mask_a, mask_b)]
        ab, ba = cosegflow.match_both(*moved, beta=beta, normalize=normalize)
        return [o.cpu() for o in (*ab, *ba)]
    finally:
        torch.set_float32_matmul_precision(before)


def check(run, shape, kind, dtype, beta=20.0, **options):
    mask_a, mask_b = both_masks(kind, shape[0], *shape[2:])
    fa, fb = features(*shape, dtype)
    poison_excluded(fa, fb, mask_a, mask_b)
    ours = run(fa, fb, mask_a, mask_b, beta, **options)
    exact = by_reference(fa.double(), fb.double(), mask_a, mask_b, torch.tensor(beta).double())
    plain = by_reference(fa.float(), fb.float(), mask_a, mask_b, torch.tensor(beta))
    for name, o, p, e in zip(NAMES, ours, plain, exact, strict=False):
        # Sums are of coordinates relative to the centre of the image, which may be larger than the flow.
        assert_no_worse(o, p, e, 1e-5 if "flow" in name else 4e-6, name)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(run, name):
    """Halves are multiplied exactly and summed in float32: as good as plain torch in float32."""
    for kind, dtype in (("none", torch.bfloat16), ("holes", torch.float16), ("disjoint", torch.float16)):
        check(run, SHAPES[name], kind, dtype)


@pytest.mark.parametrize("kind", ["only a", "only b", "zero a", "zero b", "wild", "bool"])
def test_masks(run, kind):
    check(run, SHAPES["fragments and several images"], kind, torch.float16)


@pytest.mark.parametrize("chunk_bytes", [1, 60_000])
@pytest.mark.parametrize("kind", ["none", "holes", "disjoint"])
def test_chunks_of_rows(kind, chunk_bytes):
    """hostsim: row tiles one by one, and two at a time where three make an image's last chunk a short one."""
    for name in ("many strips in a block", "fragments and several images", "streaming rows"):
        check(_on_hostsim, SHAPES[name], kind, torch.bfloat16, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("name", ["resident rows, the last slab not full", "streaming rows"])
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_float32_error_rule(run, name, precision):
    """At most twice the error of a product of numbers rounded to TF32 ("high") or bfloat16 ("medium")."""
    shape = SHAPES[name]
    mask_a, mask_b = both_masks("soft", shape[0], *shape[2:])
    fa, fb = features(*shape, torch.float32)
    ours = run(fa, fb, mask_a, mask_b, 20.0, precision=precision)
    exact = by_reference(fa.double(), fb.double(), mask_a, mask_b, torch.tensor(20.0).double())
    rounded = [_tf32(t) if precision == "high" else t.bfloat16().float() for t in (fa, fb)]
    rounded = [(r / t.norm(dim=1, keepdim=True)).double() for r, t in zip(rounded, (fa, fb), strict=True)]
    plain = by_reference(*rounded, mask_a, mask_b, torch.tensor(20.0).double(), normalize=False)
    for name, o, p, e in zip(NAMES, ours, plain, exact, strict=False):
        assert_no_worse(o, p, e, 4e-6, name)


@pytest.mark.parametrize("name", ["fragments and several images", "three slabs, four places"])
def test_bits_do_not_depend_on_the_order(name):
    """hostsim: of threads, and of blocks: each state of a column has one writer, all are merged in one order."""
    module = backends.hostsim_module()
    shape = SHAPES[name]
    mask_a, mask_b = both_masks("holes", shape[0], *shape[2:])
    fa, fb = features(*shape, torch.float16)
    results = []
    try:
        for order in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
            module.set_order(*order)
            results.append(_on_hostsim(fa, fb, mask_a, mask_b, 15.0))
    finally:
        module.set_order("forward", 0)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("beta", [40.0, 80.0, 300.0])
@pytest.mark.parametrize("kind", ["none", "weights"])
def test_peaks_far_apart(run, kind, beta):
    """One exponential serves rows and columns of a part of a tile, or none does: some lie far below the others."""
    fa, fb = features(2, 24, 20, 31, 27, 19, torch.float16)
    fa, fb = fa + 2, fb + 2
    fb[:, :, :9] *= -1
    fa[1, :, 15:] *= -1
    mask_a = mask_b = None
    if kind == "weights":
        mask_a, mask_b = (torch.exp(torch.rand(2, h, w) * 120 - 60) for h, w in ((20, 31), (27, 19)))
    ours = run(fa, fb, mask_a, mask_b, beta)
    exact = by_reference(fa.double(), fb.double(), mask_a, mask_b, torch.tensor(beta).double())
    plain = by_reference(fa.float(), fb.float(), mask_a, mask_b, torch.tensor(beta))
    for name, o, p, e in zip(NAMES, ours, plain, exact, strict=False):
        assert_no_worse(o, p, e, 2e-5 if "flow" in name else 1e-5, name)


@pytest.mark.parametrize("beta", [3e38, -3e38, 1e30, 1e10, 1e5])
def test_huge_beta(run, beta):
    """A softmax that is a maximum, in both directions, in many tiles. The scores of one channel are 1 and -1."""
    fa, fb = torch.ones(1, 1, 20, 21), torch.ones(1, 1, 18, 23)
    fa[..., 5, 7], fb[..., 11, 3] = -1.0, -1.0
    mask_a, mask_b = torch.full((1, 20, 21), 0.5), torch.full((1, 18, 23), 0.25)
    flow_ab, lse_ab, _, flow_ba, lse_ba, _ = run(fa.half(), fb.half(), mask_a, mask_b, beta, normalize=False)
    at_a, at_b = torch.tensor([7.0, 5.0]), torch.tensor([3.0, 11.0])
    # The pixel that is alone with its sign matches its like, or all others match it where beta is negative.
    for flow, mine, other in ((flow_ab, fa, at_b), (flow_ba, fb, at_a)):
        grid = torch.meshgrid(torch.arange(mine.shape[3]), torch.arange(mine.shape[2]), indexing="xy")
        target = flow[0].movedim(0, -1) + torch.stack(grid, -1)
        assert bool(torch.isfinite(target).all())
        assert (target[mine[0, 0] * beta < 0] - other).abs().max() <= 1e-3
    lse = torch.cat((lse_ab.flatten(), lse_ba.flatten()))
    assert bool(torch.isfinite(lse).all()) and (lse / abs(beta) - 1).abs().max() <= 1e-3


def test_nan_stays_in_its_own_column_and_row(run):
    """Of an included feature of b: all of a, whose sums it enters, and of b its own pixel."""
    fa, fb = features(1, 24, 20, 15, 15, 20, torch.float16)
    fb[0, 3, 9, 8] = torch.nan
    out = run(fa, fb, None, None, 5.0)
    assert bool(torch.isnan(out[0]).all()) and bool(torch.isnan(out[1]).all())
    nan = torch.isnan(out[4])
    assert nan.sum() == 1 and bool(nan[0, 9, 8])


@pytest.mark.parametrize("kind", ["none", "holes"])
def test_launches(kind):
    """A call is three launches, masks or not; each further chunk is two more, and counting their rows one."""
    module = backends.hostsim_module()
    shape = (2, 24, 30, 15, 15, 15)
    mask_a, mask_b = both_masks(kind, shape[0], *shape[2:])
    fa, fb = features(*shape, torch.bfloat16)
    for chunk_bytes, launches in ((0, 3), (1, 6)):
        module.counters(True)
        _on_hostsim(fa, fb, mask_a, mask_b, 20.0, chunk_bytes=chunk_bytes)
        assert module.counters(True)["launches"] == launches


SAYS = """
import runpy, numpy as np
sim = runpy.run_path({build!r})["load"]()
for dtype, options in ((np.float16, {{}}), (np.float16, {{"portable": True}}), (np.float16, {{"simple": True}}),
                       (np.float32, {{"precision": 1}}), (np.float64, {{}}), (np.float16, {{}})):
    f = np.ones((1, 8, 2, 3), dtype)
    sim.match_both(f, f, None, None, np.ones(1, np.float64 if dtype == np.float64 else np.float32), **options)
"""


def test_log_says_which_path_and_why():
    done = subprocess.run(
        [sys.executable, "-c", SAYS.format(build=str(BUILD))],
        env={**os.environ, "COSEGFLOW_LOG": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("cosegflow: match_both")]
    assert lines == [
        "cosegflow: match_both: Hopper kernels (wgmma, TMA)",
        "cosegflow: match_both: portable kernels (mma.sync): the portable kernels were asked for",
        "cosegflow: match_both: simple kernels: the simple kernels were asked for",
        "cosegflow: match_both: portable kernels (FMA): tensor cores of Hopper do not multiply float64 into these "
        "tiles",
    ], done.stderr

"""match's own kernels for Hopper: what the shapes of test_match.py do not reach, and what only they promise.

hostsim stands for a GPU of compute capability 9.0 with 6 multiprocessors, so small problems already make blocks share
row tiles and walk over several of them. On a GPU the same cases run through the public function.
"""

import os
import subprocess
import sys
from pathlib import Path

import backends
import numpy as np
import pytest
import torch
from errors import assert_no_worse
from test_match import NAN, features, masks, poison_excluded

import cosegflow
from cosegflow import reference

BUILD = Path(__file__).resolve().parents[1] / "csrc" / "hostsim" / "build.py"
PRECISIONS = ("highest", "high", "medium")
# (B, C, Ha, Wa, Hb, Wb): tiles are 256 x 128, slabs 64 channels, rows resident up to 256 channels.
SHAPES = {
    "two fragments of one tile each": (1, 72, 9, 17, 11, 13),
    "one warpgroup without rows": (1, 40, 10, 12, 9, 31),
    "fragments and several images": (3, 136, 30, 20, 27, 19),
    "many strips in a block": (5, 8, 40, 30, 9, 13),
    "resident rows, whole slabs": (2, 256, 21, 13, 20, 14),
    "resident rows, the last slab not full": (2, 200, 19, 15, 20, 27),
    "three slabs, four places": (2, 192, 40, 20, 18, 15),
    "streaming rows": (1, 328, 20, 26, 25, 21),
    "short runs in turn": (2, 328, 40, 40, 40, 50),
    "as many fragments as there is room for": (1, 264, 4, 5, 45, 50),
    "more images than lanes": (40, 16, 3, 4, 3, 5),
}


@pytest.fixture(params=["hostsim", "cuda"])
def run(request):
    """match(fa, fb, mask_a, mask_b, beta, precision, indexed) on a backend whose halves take the Hopper kernels."""
    if request.param == "cuda":
        if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("no GPU of compute capability 9.0: hostsim runs the same kernels")
        return _on_cuda
    return _on_hostsim


def _on_hostsim(fa, fb, mask_a, mask_b, beta, precision="highest", indexed=False, portable=False, sigma=0.0):
    arrays = [backends.to_numpy(t) for t in (fa, fb, mask_a, mask_b)]
    per_image = np.full(fa.shape[0], beta, np.float32)
    module = backends.hostsim_module()
    out = module.match(*arrays, per_image, True, False, sigma, indexed, PRECISIONS.index(precision), portable)
    return [backends.to_torch(o) for o in out]


def _on_cuda(fa, fb, mask_a, mask_b, beta, precision="highest", indexed=False, portable=False, sigma=0.0):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        moved = [None if t is None else t.cuda() for t in (fa, fb, mask_a, mask_b)]
        out = cosegflow.match(*moved, beta=beta, kernel_sigma=sigma or None, return_index=indexed)
        return [o.cpu() for o in out]
    finally:
        torch.set_float32_matmul_precision(before)


def check(run, shape, kind, dtype, beta=20.0, **options):
    mask_a, mask_b = masks(kind, shape[0], *shape[2:])
    fa, fb = features(*shape, dtype)
    poison_excluded(fa, fb, mask_a, mask_b)
    ours = run(fa, fb, mask_a, mask_b, beta, **options)
    exact = reference.match(fa.double(), fb.double(), mask_a, mask_b, beta=torch.tensor(beta).double())
    plain = reference.match(fa.float(), fb.float(), mask_a, mask_b, beta=torch.tensor(beta))
    for name, o, p, e in zip(("flow", "lse", "confidence"), ours, plain, exact, strict=False):
        # Sums are of coordinates relative to the centre of b, which may be larger than the flow.
        assert_no_worse(o, p, e, 1e-5 if name == "flow" else 4e-6, name)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(run, name):
    """Halves are multiplied exactly and summed in float32: as good as plain torch in float32."""
    for kind, dtype in (("none", torch.bfloat16), ("holes", torch.float16), ("one image empty", torch.float16)):
        check(run, SHAPES[name], kind, dtype)


@pytest.mark.parametrize("name", ["fragments and several images", "as many fragments as there is room for"])
def test_most_probable_across_fragments(run, name):
    shape = SHAPES[name]
    mask_a, mask_b = masks("holes", shape[0], *shape[2:])
    fa, fb = features(*shape, torch.float16)
    index, score = run(fa, fb, mask_a, mask_b, 20.0, indexed=True)[3:]
    scores = reference.correlation(fa.double(), fb.double(), normalize=True).flatten(3).flatten(1, 2)
    logits = 20 * scores + mask_b.double().log().flatten(1).unsqueeze(1)
    best = logits.max(-1)
    live = (mask_a.flatten(1) > 0) & torch.isfinite(best.values)
    assert torch.equal(index.flatten(1)[live], best.indices[live])
    assert bool((index.flatten(1)[~live] == -1).all())
    error = (score.flatten(1).double() - scores.gather(-1, best.indices.unsqueeze(-1)).squeeze(-1))[live].abs().max()
    assert error <= 1e-6


@pytest.mark.parametrize("name", ["two fragments of one tile each", "fragments and several images"])
def test_window_across_fragments(run, name):
    shape = SHAPES[name]
    fa, fb = features(*shape, torch.float16)
    ours = run(fa, fb, None, None, 30.0, indexed=True, sigma=2.0)
    beta = torch.tensor(30.0)
    exact = reference.match(fa.double(), fb.double(), None, None, beta=beta.double(), kernel_sigma=2.0)
    plain = reference.match(fa.float(), fb.float(), None, None, beta=beta, kernel_sigma=2.0)
    for i, what in enumerate(("flow", "lse", "confidence")):
        assert_no_worse(ours[i], plain[i], exact[i], 4e-6, what)


def test_source_of_nan_without_any_target(run):
    """It matches nothing, as any other source there; with targets it is NaN."""
    fa, fb = features(2, 24, 3, 5, 4, 6, torch.float16)
    fa[:, :, 1, 2] = NAN
    mask_b = torch.ones(2, 4, 6)
    mask_b[0] = 0
    flow, lse, confidence, index, score = run(fa, fb, None, mask_b, 20.0, indexed=True)
    assert torch.equal(flow[0], torch.zeros_like(flow[0])) and bool(torch.isneginf(lse[0]).all())
    assert torch.equal(confidence[0], torch.zeros_like(confidence[0]))
    assert bool((index[0] == -1).all()) and bool(torch.isneginf(score[0]).all())
    there = torch.zeros(3, 5, dtype=torch.bool)
    there[1, 2] = True
    assert torch.equal(torch.isnan(lse[1]), there) and torch.equal(torch.isnan(flow[1, 0]), there)


def _tf32(x):
    """Rounded to 10 bits of mantissa, as tensor cores read float32 in TF32."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("name", ["resident rows, the last slab not full", "streaming rows"])
@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("portable", [False, True], ids=["hopper", "portable"])
def test_float32_error_rule(run, name, precision, portable):
    """At most twice the error of a product of numbers rounded to TF32 ("high") or bfloat16 ("medium")."""
    shape = SHAPES[name]
    _, mask_b = masks("soft", shape[0], *shape[2:])
    fa, fb = features(*shape, torch.float32)
    ours = run(fa, fb, None, mask_b, 20.0, precision=precision, portable=portable)
    exact = reference.match(fa.double(), fb.double(), None, mask_b, beta=torch.tensor(20.0).double())
    rounded = [_tf32(t) if precision == "high" else t.bfloat16().float() for t in (fa, fb)]
    rounded = [r / t.norm(dim=1, keepdim=True) for r, t in zip(rounded, (fa, fb), strict=True)]
    plain = reference.match(*(r.double() for r in rounded), None, mask_b, beta=torch.tensor(20.0).double(),
                            normalize=False)  # fmt: skip
    for i, what in enumerate(("flow", "lse", "confidence")):
        assert_no_worse(ours[i], plain[i], exact[i], 4e-6, what)
    if precision == "high":  # 16 bits of each number are kept, not 11
        error = (ours[1].double() - exact[1]).abs().max()
        assert error <= 0.1 * (plain[1] - exact[1]).abs().max()


@pytest.mark.parametrize("name", ["fragments and several images", "short runs in turn"])
def test_bits_do_not_depend_on_the_order(name):
    """hostsim: of threads, and of blocks: who comes last merges the fragments in the order of the columns."""
    module = backends.hostsim_module()
    shape = SHAPES[name]
    mask_a, mask_b = masks("holes", shape[0], *shape[2:])
    fa, fb = features(*shape, torch.float16)
    results = []
    try:
        for order in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
            module.set_order(*order)
            results.append(_on_hostsim(fa, fb, mask_a, mask_b, 15.0, indexed=True))
    finally:
        module.set_order("forward", 0)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["none", "holes"])
def test_launches(kind):
    """A call is two launches, masks or not; a third computes the score of the most probable target."""
    module = backends.hostsim_module()
    shape = (2, 24, 15, 15, 15, 15)
    mask_a, mask_b = masks(kind, shape[0], *shape[2:])
    fa, fb = features(*shape, torch.bfloat16)
    for indexed, launches in ((False, 2), (True, 3)):
        module.counters(True)
        _on_hostsim(fa, fb, mask_a, mask_b, 20.0, indexed=indexed)
        assert module.counters(True)["launches"] == launches


def test_agrees_with_the_portable_kernels():
    shape = SHAPES["fragments and several images"]
    mask_a, mask_b = masks("holes", shape[0], *shape[2:])
    fa, fb = features(*shape, torch.bfloat16)
    ours = _on_hostsim(fa, fb, mask_a, mask_b, 20.0, indexed=True)
    portable = _on_hostsim(fa, fb, mask_a, mask_b, 20.0, indexed=True, portable=True)
    assert torch.equal(ours[3], portable[3])
    for a, b in zip(ours[:3], portable[:3], strict=True):
        finite = torch.isfinite(b)
        assert torch.equal(torch.isfinite(a), finite)
        assert (a - b)[finite].abs().max() <= 3e-5


SAYS = """
import runpy, numpy as np
sim = runpy.run_path({build!r})["load"]()
for dtype, options in ((np.float16, {{}}), (np.float16, {{"portable": True}}), (np.float16, {{"simple": True}}),
                       (np.float32, {{}}), (np.float32, {{"precision": 1}}), (np.float64, {{}}), (np.float16, {{}})):
    f = np.ones((1, 8, 2, 3), dtype)
    sim.match(f, f, None, None, np.ones(1, np.float64 if dtype == np.float64 else np.float32), **options)
"""


def test_log_says_which_path_and_why():
    done = subprocess.run(
        [sys.executable, "-c", SAYS.format(build=str(BUILD))],
        env={**os.environ, "COSEGFLOW_LOG": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("cosegflow: match")]
    assert lines == [
        "cosegflow: match: Hopper kernels (wgmma, TMA)",
        "cosegflow: match: portable kernels (mma.sync): the portable kernels were asked for",
        "cosegflow: match: simple kernels: the simple kernels were asked for",
        'cosegflow: match: portable kernels (FMA): float32 at precision "highest" takes multiply-adds, as accurate as '
        "float32",
        "cosegflow: match: portable kernels (FMA): tensor cores of Hopper do not multiply float64 into these tiles",
    ], done.stderr

"""correlation's own kernels for Hopper: what test_correlation.py does not reach, and what only they promise.

hostsim stands for a GPU of compute capability 9.0 with 6 multiprocessors, so small problems already make blocks walk
over several tiles. On a GPU the same cases run through the public function.
"""

import os
import subprocess
import sys
from pathlib import Path

import backends
import pytest
import torch
from errors import EPS, assert_no_worse
from test_match_hopper import PRECISIONS, _tf32

import cosegflow
from cosegflow import reference

BUILD = Path(__file__).resolve().parents[1] / "csrc" / "hostsim" / "build.py"
# (B, C, Ha, Wa, Hb, Wb): tiles are 256 x 128, slabs 64 channels, rows resident up to 256 channels. Planes are read as
# they are where both images are multiples of 8 pixels; rows of b that are no such multiple are not stored by 16 bytes.
SHAPES = {
    "planes, a tile that is not full": (1, 72, 8, 19, 12, 14),
    "odd sizes": (2, 72, 9, 17, 11, 13),
    "one warpgroup without rows": (1, 40, 10, 12, 9, 32),
    "planes, several strips in a block": (5, 8, 40, 30, 9, 16),
    "planes, resident rows, whole slabs": (2, 256, 21, 16, 20, 14),
    "three slabs, four places": (2, 192, 40, 20, 18, 16),
    "planes, streamed, bands of row tiles": (1, 264, 50, 48, 13, 16),
    "odd sizes, streamed": (1, 328, 20, 26, 25, 21),
    "planes, streamed, last columns few": (1, 264, 48, 48, 16, 23),
    "odd sizes, streamed, one row of b": (1, 264, 47, 47, 5, 73),
    "float32 streamed as three terms": (1, 88, 48, 48, 16, 23),
    "more images than lanes": (40, 16, 3, 4, 2, 8),
}
PLANES = "planes, a tile that is not full"


@pytest.fixture(params=["hostsim", "cuda"])
def run(request):
    """correlation(fa, fb, normalize, relu, precision, portable) on a backend whose halves take the Hopper kernels."""
    if request.param == "cuda":
        if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
            pytest.skip("no GPU of compute capability 9.0: hostsim runs the same kernels")
        return _on_cuda
    return _on_hostsim


def _on_hostsim(fa, fb, normalize=True, relu=False, precision="highest", portable=False):
    return backends.Hostsim().correlation(fa, fb, normalize, relu, False, PRECISIONS.index(precision), portable)


def _on_cuda(fa, fb, normalize=True, relu=False, precision="highest", portable=False):
    if portable:
        number = PRECISIONS.index(precision)
        return torch.ops.cosegflow.correlation(fa.cuda(), fb.cuda(), normalize, relu, False, number, True).cpu()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        return cosegflow.correlation(fa.cuda(), fb.cuda(), normalize=normalize, relu=relu).cpu()
    finally:
        torch.set_float32_matmul_precision(before)


def pair(shape, dtype):
    batch, channels, ha, wa, hb, wb = shape
    return torch.randn(batch, channels, ha, wa).to(dtype), torch.randn(batch, channels, hb, wb).to(dtype)


def channels_last(fa, fb):
    return [f.contiguous(memory_format=torch.channels_last) for f in (fa, fb)]


def sliced(fa, fb):
    """Images with a gap between them."""
    return [torch.cat((f, f), 1)[:, : f.shape[1]] for f in (fa, fb)]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(run, name):
    """Halves are multiplied exactly and summed in float32: as good as plain torch in float32, but for one rounding."""
    for dtype, normalize, relu, layout in (
        (torch.float16, True, False, None),
        (torch.bfloat16, False, True, None),
        (torch.bfloat16, True, True, channels_last),
        (torch.float16, False, False, sliced),
    ):
        fa, fb = pair(SHAPES[name], dtype)
        exact = reference.correlation(fa.double(), fb.double(), normalize, relu)
        plain = reference.correlation(fa.float(), fb.float(), normalize, relu).to(dtype)
        ours = run(*(layout(fa, fb) if layout else (fa, fb)), normalize, relu)
        assert ours.dtype == dtype
        assert_no_worse(ours, plain, exact, 30 * EPS[torch.float32], f"{dtype} {normalize} {relu}")


@pytest.mark.parametrize("name", ["odd sizes", "odd sizes, streamed", "float32 streamed as three terms"])
@pytest.mark.parametrize("precision", ["high", "medium"])
@pytest.mark.parametrize("portable", [False, True], ids=["hopper", "portable"])
def test_float32_error_rule(run, name, precision, portable):
    """At most twice the error of a product of numbers rounded to TF32 ("high") or bfloat16 ("medium")."""
    fa, fb = pair(SHAPES[name], torch.float32)
    for normalize, relu in ((True, False), (False, True)):
        ours = run(fa, fb, normalize, relu, precision, portable)
        exact = reference.correlation(fa.double(), fb.double(), normalize, relu)
        rounded = [_tf32(t) if precision == "high" else t.bfloat16().float() for t in (fa, fb)]
        if normalize:
            rounded = [r / t.norm(dim=1, keepdim=True) for r, t in zip(rounded, (fa, fb), strict=True)]
        plain = reference.correlation(*(r.double() for r in rounded), False, relu)
        assert ours.dtype == torch.float32
        assert_no_worse(ours, plain, exact, 4e-6, f"{normalize} {relu}")
        if precision == "high":  # 16 bits of each number are kept, not 11
            assert (ours.double() - exact).abs().max() <= 0.1 * (plain - exact).abs().max()


@pytest.mark.parametrize("name", [PLANES, "odd sizes"])
@pytest.mark.parametrize("portable", [False, True], ids=["hopper", "portable"])
def test_nan_and_zero(run, name, portable):
    """A NaN stays one, through relu too, and only in its row or column; a feature of zeros gives zeros."""
    fa, fb = pair(SHAPES[name], torch.float16)
    fa[:, 3, 1, 2], fb[:, 5, 2, 1] = float("nan"), float("nan")
    fa[:, :, 2, 4] = 0
    there = torch.zeros(*fa.shape[2:], *fb.shape[2:], dtype=torch.bool)
    there[1, 2], there[:, :, 2, 1] = True, True
    for relu in (False, True):
        ours = run(fa, fb, True, relu, portable=portable)
        assert torch.equal(torch.isnan(ours), there.expand_as(ours))
        assert bool((ours[:, 2, 4][~there.expand_as(ours)[:, 2, 4]] == 0).all())
        assert bool((ours[~there.expand_as(ours)] < 0).any()) != relu


def test_order_does_not_matter():
    """hostsim: neither of threads nor of blocks."""
    module = backends.hostsim_module()
    for name, dtype in (
        ("planes, several strips in a block", torch.float16),
        ("odd sizes, streamed, one row of b", torch.bfloat16),
    ):
        fa, fb = pair(SHAPES[name], dtype)
        results = []
        try:
            for order in (("forward", 0), ("reverse", 0), ("random", 1)):
                module.set_order(*order)
                results.append(_on_hostsim(fa, fb))
        finally:
            module.set_order("forward", 0)
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_launches():
    """Planes of halves take one launch, and one for norms; all else is packed by one."""
    module = backends.hostsim_module()
    fa, fb = pair((2, 24, 4, 6, 8, 8), torch.bfloat16)
    for features, normalize, launches in (
        ((fa, fb), False, 1),
        ((fa, fb), True, 2),
        (channels_last(fa, fb), False, 2),
        ((fa[..., 1:], fb), True, 2),
        ((fa, fb[..., :7].contiguous()), True, 2),
    ):
        module.counters(True)
        _on_hostsim(*features, normalize)
        assert module.counters(True)["launches"] == launches


# Backward: shape, bytes of the gated gradient that exist at a time (0: the default; on a GPU always). Runs of rows are
# of 256.
BACKWARD = {
    "one tile, rows of 128 bytes": ((1, 40, 9, 7, 8, 8), 0),
    "odd sizes": ((3, 72, 9, 17, 11, 13), 0),
    "rows aligned to 4 bytes": ((2, 33, 10, 12, 9, 14), 0),
    "several tiles of either side": ((2, 136, 20, 17, 28, 12), 0),
    "groups of images": ((3, 24, 16, 17, 12, 10), 2 << 18),
    "runs of rows": ((2, 24, 30, 19, 15, 20), 1),
    "partial sums": ((1, 16, 33, 32, 41, 29), 0),
    "partial sums of runs of rows": ((1, 8, 20, 15, 33, 32), 1),
}
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 6e-4}  # of norms: the rounding of features of norm 1, and of results


def backward(backend, grad, fa, fb, corr, normalize, need=(True, True), chunk_bytes=0, portable=False):
    """correlation_backward of a backend, with relu where there is a `corr`."""
    tensors = (grad, fa, fb, corr)
    if backend is _on_cuda:
        tensors = [None if t is None else t.cuda() for t in tensors]
        found = torch.ops.cosegflow.correlation_backward(*tensors, normalize, corr is not None, False, *need, portable)
        return [g.cpu() if n else None for g, n in zip(found, need, strict=True)]
    arrays = [None if t is None else backends.to_numpy(t) for t in tensors]
    options = {"portable": portable, "chunk_bytes": chunk_bytes}
    choices = (normalize, corr is not None, False, need)
    found = backends.hostsim_module().correlation_backward(*arrays, *choices, **options)
    return [None if g is None else backends.to_torch(g, fa.dtype) for g in found]


def backward_problem(shape, dtype, relu):
    fa, fb = pair(shape, dtype)
    sizes = (shape[0], *shape[2:])
    corr = torch.randn(sizes).clamp(min=0).to(dtype) if relu else None  # any volume may gate
    return torch.randn(sizes).to(dtype), fa, fb, corr


def exact_gradients(grad, fa, fb, corr, normalize):
    leaves = [f.double().requires_grad_() for f in (fa, fb)]
    gated = grad.double() if corr is None else torch.where(corr > 0, grad.double(), 0.0)
    return torch.autograd.grad(reference.correlation(*leaves, normalize, False), leaves, gated)


def assert_gradients(ours, exact):
    for name, got, want in zip("ab", ours, exact, strict=True):
        error = float((got.double() - want).norm() / want.norm())
        assert error <= TOLERANCE[got.dtype], f"{name}: {error:.2e}"


@pytest.mark.parametrize("name", BACKWARD)
def test_gradients(run, name):
    shape, chunk_bytes = BACKWARD[name]
    for dtype, normalize, relu in (
        (torch.bfloat16, True, False),
        (torch.float16, True, True),
        (torch.bfloat16, False, True),
        (torch.float16, False, False),
    ):
        problem = backward_problem(shape, dtype, relu)
        ours = backward(run, *problem, normalize, chunk_bytes=chunk_bytes)
        assert_gradients(ours, exact_gradients(*problem, normalize))


def test_gradient_of_a_slice(run):
    """A volume's gradient that is not aligned to 16 bytes, or only to 4, is copied; a gate that is not, too."""
    shape = (2, 24, 5, 7, 8, 9)
    _, fa, fb, _ = backward_problem(shape, torch.float16, False)
    count = 2 * 5 * 7 * 72
    for offset, gate_offset in ((1, None), (2, None), (0, 1), (8, 2)):
        flat, gates = torch.randn(count + 8).half(), torch.randn(count + 8).half()
        grad = flat[offset : offset + count].view(2, 5, 7, 8, 9)
        corr = None if gate_offset is None else gates[gate_offset : gate_offset + count].view(2, 5, 7, 8, 9)
        ours = backward(run, grad, fa, fb, corr, True)
        assert_gradients(ours, exact_gradients(grad, fa, fb, corr, True))


def test_nan_in_the_gate_passes(run):
    """As relu keeps a NaN; what is clipped has no part in the gradients, whatever its own gradient is."""
    for shape in ((1, 24, 9, 17, 11, 13), (1, 24, 9, 17, 12, 14)):
        grad, fa, fb, corr = backward_problem(shape, torch.bfloat16, True)
        corr[0, 1, 2, 3, 4] = float("nan")
        corr[0, 5, 6], grad[0, 5, 6] = 0, float("inf")
        ours = backward(run, grad, fa, fb, corr, True)
        exact = exact_gradients(grad.nan_to_num(0, 0, 0), fa, fb, corr.nan_to_num(1.0), True)
        assert_gradients(ours, exact)


def test_one_side(run):
    problem = backward_problem((2, 40, 9, 7, 8, 8), torch.float16, False)
    both = backward(run, *problem, True)
    for need in ((True, False), (False, True)):
        for one, wanted, of_both in zip(backward(run, *problem, True, need), need, both, strict=True):
            assert torch.equal(one, of_both) if wanted else one is None


def test_backward_order_does_not_matter():
    """hostsim: neither of threads nor of blocks."""
    module = backends.hostsim_module()
    for name, relu in (("partial sums", False), ("partial sums of runs of rows", True), ("groups of images", True)):
        shape, chunk_bytes = BACKWARD[name]
        problem = backward_problem(shape, torch.bfloat16, relu)
        results = []
        try:
            for order in (("forward", 0), ("reverse", 0), ("random", 1)):
                module.set_order(*order)
                results.append(backward(_on_hostsim, *problem, True, chunk_bytes=chunk_bytes))
        finally:
            module.set_order("forward", 0)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_backward_launches():
    """Packing, rows of norm 1 of either side, the products, and the raster of either side; the gate where there is one.

    Each run of rows of an image takes a gate and products, and one launch that adds partial sums where there are any.
    """
    module = backends.hostsim_module()
    for name, normalize, relu, launches in (
        ("one tile, rows of 128 bytes", False, False, 4),
        ("one tile, rows of 128 bytes", True, False, 6),
        ("one tile, rows of 128 bytes", True, True, 7),
        ("odd sizes", True, False, 7),
        ("groups of images", True, True, 1 + 2 * 6),
        ("runs of rows", True, True, 1 + 2 * (4 + 3 * 2)),
        ("partial sums of runs of rows", True, True, 1 + 4 + 2 * 3),
    ):
        shape, chunk_bytes = BACKWARD[name]
        problem = backward_problem(shape, torch.bfloat16, relu)
        module.counters(True)
        backward(_on_hostsim, *problem, normalize, chunk_bytes=chunk_bytes)
        assert module.counters(True)["launches"] == launches, name


SAYS = """
import runpy, numpy as np
sim = runpy.run_path({build!r})["load"]()
for dtype, options in ((np.float16, {{}}), (np.float16, {{"portable": True}}), (np.float16, {{"simple": True}}),
                       (np.float32, {{}}), (np.float32, {{"precision": 1}}), (np.float64, {{}})):
    f = np.ones((1, 8, 2, 3), dtype)
    sim.correlation(f, f, **options)
    if "precision" not in options:
        portable, simple = (name in options for name in ("portable", "simple"))
        grad, need = np.ones((1, 2, 3, 2, 3), dtype), (True, True)
        sim.correlation_backward(grad, f, f, None, True, False, simple, need, portable)
"""


def test_log_says_which_path_and_why():
    done = subprocess.run(
        [sys.executable, "-c", SAYS.format(build=str(BUILD))],
        env={**os.environ, "COSEGFLOW_LOG": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("cosegflow: correlation")] == [
        "cosegflow: correlation: Hopper kernels (wgmma, TMA)",
        "cosegflow: correlation backward: Hopper kernels (wgmma, TMA)",
        "cosegflow: correlation: portable kernels (mma.sync): the portable kernels were asked for",
        "cosegflow: correlation backward: portable kernels (mma.sync): the portable kernels were asked for",
        "cosegflow: correlation: simple kernels: the simple kernels were asked for",
        "cosegflow: correlation backward: simple kernels: the simple kernels were asked for",
        'cosegflow: correlation: portable kernels (FMA): float32 at precision "highest" takes multiply-adds, as '
        "accurate as float32",
        "cosegflow: correlation backward: portable kernels (FMA): gradients of float32 features are formed by "
        "multiply-adds, as accurate as float32",
        "cosegflow: correlation: portable kernels (FMA): tensor cores of Hopper do not multiply float64 into these "
        "tiles",
        "cosegflow: correlation backward: portable kernels (FMA): tensor cores of Hopper do not multiply float64 into "
        "these tiles",
    ], done.stderr

"""match's backward on Hopper: chunks, partial sums and shapes that test_match.py does not reach.

hostsim stands for a GPU of compute capability 9.0 with 6 multiprocessors. On a GPU the same cases run there.
"""

import backends
import numpy as np
import pytest
import torch
from test_match import features, masks, poison_excluded

from cosegflow import reference

# (B, C, Ha, Wa, Hb, Wb), chunk bytes (0: the default). ds has rows of whole 256 and columns of whole 128; tiles of the
# products are 256 x 128, their slabs 64 deep.
CASES = {
    "one tile": ((1, 24, 5, 7, 6, 9), 0),
    "several tiles, images and channel tiles": ((3, 136, 20, 17, 25, 12), 0),
    "an image at a time": ((3, 40, 12, 11, 13, 10), 1 << 17),
    "runs of rows, the last one short": ((2, 40, 30, 21, 21, 16), 1 << 18),
    "runs of rows, many channels": ((1, 264, 24, 24, 9, 10), 1),
    "partial sums": ((1, 16, 16, 16, 40, 41), 0),
    "odd channels": ((2, 33, 9, 10, 11, 12), 0),
}
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 6e-4}  # of norms: about the rounding of ds and that of the result


@pytest.fixture(params=["hostsim", "cuda"])
def backend(request):
    if request.param == "cuda" and (not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0)):
        pytest.skip("no GPU of compute capability 9.0: hostsim runs the same kernels")
    return backends.get(request.param)


def problem(shape, kind, dtype, scale=1.0):
    mask_a, mask_b = masks(kind, shape[0], *shape[2:])
    fa, fb = features(*shape, dtype)
    poison_excluded(fa, fb, mask_a, mask_b)
    grads = torch.randn(shape[0], 2, *shape[2:4]) * scale, torch.randn(shape[0], *shape[2:4]) * scale
    beta = torch.linspace(8.0, 16.0, shape[0])
    return fa, fb, mask_a, mask_b, beta, grads


def gradients(match, fa, fb, mask_a, mask_b, beta, grads, dtype, **options):
    """Of fa, fb, beta and (where there is one) mask_b, in float64 on the CPU."""
    leaves = [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in (fa, fb)]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves.append(beta.to(wide).requires_grad_())
    weight = None if mask_b is None else mask_b.to(wide).requires_grad_()
    flow, lse = match(leaves[0], leaves[1], mask_a, weight, leaves[2], **options)[:2]
    loss = (flow * grads[0].to(flow)).sum() + (torch.where(torch.isfinite(lse), lse, 0.0) * grads[1].to(lse)).sum()
    found = torch.autograd.grad(loss, leaves + ([] if weight is None else [weight]))
    return dict(zip(("fa", "fb", "beta", "mask_b"), (g.double().cpu() for g in found), strict=False))


def check(ours, exact, dtype):
    assert set(ours) == set(exact)
    for name, want in exact.items():
        got = ours[name]
        assert bool(torch.isfinite(got).all()), name
        assert bool((got[want == 0] == 0).all()), f"{name}: not 0 where nothing matches"
        error = (got - want).norm() / want.norm().clamp(min=1e-30)
        limit = TOLERANCE[dtype] if name in ("fa", "fb") else 1e-4
        assert error <= limit, f"{name}: {error:.2e} > {limit:.0e}"


def moved(backend, fa, fb, mask_a, mask_b, beta, grads):
    """To the backend's device."""
    device = "cuda" if backend.name == "cuda" else "cpu"
    to = [None if t is None else t.to(device) for t in (fa, fb, mask_a, mask_b, beta)]
    return (*to, tuple(g.to(device) for g in grads))


@pytest.mark.parametrize("kind", ["none", "holes"])
@pytest.mark.parametrize("name", CASES)
def test_gradients(backend, name, kind):
    shape, chunk_bytes = CASES[name]
    options = {} if backend.name == "cuda" else {"chunk_bytes": chunk_bytes}
    for dtype in (torch.bfloat16, torch.float16):
        args = problem(shape, kind, dtype)
        exact = gradients(reference.match, *(t if t is None else torch.nan_to_num(t, 0, 0, 0) for t in args[:2]),
                          *args[2:], torch.float64)  # fmt: skip
        ours = gradients(backend.match, *moved(backend, *args), None, **options)
        check(ours, exact, dtype)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_range_of_float16(backend, scale):
    """ds of float16 is scaled per image, so gradients that float16 holds are as good whatever their size is."""
    args = list(problem((2, 24, 8, 9, 7, 11), "none", torch.float16, scale))
    args[5][0][1] *= 1e-3  # the other image
    exact = gradients(reference.match, *args, torch.float64)
    ours = gradients(backend.match, *moved(backend, *args), None)
    for image in range(2):
        for name in ("fa", "fb"):
            got, want = ours[name][image], exact[name][image]
            held = (want.abs() > 6.2e-5) & (want.abs() < 6e4)  # neither subnormal nor too large
            if not bool(held.any()):
                continue
            error = (got - want)[held].norm() / want[held].norm()
            assert error <= 6e-4, f"{name}, image {image}: {error:.2e}"


def test_no_target_and_no_source(backend):
    """Gradients are 0 where an image has no target, or no source, and the other images' are as ever."""
    fa, fb, _, _, beta, grads = problem((3, 16, 9, 8, 7, 10), "none", torch.bfloat16)
    mask_a, mask_b = torch.ones(3, 9, 8), torch.ones(3, 7, 10)
    mask_a[0] = 0
    mask_b[1] = 0
    args = (fa, fb, mask_a, mask_b, beta, grads)
    ours = gradients(backend.match, *moved(backend, *args), None)
    check(ours, gradients(reference.match, *args, torch.float64), torch.bfloat16)
    assert not bool(ours["fa"][:2].any()) and not bool(ours["fb"][:2].any()) and bool(ours["fa"][2].any())


@pytest.mark.parametrize("name", ["runs of rows, the last one short", "partial sums"])
def test_bits_do_not_depend_on_the_order(name):
    """hostsim: of threads, and of blocks: no sum is in the order of who comes first."""
    module, hostsim = backends.hostsim_module(), backends.get("hostsim")
    shape, chunk_bytes = CASES[name]
    results = []
    try:
        for order in (("forward", 0), ("reverse", 0), ("random", 1)):
            module.set_order(*order)
            torch.manual_seed(0)
            args = problem(shape, "holes", torch.float16)
            results.append(gradients(hostsim.match, *args, None, chunk_bytes=chunk_bytes))
    finally:
        module.set_order("forward", 0)
    for other in results[1:]:
        for key, value in results[0].items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(("dtype", "launches"), [(np.float16, 9), (np.uint16, 6)])
def test_launches(dtype, launches):
    """Packing, rows, ds, products, and the raster of each side; float16 has a scale and features of norm 1 besides."""
    module = backends.hostsim_module()
    f = np.ones((2, 16, 6, 7), np.float16) if dtype == np.float16 else np.full((2, 16, 6, 7), 0x3F80, np.uint16)
    one = np.ones(2, np.float32)
    flow, lse, *_ = module.match(f, f, None, None, one)
    grad = np.ones((2, 2, 6, 7), np.float32)
    module.counters(True)
    module.match_backward(f, f, None, None, one, flow, lse, grad, None, True, False, [True, True, False, False])
    assert module.counters(True)["launches"] == launches

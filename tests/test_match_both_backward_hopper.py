"""match_both's backward on Hopper: chunks, sums and shapes that test_match_both.py does not reach.

As test_match_backward_hopper.py: hostsim has 6 multiprocessors; on a GPU the same cases run there.
"""

import backends
import numpy as np
import pytest
import torch
from test_match import NAN, features, poison_excluded
from test_match_backward_hopper import CASES, TOLERANCE
from test_match_both import both_masks, by_reference

NAMES = ("fa", "fb", "beta", "mask_a", "mask_b")


@pytest.fixture(params=["hostsim", "cuda"])
def backend(request):
    if request.param == "cuda" and (not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0)):
        pytest.skip("no GPU of compute capability 9.0: hostsim runs the same kernels")
    return backends.get(request.param)


def problem(shape, kind, dtype, scale=1.0):
    """Features, masks, beta, and incoming gradients of flow_ab, lse_ab, flow_ba and lse_ba."""
    batch, _, ha, wa, hb, wb = shape
    mask_a, mask_b = both_masks(kind, batch, ha, wa, hb, wb)
    fa, fb = features(*shape, dtype)
    poison_excluded(fa, fb, mask_a, mask_b)
    sizes = (batch, 2, ha, wa), (batch, ha, wa), (batch, 2, hb, wb), (batch, hb, wb)
    return fa, fb, mask_a, mask_b, torch.linspace(8.0, 16.0, batch), [torch.randn(s) * scale for s in sizes]


def gradients(match_both, fa, fb, mask_a, mask_b, beta, grads, wanted=NAMES, exact=False, **options):
    """Name -> gradient, in float64."""
    inputs = {"fa": fa, "fb": fb, "beta": beta, "mask_a": mask_a, "mask_b": mask_b}
    inputs = {k: t if t is None or k[0] == "f" else t.float() for k, t in inputs.items()}
    wanted = [name for name in wanted if inputs[name] is not None]
    if exact:
        inputs = {k: None if t is None else torch.nan_to_num(t.double(), 0, 0, 0) for k, t in inputs.items()}
    for name in wanted:
        inputs[name] = inputs[name].detach().clone().requires_grad_()
    arguments = (inputs[k] for k in ("fa", "fb", "mask_a", "mask_b", "beta"))
    outputs = [o for i, o in enumerate(match_both(*arguments, **options)) if i % 3 < 2]
    loss = sum((torch.where(torch.isfinite(o), o, 0.0) * g.to(o)).sum() for o, g in zip(outputs, grads, strict=True))
    return dict(zip(wanted, (g.double() for g in torch.autograd.grad(loss, [inputs[k] for k in wanted])), strict=True))


def check(ours, exact, dtype):
    assert set(ours) == set(exact)
    for name, want in exact.items():
        got = ours[name]
        assert bool(torch.isfinite(got).all()), name
        assert bool((got[want == 0] == 0).all()), f"{name}: not 0 where nothing matches"
        error = (got - want).norm() / want.norm().clamp(min=1e-30)
        limit = TOLERANCE[dtype] if name in ("fa", "fb") else 1e-4
        assert error <= limit, f"{name}: {error:.2e} > {limit:.0e}"


def compare(backend, shape, kind, dtype, wanted=NAMES, chunk_bytes=0):
    args = problem(shape, kind, dtype)
    options = {"chunk_bytes": chunk_bytes} if backend.name == "hostsim" else {}
    ours = gradients(backend.match_both, *args, wanted, **options)
    check(ours, gradients(by_reference, *args, wanted, exact=True), dtype)


@pytest.mark.parametrize("name", CASES)
def test_gradients(backend, name):
    """All of them, with sums; and those of features alone, without."""
    shape, chunk_bytes = CASES[name]
    compare(backend, shape, "holes", torch.bfloat16, NAMES, chunk_bytes)
    compare(backend, shape, "none", torch.float16, ("fa", "fb"), chunk_bytes)


@pytest.mark.parametrize("kind", ["only a", "only b", "disjoint", "zero a", "soft"])
def test_masks(backend, kind):
    for wanted in (NAMES, ("fa", "fb")):
        compare(backend, (2, 24, 17, 19, 20, 13), kind, torch.float16, wanted)


@pytest.mark.parametrize("wanted", [("fa",), ("fb",), ("mask_a",), ("mask_b", "fa"), ("beta",)], ids=str)
def test_some_gradients(backend, wanted):
    compare(backend, (2, 40, 19, 31, 17, 11), "soft", torch.bfloat16, wanted, 1 << 17)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_range_of_float16(backend, scale):
    """ds of float16 is scaled per image, so gradients that float16 holds are as good whatever their size is."""
    args = problem((2, 24, 8, 9, 7, 11), "none", torch.float16, scale)
    for grad in args[-1]:
        grad[1] *= 1e-3  # the other image
    exact, ours = gradients(by_reference, *args, exact=True), gradients(backend.match_both, *args)
    for image in range(2):
        for name in ("fa", "fb"):
            got, want = ours[name][image], exact[name][image]
            held = (want.abs() > 6.2e-5) & (want.abs() < 6e4)  # neither subnormal nor too large
            if bool(held.any()):
                error = (got - want)[held].norm() / want[held].norm()
                assert error <= 6e-4, f"{name}, image {image}: {error:.2e}"


def test_incoming_gradients_that_do_not_count(backend):
    """Where a pixel matches nothing what comes in is not read, NaN or not, in rows and in columns."""
    fa, fb, _, _, beta, grads = problem((3, 16, 9, 8, 7, 10), "none", torch.bfloat16)
    mask_a, mask_b = torch.ones(3, 9, 8), torch.ones(3, 7, 10)
    mask_a[0], mask_b[1] = 0, 0
    args = (fa, fb, mask_a, mask_b, beta)
    spoilt = [torch.cat((g[:2] * NAN, g[2:])) for g in grads]
    ours = gradients(backend.match_both, *args, spoilt)
    for name in ("fa", "fb", "mask_a", "mask_b"):
        assert not bool(ours[name][:2].any()) and bool(ours[name][2].any()), name
    check(ours, gradients(by_reference, *args, grads, exact=True), torch.bfloat16)


@pytest.mark.parametrize("name", ["runs of rows, the last one short", "partial sums"])
def test_bits_do_not_depend_on_the_order(name):
    """hostsim: of threads, and of blocks: no sum is in the order of who comes first."""
    module, hostsim = backends.hostsim_module(), backends.get("hostsim")
    shape, chunk_bytes = CASES[name]
    args, results = problem(shape, "holes", torch.float16), []
    try:
        for order in (("forward", 0), ("reverse", 0), ("random", 1)):
            module.set_order(*order)
            results.append(gradients(hostsim.match_both, *args, chunk_bytes=chunk_bytes))
    finally:
        module.set_order("forward", 0)
    for other in results[1:]:
        for key, value in results[0].items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(("need", "launches"), [
    ((True, True, False, False, False), 6),  # packing, sources; ds, products, and the raster of each side
    ((True, True, True, True, True), 12),  # sums of rows, of columns and of tiles; what each mask and beta get of them
])  # fmt: skip
def test_launches(need, launches):
    module = backends.hostsim_module()
    f, mask, one = np.full((2, 16, 6, 7), 0x3F80, np.uint16), np.ones((2, 6, 7), np.float32), np.ones(2, np.float32)
    outputs = module.match_both(f, f, mask, mask, one)
    saved = [outputs[i] for i in (0, 1, 3, 4)]
    module.counters(True)
    module.match_both_backward(f, f, mask, mask, one, saved, [np.ones_like(s) for s in saved], True, False, need)
    assert module.counters(True)["launches"] == launches

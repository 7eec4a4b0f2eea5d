"""transfer's backward on Hopper: chunks, launches for many values and gradients that test_transfer.py does not reach.

As test_match_backward_hopper.py: hostsim has 6 multiprocessors; on a GPU the same cases run there.
"""

from functools import partial

import backends
import numpy as np
import pytest
import torch
from backends_transfer import transfer
from test_match import NAN, features, masks, poison_excluded
from test_match_backward_hopper import CASES, TOLERANCE

from cosegflow import reference

NAMES = ("fa", "fb", "values", "beta", "mask_b")


@pytest.fixture(params=["hostsim", "cuda"])
def backend(request):
    if request.param == "cuda" and (not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0)):
        pytest.skip("no GPU of compute capability 9.0: hostsim runs the same kernels")
    return backends.get(request.param)


def problem(shape, channels, kind, dtype, scale=1.0, values_dtype=torch.float32):
    mask_a, mask_b = masks(kind, shape[0], *shape[2:])
    fa, fb = features(*shape, dtype)
    poison_excluded(fa, fb, mask_a, mask_b)
    values = torch.randn(shape[0], channels, *shape[4:]).to(values_dtype)
    if mask_b is not None:
        values.masked_fill_(~(mask_b > 0).unsqueeze(1), NAN)
    grad = torch.randn(shape[0], channels, *shape[2:4]) * scale
    return fa, fb, values, mask_a, mask_b, torch.linspace(8.0, 16.0, shape[0]), grad


def gradients(function, fa, fb, values, mask_a, mask_b, beta, grad, wanted=NAMES, exact=False, **options):
    """Name -> gradient, in float64."""
    weight = None if mask_b is None else mask_b.float()
    inputs = {"fa": fa, "fb": fb, "values": values, "beta": beta, "mask_b": weight}
    wanted = [name for name in wanted if inputs[name] is not None]
    if exact:
        inputs = {k: None if t is None else torch.nan_to_num(t.double(), 0, 0, 0) for k, t in inputs.items()}
    for name in wanted:
        inputs[name] = inputs[name].detach().clone().requires_grad_()
    out = function(inputs["fa"], inputs["fb"], inputs["values"], mask_a, inputs["mask_b"], inputs["beta"], **options)
    out = out[0] if isinstance(out, tuple) else out
    found = torch.autograd.grad(out, [inputs[name] for name in wanted], grad.to(out))
    return dict(zip(wanted, (g.double() for g in found), strict=True))


def check(ours, exact, dtype, values_dtype=torch.float32):
    assert set(ours) == set(exact)
    limits = {"fa": TOLERANCE[dtype], "fb": TOLERANCE[dtype], "beta": 1e-4, "mask_b": 1e-4}
    limits["values"] = 1e-5 if values_dtype == torch.float32 else TOLERANCE[values_dtype]
    for name, want in exact.items():
        got = ours[name]
        assert bool(torch.isfinite(got).all()), name
        assert bool((got[want == 0] == 0).all()), f"{name}: not 0 where nothing matches"
        error = (got - want).norm() / want.norm().clamp(min=1e-30)
        assert error <= limits[name], f"{name}: {error:.2e} > {limits[name]:.0e}"


def compare(backend, shape, channels, kind, dtype, wanted=NAMES, chunk_bytes=0, values_dtype=torch.float32):
    args = problem(shape, channels, kind, dtype, values_dtype=values_dtype)
    exact = gradients(reference.transfer, *args, wanted, exact=True)
    options = {"chunk_bytes": chunk_bytes} if backend.name == "hostsim" else {}
    ours = gradients(partial(transfer, backend), *args, wanted, **options)
    check(ours, exact, dtype, values_dtype)


@pytest.mark.parametrize("name", CASES)
def test_gradients(backend, name):
    """All of them, with sums; and those of features alone, which take up to 8 values a launch."""
    shape, chunk_bytes = CASES[name]
    compare(backend, shape, 3, "holes", torch.bfloat16, NAMES, chunk_bytes)
    compare(backend, shape, 7, "none", torch.float16, ("fa", "fb"), chunk_bytes)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8, 9, 18])
def test_value_channels(backend, channels):
    """Planes that are not full, and launches that add to what others have left, with sums and without."""
    dtype = torch.float16 if channels % 2 else torch.bfloat16
    for wanted in (NAMES, ("fa", "fb", "values")):
        compare(backend, (2, 24, 15, 22, 13, 17), channels, "holes", dtype, wanted, 1 << 17)


@pytest.mark.parametrize("wanted", [("values",), ("fa",), ("fb", "values"), ("beta",), ("mask_b", "values")], ids=str)
def test_some_gradients(backend, wanted):
    for values_dtype in (torch.bfloat16, torch.float16):
        compare(backend, (2, 40, 9, 31, 17, 11), 3, "holes", torch.bfloat16, wanted, 0, values_dtype)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_range_of_float16(backend, scale):
    """ds of float16 is scaled per image, so gradients that float16 holds are as good whatever their size is."""
    args = problem((2, 24, 8, 9, 7, 11), 10, "none", torch.float16, scale)
    args[-1][1] *= 1e-3  # the other image
    exact = gradients(reference.transfer, *args, exact=True)
    ours = gradients(partial(transfer, backend), *args)
    for image in range(2):
        for name in ("fa", "fb"):
            got, want = ours[name][image], exact[name][image]
            held = (want.abs() > 6.2e-5) & (want.abs() < 6e4)  # neither subnormal nor too large
            if bool(held.any()):
                error = (got - want)[held].norm() / want[held].norm()
                assert error <= 8e-4, f"{name}, image {image}: {error:.2e}"


def test_no_target_and_no_source(backend):
    """Gradients are 0 where an image has no target, or no source, and the other images' are as ever."""
    fa, fb, values, _, _, beta, grad = problem((3, 16, 9, 8, 7, 10), 3, "none", torch.bfloat16)
    mask_a, mask_b = torch.ones(3, 9, 8), torch.ones(3, 7, 10)
    mask_a[0], mask_b[1] = 0, 0
    ours = gradients(partial(transfer, backend), fa, fb, values, mask_a, mask_b, beta,
                     torch.cat((grad[:1] * NAN, grad[1:2] * NAN, grad[2:])))  # fmt: skip
    check(ours, gradients(reference.transfer, fa, fb, values, mask_a, mask_b, beta, grad, exact=True), torch.bfloat16)
    for name in ("fa", "fb", "values"):
        assert not bool(ours[name][:2].any()) and bool(ours[name][2].any()), name


@pytest.mark.parametrize("beta", [3e38, -3e38, 1e21, 3e12])
def test_huge_beta(backend, beta):
    """p is at most 1 however a logit of 1e38 is rounded: nothing overflows."""
    fa, fb = torch.ones(1, 1, 1, 300).half(), torch.full((1, 1, 1, 270), -1.1).half()
    fb[..., 7] = 1.0
    values, one = torch.randn(1, 3, 1, 270), torch.tensor(beta)
    for normalize in (False, True):
        found = gradients(partial(transfer, backend), fa, fb, values, None, None, one.reshape(1),
                          torch.ones(1, 3, 1, 300), ("values", "beta"), normalize=normalize)  # fmt: skip
        assert all(bool(torch.isfinite(g).all()) for g in found.values())
        if beta > 0:
            assert (found["values"][0, :, 0, 7] - 300).abs().max() <= 1e-2
        else:
            assert bool((found["values"][0, :, 0, 7] == 0).all())


@pytest.mark.parametrize("name", ["runs of rows, the last one short", "partial sums"])
def test_bits_do_not_depend_on_the_order(name):
    """hostsim: of threads, and of blocks: no sum is in the order of who comes first."""
    module, hostsim = backends.hostsim_module(), backends.get("hostsim")
    shape, chunk_bytes = CASES[name]
    args, results = problem(shape, 5, "holes", torch.float16), []
    try:
        for order in (("forward", 0), ("reverse", 0), ("random", 1)):
            module.set_order(*order)
            results.append(gradients(lambda *a: transfer(hostsim, *a, chunk_bytes=chunk_bytes), *args))
    finally:
        module.set_order("forward", 0)
    for other in results[1:]:
        for key, value in results[0].items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize(("channels", "need", "launches"), [
    (8, (True, True, False, False, False), 7),  # packing, values, rows; ds, products, and the raster of each side
    (8, (True, True, True, False, False), 8),
    (11, (True, True, True, False, False), 10),
    (8, (False, False, True, False, False), 4),
    (4, (True, True, False, True, True), 11),
])  # fmt: skip
def test_launches(channels, need, launches):
    module = backends.hostsim_module()
    f = np.full((2, 16, 6, 7), 0x3F80, np.uint16)
    values, grad, one = np.ones((2, channels, 6, 7), np.float32), np.ones((2, channels, 6, 7), np.float32), np.ones(2)
    mask = np.ones((2, 6, 7), np.float32)
    fixed = (f, f, values, None, mask, one.astype(np.float32))
    out, lse = module.transfer(*fixed)
    module.counters(True)
    module.transfer_backward(grad, *fixed, out, lse, True, False, need)
    assert module.counters(True)["launches"] == launches

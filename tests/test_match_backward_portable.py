"""match's portable backward of halves, whose ds are halves too: chunks, parts of sums, the range of float16."""

import backends
import pytest
import torch
from test_match_backward_hopper import TOLERANCE, check, gradients, moved, problem

from cosegflow import reference

# (B, C, Ha, Wa, Hb, Wb), chunk bytes (0: the default). Tiles are 128 x 128; a part of a sum has 512 terms at least.
CASES = {
    "one tile": ((1, 24, 5, 7, 6, 9), 0),
    "rows of an image at a time, channels of two tiles": ((3, 136, 12, 11, 13, 10), 1 << 16),
    "runs of rows, their sums in parts": ((1, 40, 20, 20, 33, 40), 1 << 18),
    "odd channels, sums of both sides in parts": ((2, 33, 33, 32, 33, 33), 0),
}


@pytest.fixture(params=["hostsim", "cuda"])
def backend(request):
    return backends.get(request.param)


@pytest.mark.parametrize("kind", ["none", "holes"])
@pytest.mark.parametrize("name", CASES)
def test_gradients(backend, name, kind):
    shape, chunk_bytes = CASES[name]
    options = {} if backend.name == "cuda" else {"chunk_bytes": chunk_bytes}
    for dtype in TOLERANCE:
        args = problem(shape, kind, dtype)
        exact = gradients(reference.match, *(t if t is None else torch.nan_to_num(t, 0, 0, 0) for t in args[:2]),
                          *args[2:], torch.float64)  # fmt: skip
        ours = gradients(backend.match, *moved(backend, *args), None, portable=True, **options)
        check(ours, exact, dtype)


@pytest.mark.parametrize("scale, norm", [(1e-6, 2.0**-8), (1e4, 2.0**8)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_range(backend, dtype, scale, norm):
    """ds of float16 is scaled per image: gradients of any size are as good, where float16 holds the results."""
    args = list(problem((2, 24, 8, 9, 7, 11), "soft", dtype, scale))
    args[:2] = [f * norm for f in args[:2]]
    args[5][0][1] *= 1e-3  # the other image
    exact = gradients(reference.match, *args, torch.float64)
    ours = gradients(backend.match, *moved(backend, *args), None, portable=True)
    for name, want in exact.items():
        features = name in ("fa", "fb")
        subnormal = 6.2e-5 if features and dtype == torch.float16 else 0.0  # in the result
        limit = TOLERANCE[dtype] if features else 1e-4
        for image in range(2):
            held = want[image].abs() > subnormal
            assert image == 1 or bool(held.any()), name
            error = (ours[name][image] - want[image])[held].norm()
            assert error <= limit * want[image][held].norm(), f"{name}, image {image}"


def test_huge_beta(backend):
    """No NaN where the factor of ds would be infinite and dlogit 0."""
    for dtype in TOLERANCE:
        fa, fb = torch.full((1, 8, 1, 3), 0.01, dtype=dtype), torch.full((1, 8, 1, 5), -0.01, dtype=dtype)
        fb[..., 0] = 0.01
        grads = torch.full((1, 2, 1, 3), 1e-37), torch.zeros(1, 1, 3)
        args = (fa, fb, None, None, torch.tensor([3e38]), grads)
        for name, grad in gradients(backend.match, *moved(backend, *args), None, portable=True).items():
            assert not bool(grad.any()) or name == "beta", name
            assert bool(torch.isfinite(grad).all()), name


def test_bits_do_not_depend_on_the_order():
    """hostsim: of threads and blocks."""
    module, hostsim = backends.hostsim_module(), backends.get("hostsim")
    args = problem((2, 24, 12, 11, 9, 15), "holes", torch.float16)
    results = []
    try:
        for order in (("forward", 0), ("reverse", 0), ("random", 1)):
            module.set_order(*order)
            results.append(gradients(hostsim.match, *args, None, portable=True, chunk_bytes=1 << 15))
    finally:
        module.set_order("forward", 0)
    for other in results[1:]:
        for name, grad in results[0].items():
            assert torch.equal(grad, other[name]), name

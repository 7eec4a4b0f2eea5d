"""cycle_error on every backend, against reference.cycle_error in float64."""

import math

import pytest
import torch
from errors import EPS, assert_close
from test_warp import FLOATING, difficult_flow, on_the_grid_of

import cosegflow
from cosegflow import reference
from cosegflow.types import CycleError

# (B, Ha, Wa, Hb, Wb)
SHAPES = [(2, 7, 5, 4, 6), (1, 1, 1, 1, 1), (3, 1, 9, 5, 1), (1, 13, 11, 13, 11), (2, 40, 67, 23, 31)]


def difficult_pair(shape, dtype):
    """flow_ab inside and outside, on centres, on the border, non-finite, enormous; a few of flow_ba not finite."""
    batch, ha, wa, hb, wb = shape
    ab = on_the_grid_of(dtype, difficult_flow(batch, ha, wa))
    centre = torch.tensor([wb - wa, hb - ha]).reshape(2, 1, 1) / 2
    ab = torch.where(ab.abs() < 100, ab + centre.round(), ab)
    ba = on_the_grid_of(dtype, torch.randn(batch, 2, hb, wb, dtype=torch.float64) * 3)
    where = torch.rand(batch, 2, hb, wb) < 0.05
    ba[where] = torch.tensor([math.nan, math.inf, -math.inf])[torch.randint(3, (int(where.sum()),))].double()
    return ab.to(dtype), ba.to(dtype)


def plain(ab, ba):
    """The definition once more, from `warp` alone: right where no flow is non-finite."""
    back, valid = reference.warp(ba, ab)
    return torch.where(valid, torch.linalg.vector_norm(ab + back, dim=1), 0.0), valid


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("simple", [False, True], ids=["fast", "simple"])
def test_values_and_gradients(backend, simple, shape, dtype, deterministic):
    if simple and backend.name == "cpu":
        pytest.skip("the CPU has one kernel")
    acc = reference.accumulate_dtype(dtype)
    ab, ba = (f.requires_grad_() for f in difficult_pair(shape, dtype))
    ab64, ba64 = (f.detach().double().requires_grad_() for f in (ab, ba))
    error, valid = backend.cycle_error(ab, ba, deterministic, simple)
    expected = reference.cycle_error(ab64, ba64)
    assert error.dtype == acc and valid.dtype == torch.bool
    assert torch.equal(valid, expected.valid)
    assert_close(error, expected.error, 4 * EPS[acc], "error")
    assert torch.equal(error[~valid], torch.zeros_like(error[~valid]))

    grad = torch.randn(expected.error.shape).to(acc)
    grad[~valid] = torch.tensor([math.nan, math.inf])[torch.randint(2, (int((~valid).sum()),))].to(acc)
    error.backward(grad)
    expected.error.backward(grad.double())
    assert ab.grad.dtype == ba.grad.dtype == dtype
    assert torch.isfinite(ab64.grad).all() and torch.isfinite(ba64.grad).all()
    assert_close(ab.grad, ab64.grad, 4 * EPS[dtype] + 100 * EPS[acc], "grad flow_ab")
    assert_close(ba.grad, ba64.grad, 4 * EPS[dtype] + 100 * EPS[acc], "grad flow_ba")


def test_reference_is_the_definition():
    ab, ba = (torch.randn(2, 2, 9, 8, dtype=torch.float64) * 2).requires_grad_(), torch.randn(2, 2, 6, 7).double()
    ba.requires_grad_()
    (error, valid), (expected, expected_valid) = reference.cycle_error(ab, ba), plain(ab, ba)
    assert torch.equal(valid, expected_valid) and bool(valid.any()) and not bool(valid.all())
    assert_close(error, expected, 1e-14)
    weight = torch.randn_like(error)
    ours, theirs = (torch.autograd.grad((e * weight).sum(), (ab, ba)) for e in (error, expected))
    for a, e in zip(ours, theirs, strict=True):
        assert_close(a, e, 1e-13)


def test_by_hand(backend):
    """(0, 0) goes half a pixel to the right and comes back too far by the mean of two flows."""
    ab, ba = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 2)
    ab[0, 0, 0] = torch.tensor([0.5, 0.25, -1.0])
    ba[0, :, 0, 0], ba[0, :, 0, 1] = torch.tensor([2.5, 0.0]), torch.tensor([2.5, 8.0])
    error, valid = backend.cycle_error(ab, ba)
    assert torch.equal(valid, torch.tensor([[[True, False, True]]]))
    assert_close(error, torch.tensor([[[5.0, 0.0, math.hypot(1.5, 8.0)]]]), 1e-6)


def test_perfect_cycle_has_no_gradient(backend):
    """At length 0 the gradient is 0, not NaN, even where the incoming one is not finite."""
    shift = torch.tensor([1.0, -2.0]).reshape(1, 2, 1, 1).expand(1, 2, 6, 7)
    ab, ba = shift.clone().requires_grad_(), (-shift).clone().requires_grad_()
    error, valid = backend.cycle_error(ab, ba)
    assert torch.equal(error, torch.zeros(1, 6, 7))
    assert torch.equal(valid[0, 2:, :-1], torch.ones(4, 6, dtype=torch.bool)) and not valid[0, :2].any()
    for value in (1.0, math.nan, math.inf):
        grads = torch.autograd.grad(error, (ab, ba), torch.full_like(error, value), retain_graph=True)
        assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_length_neither_overflows_nor_underflows(backend, size):
    ba = (torch.tensor([3.0, 4.0]) * size).reshape(1, 2, 1, 1).clone().requires_grad_()
    error, valid = backend.cycle_error(torch.zeros(1, 2, 1, 1), ba)
    assert valid.all() and abs(error.item() / (5 * size) - 1) < 1e-6
    error.sum().backward()
    assert_close(ba.grad.flatten(), torch.tensor([0.6, 0.8]), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(backend, dtype):
    ab, ba = difficult_pair((2, 5, 7, 6, 10), dtype)
    expected = backend.cycle_error(ab, ba)
    spaced = torch.zeros(2, 4, 6, 20, dtype=dtype)[:, ::2, :, ::2]
    spaced.copy_(ba)
    last = torch.channels_last
    for a, b in ((ab.contiguous(memory_format=last), ba.contiguous(memory_format=last)), (ab, spaced)):
        got = backend.cycle_error(a, b)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    one = ba[:1].expand(2, -1, -1, -1)
    assert torch.equal(backend.cycle_error(ab, one)[0], backend.cycle_error(ab, one.contiguous())[0])


def test_gradient_of_one_flow_only(backend):
    ab, ba = difficult_pair((2, 40, 67, 23, 31), torch.float32)
    grad = torch.randn(2, 40, 67)
    both = [f.clone().requires_grad_() for f in (ab, ba)]
    expected = torch.autograd.grad(backend.cycle_error(*both, True)[0], both, grad)
    for i in range(2):
        flows = [ab.clone(), ba.clone()]
        flows[i].requires_grad_()
        (got,) = torch.autograd.grad(backend.cycle_error(*flows, True)[0], flows[i], grad)
        assert torch.equal(got, expected[i])


def test_cpu_does_not_depend_on_the_threads():
    ab, ba = difficult_pair((1, 150, 160, 140, 170), torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [f.clone().requires_grad_() for f in (ab, ba)]
            error = cosegflow.cycle_error(*leaves).error
            results.append((error, *torch.autograd.grad(error.sin().sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(r, e) for result in results for r, e in zip(result, results[0], strict=True))


def test_deterministic_gradient():
    """hostsim: the kernel that `use_deterministic_algorithms` selects gives the same bits in any thread order."""
    import backends

    module, backend = backends.hostsim_module(), backends.Hostsim()
    ab, ba = difficult_pair((2, 16, 16, 8, 8), torch.float32)
    grad = torch.randn(2, 16, 16)
    results = []
    try:
        for order, seed in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
            module.set_order(order, seed)
            leaves = [f.clone().requires_grad_() for f in (ab, ba)]
            error = backend.cycle_error(*leaves, True)[0]
            results.append((error, *torch.autograd.grad(error, leaves, grad)))
    finally:
        module.set_order("forward", 0)
    assert all(torch.equal(r, e) for result in results for r, e in zip(result, results[0], strict=True))


def test_empty_batch(backend):
    error, valid = backend.cycle_error(torch.zeros(0, 2, 3, 4), torch.zeros(0, 2, 5, 6))
    assert error.shape == valid.shape == (0, 3, 4)


def test_public_function():
    ab, ba = torch.randn(1, 2, 4, 5).half().requires_grad_(), torch.randn(1, 2, 6, 7, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        result = cosegflow.cycle_error(ab, ba)
    assert isinstance(result, CycleError) and result.error.dtype == torch.float64 and not result.valid.requires_grad
    assert torch.equal(result.error, cosegflow.cycle_error(ab.double(), ba).error)
    result.error.sum().backward()
    assert ab.grad is not None and ab.grad.dtype == torch.float16
    assert cosegflow.cycle_error(ab, ba.half()).error.dtype == torch.float32


@pytest.mark.parametrize(
    "ab, ba, message",
    [
        (torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5), r"flow_ab must have shape \(B, 2, Ha, Wa\), got \(1, 3, 4"),
        (torch.zeros(1, 2, 4, 5), torch.zeros(2, 2, 4, 5), r"flow_ba must have shape \(1, 2, Hb, Wb\), got \(2, 2, 4"),
        (torch.zeros(2, 4, 5), torch.zeros(1, 2, 4, 5), r"flow_ab must have shape \(B, 2, Ha, Wa\), got \(2, 4, 5\)"),
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 0, 5), r"flow_ba must have at least one .* row"),
        (torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5, device="meta"), r"flow_ba must be on the device of flow_ab"),
    ],
)
def test_wrong_values(ab, ba, message):
    with pytest.raises(ValueError, match=message):
        cosegflow.cycle_error(ab, ba)


def test_wrong_types():
    with pytest.raises(TypeError, match=r"flow_ba must be float16.* got torch.int64"):
        cosegflow.cycle_error(torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5, dtype=torch.long))
    with pytest.raises(TypeError, match=r"flow_ab must be a tensor, got list"):
        cosegflow.cycle_error([0.0], torch.zeros(1, 2, 4, 5))  # type: ignore[arg-type]

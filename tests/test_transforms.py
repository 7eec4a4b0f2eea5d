"""torch.func over every operation of the table in test_operators: right, and by the kernels where they can serve."""

import pytest
import torch
from errors import assert_close
from test_operators import TABLE, finite_sum
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from cosegflow import reference
from cosegflow.ops import _transforms

ALL = pytest.mark.parametrize("name", TABLE)


@pytest.fixture
def kernels_only(monkeypatch):
    """The plain-torch reference may not be called."""
    for name in (*TABLE, "match_indexed", "soft_argmax_indexed"):
        monkeypatch.setattr(reference, name, lambda *a, name=name: pytest.fail(f"reference.{name} was called"))


def scalar(name):
    """A curved function of all inputs."""
    call = TABLE[name][1]
    return lambda *inputs: finite_sum(tuple(r.sin() for r in as_tuple(call(*inputs))))


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def twice(inputs):
    """Two problems, stacked: the second with other values."""
    return tuple(torch.stack((i, (i.roll(1, 0) if i.dim() else i) * 0.9)) for i in inputs)


@ALL
def test_vmap(name, kernels_only):
    make, call, _ = TABLE[name]
    inputs = twice(make())
    mapped = as_tuple(vmap(call)(*inputs))
    for k in range(2):
        for m, e in zip(mapped, as_tuple(call(*(i[k] for i in inputs))), strict=True):
            assert_close(m[k], e, 1e-9)


@ALL
def test_vmap_over_other_dimensions_and_some_inputs(name, kernels_only):
    make, call, wanted = TABLE[name]
    inputs = make()
    for mapped in wanted:
        several = torch.stack((inputs[mapped], inputs[mapped] * 0.9), -1)
        dims = tuple(several.dim() - 1 if k == mapped else None for k in range(len(inputs)))
        arguments = tuple(several if k == mapped else i for k, i in enumerate(inputs))
        results = as_tuple(vmap(call, in_dims=dims)(*arguments))
        for k in range(2):
            expected = call(*(several[..., k] if j == mapped else i for j, i in enumerate(inputs)))
            for r, e in zip(results, as_tuple(expected), strict=True):
                assert_close(r[k], e, 1e-9)


def gradients(name, inputs):
    """By plain autograd."""
    wanted = TABLE[name][2]
    leaves = [i.detach().requires_grad_(k in wanted) for k, i in enumerate(inputs)]
    return torch.autograd.grad(scalar(name)(*leaves), [leaves[k] for k in wanted])


@ALL
def test_grad(name, kernels_only):
    make, _, wanted = TABLE[name]
    inputs = make()
    for got, want in zip(grad(scalar(name), wanted)(*inputs), gradients(name, inputs), strict=True):
        assert_close(got, want, 1e-9)


@ALL
def test_grad_in_vmap_and_vmap_in_grad(name, kernels_only):
    make, call, wanted = TABLE[name]
    inputs = twice(make())
    each = vmap(grad(scalar(name), wanted))(*inputs)
    for k in range(2):
        for got, want in zip(each, gradients(name, [i[k] for i in inputs]), strict=True):
            assert_close(got[k], want, 1e-9)

    def total(*inputs):
        return sum(finite_sum(tuple(r[k].sin() for r in as_tuple(vmap(call)(*inputs)))) for k in range(2))

    for got, want in zip(grad(total, wanted)(*inputs), each, strict=True):
        assert_close(got, want, 1e-9)


@ALL
def test_jacrev_and_vjp(name, kernels_only):
    make, _, wanted = TABLE[name]
    inputs = make()
    want = gradients(name, inputs)
    both = lambda *i: torch.stack((scalar(name)(*i), 2 * scalar(name)(*i)))  # noqa: E731
    for got, one in zip(jacrev(both, wanted)(*inputs), want, strict=True):
        assert_close(got[0], one, 1e-9)
        assert_close(got[1], 2 * one, 1e-9)
    value, pull = vjp(scalar(name), *inputs)
    pulled = pull(torch.ones_like(value))
    for k, one in zip(wanted, want, strict=True):
        assert_close(pulled[k], one, 1e-9)


@ALL
def test_forward_mode_and_second_order(name):
    """By the reference; against finite differences and reverse mode."""
    make, _, wanted = TABLE[name]
    inputs = make()
    tangents = tuple(torch.randn_like(i) if k in wanted else torch.zeros_like(i) for k, i in enumerate(inputs))
    _, tangent = jvp(scalar(name), inputs, tangents)
    want = sum((g * tangents[k]).sum() for g, k in zip(gradients(name, inputs), wanted, strict=True))
    assert_close(tangent, want, 1e-9)
    first = wanted[0]
    along = lambda x: scalar(name)(*inputs[:first], inputs[first] + x * tangents[first], *inputs[first + 1 :])  # noqa: E731
    zero = torch.zeros((), dtype=torch.float64)
    assert_close(grad(grad(along))(zero), hessian(along)(zero), 1e-8)
    slope = (grad(along)(zero + 1e-5) - grad(along)(zero - 1e-5)) / 2e-5
    assert_close(grad(grad(along))(zero), slope, 1e-4)


@ALL
def test_autograd_around_vmap(name, kernels_only):
    make, call, wanted = TABLE[name]
    inputs = [i.requires_grad_(k in wanted) for k, i in enumerate(twice(make()))]
    total = sum(finite_sum(tuple(r[k].sin() for r in as_tuple(vmap(call)(*inputs)))) for k in range(2))
    found = torch.autograd.grad(total, [inputs[k] for k in wanted])
    for k in range(2):
        for got, want in zip(found, gradients(name, [i[k].detach() for i in inputs]), strict=True):
            assert_close(got[k], want, 1e-9)


def test_which_transforms_take_the_reference():
    seen = []

    def probe(x):
        seen.append(_transforms.reference_wanted())
        return x.sum()

    x = torch.ones(2, 2)
    for kernels in (probe, vmap(probe), grad(probe), vmap(grad(probe)), jacrev(vmap(probe))):
        kernels(x)
    assert seen == [False] * 5
    seen.clear()
    for others in (jacfwd(probe), grad(lambda y: grad(probe)(y).sum()), hessian(probe)):
        others(x)
    assert seen and all(seen)

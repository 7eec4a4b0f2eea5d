"""What every operation owes PyTorch: one table, so that an operation added later is covered by adding a row."""

import inspect
import re
from pathlib import Path

import pytest
import torch
import torch.utils.checkpoint
from errors import assert_close

import cosegflow
from cosegflow import reference


def features(batch=2, channels=5, height=4, width=3, dtype=torch.float64):
    return torch.randn(batch, channels, height, width, dtype=dtype)


def soft_mask(batch, height, width, dtype=torch.float64):
    """Weights in (0, 1), with holes."""
    mask = torch.rand(batch, height, width, dtype=dtype) * 0.9 + 0.1
    return torch.where(torch.rand(batch, height, width) < 0.3, -1.0, mask)  # a hole of 0 is no place for differences


def _warp():
    flow = torch.randint(-2, 3, (2, 2, 5, 6)).double() + 0.3 + 0.4 * torch.rand(2, 2, 5, 6, dtype=torch.float64)
    return (features(), flow)


def _cycle_error():
    ab, ba = (torch.randint(-2, 3, (2, 2, h, w)).double() for h, w in ((5, 6), (6, 4)))
    return ab + 0.3 + 0.4 * torch.rand_like(ab), ba + torch.rand_like(ba)


def _correlation():
    return (features(), features(height=2, width=5))


def _soft_argmax():
    return (torch.randn(2, 3, 2, 4, 3, dtype=torch.float64), soft_mask(2, 4, 3), torch.tensor(1.5).double())


def _match():
    mask_a = (torch.rand(2, 4, 3) < 0.8).double()
    return (features(), features(height=2, width=5), mask_a, soft_mask(2, 2, 5), torch.tensor([3.0, -2.0]).double())


def _match_both():
    return (features(), features(height=2, width=5), soft_mask(2, 4, 3), soft_mask(2, 2, 5), _match()[4])


def _local_correlation():
    flow = torch.randint(-2, 3, (2, 2, 4, 3)).double() + 0.3 + 0.4 * torch.rand(2, 2, 4, 3, dtype=torch.float64)
    return (features(), features(height=3, width=5), flow)


def _transfer():
    fa, fb, mask_a, mask_b, beta = _match()
    return (fa, fb, torch.randn(2, 3, 2, 5).double(), mask_a, mask_b, beta)


def _call_warp(x, flow):
    return cosegflow.warp(x, flow)


def _call_cycle_error(flow_ab, flow_ba):
    return cosegflow.cycle_error(flow_ab, flow_ba).error


def _call_correlation(fa, fb):
    return cosegflow.correlation(fa, fb, normalize=True, relu=True)


def _call_soft_argmax(corr, mask_b, beta):
    return cosegflow.soft_argmax(corr, mask_b, beta=beta)[:2]


def _call_match(fa, fb, mask_a, mask_b, beta):
    return cosegflow.match(fa, fb, mask_a, mask_b, beta=beta)[:2]


def _call_match_both(fa, fb, mask_a, mask_b, beta):
    ab, ba = cosegflow.match_both(fa, fb, mask_a, mask_b, beta=beta)
    return (*ab[:2], *ba[:2])


def _call_local_correlation(fa, fb, flow):
    return cosegflow.local_correlation(fa, fb, 1, flow, normalize=True)


def _call_transfer(fa, fb, values, mask_a, mask_b, beta):
    return cosegflow.transfer(fa, fb, values, mask_a, mask_b, beta=beta)


# name -> (inputs, public function of them, how many of the inputs are operator arguments, differentiable inputs)
TABLE = {
    "warp": (_warp, _call_warp, (0, 1)),
    "cycle_error": (_cycle_error, _call_cycle_error, (0, 1)),
    "correlation": (_correlation, _call_correlation, (0, 1)),
    "soft_argmax": (_soft_argmax, _call_soft_argmax, (0, 1, 2)),
    "match": (_match, _call_match, (0, 1, 3, 4)),
    "match_both": (_match_both, _call_match_both, (0, 1, 2, 3, 4)),
    "local_correlation": (_local_correlation, _call_local_correlation, (0, 1, 2)),
    "transfer": (_transfer, _call_transfer, (0, 1, 2, 4, 5)),
}
ALL = pytest.mark.parametrize("name", TABLE)
FURTHER_ARGUMENTS = {"local_correlation": (1, True)}  # of the operator, without defaults, after the inputs


def differentiable(name):
    make, call, wanted = TABLE[name]
    inputs = list(make())
    for i in wanted:
        inputs[i].requires_grad_()
    return call, inputs


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def finite_sum(result):
    """A scalar of all outputs; lse may be -inf where nothing matches."""
    total = 0.0
    for r in as_tuple(result):
        weights = torch.arange(r.numel(), dtype=r.dtype).reshape(r.shape) / r.numel() - 0.5
        total = total + (torch.where(torch.isfinite(r), r, 0.0) * weights).sum()
    return total


@ALL
def test_gradcheck(name):
    call, inputs = differentiable(name)
    assert torch.autograd.gradcheck(lambda *i: finite_sum(call(*i)), inputs)


@ALL
def test_gradgradcheck(name):
    call, inputs = differentiable(name)
    assert torch.autograd.gradgradcheck(lambda *i: finite_sum(call(*i)), inputs, fast_mode=True)  # projections


@ALL
def test_opcheck_forward(name):
    _, inputs = differentiable(name)
    arguments = (*inputs, *FURTHER_ARGUMENTS.get(name, ()))
    torch.library.opcheck(getattr(torch.ops.cosegflow, name).default, arguments)


BACKWARD_ARGUMENTS = {
    "warp": lambda i: (torch.randn(2, 5, 5, 6).double(), *i, "bilinear", "zeros", True, True, False),
    "cycle_error": lambda i: (torch.randn(2, 5, 6).double(), *i, True, True, False),
    "correlation": lambda i: (
        torch.randn(2, 4, 3, 2, 5).double(), *i, torch.ops.cosegflow.correlation(*i, True, True).detach(), True, True,
        False, True, True,
    ),
    "soft_argmax": lambda i: (
        torch.randn(2, 2, 3, 2).double(), torch.randn(2, 3, 2).double(), *i,
        *(o.detach() for o in torch.ops.cosegflow.soft_argmax(*i)[:2]), False, True, True, True,
    ),
    "match": lambda i: (
        torch.randn(2, 2, 4, 3).double(), torch.randn(2, 4, 3).double(), *i,
        *(o.detach() for o in torch.ops.cosegflow.match(*i)[:2]), True, False, True, True, True, True,
    ),
    "match_both": lambda i: (
        torch.randn(2, 2, 4, 3).double(), torch.randn(2, 4, 3).double(), torch.randn(2, 2, 2, 5).double(), None, *i,
        *(torch.ops.cosegflow.match_both(*i)[k].detach() for k in (0, 1, 3, 4)), True, False, *(True,) * 5,
    ),
    "local_correlation": lambda i: (torch.randn(2, 9, 4, 3).double(), *i, 1, True, False, True, True, True),
    "transfer": lambda i: (
        torch.randn(2, 3, 4, 3).double(), *i, *(o.detach() for o in torch.ops.cosegflow.transfer(*i)), True, False,
        True, True, True, True, True,
    ),
}  # fmt: skip


@ALL
def test_opcheck_backward(name):
    inputs = TABLE[name][0]()
    torch.library.opcheck(getattr(torch.ops.cosegflow, f"{name}_backward").default, BACKWARD_ARGUMENTS[name](inputs))


@ALL
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(name, dynamic):
    torch._dynamo.reset()
    call, inputs = differentiable(name)
    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    leaves = [i for i in inputs if i.requires_grad]
    expected = torch.autograd.grad(finite_sum(call(*inputs)), leaves)
    actual = torch.autograd.grad(finite_sum(compiled(*inputs)), leaves)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


def test_compile_inductor():
    torch._dynamo.reset()
    call, inputs = differentiable("match")
    compiled = torch.compile(lambda *i: finite_sum(call(*i)) * 2, fullgraph=True)
    assert_close(compiled(*inputs), finite_sum(call(*inputs)) * 2, 1e-12)


@ALL
def test_export(name):
    make, call, _ = TABLE[name]
    inputs = make()

    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return call(*inputs)

    program = torch.export.export(Module(), inputs)
    assert any(f"cosegflow.{name}" in str(node.target) for node in program.graph.nodes)
    for got, want in zip(as_tuple(program.module()(*inputs)), as_tuple(call(*inputs)), strict=True):
        assert torch.equal(got, want)


@ALL
def test_activation_checkpointing(name):
    call, inputs = differentiable(name)
    leaves = [i for i in inputs if i.requires_grad]
    again = torch.utils.checkpoint.checkpoint(lambda *i: finite_sum(call(*i)), *inputs, use_reentrant=False)
    for got, want in zip(torch.autograd.grad(again, leaves),
                         torch.autograd.grad(finite_sum(call(*inputs)), leaves), strict=True):  # fmt: skip
        assert torch.equal(got, want)


@ALL
def test_transforms_are_right(name):
    """jvp and vmap agree with the reference's; a plain register_autograd would give tangents of 0 without a word."""
    make, call, wanted = TABLE[name]
    inputs = make()
    tangents = tuple(torch.randn_like(i) if k in wanted else torch.zeros_like(i) for k, i in enumerate(inputs))
    step = 1e-6
    plus = finite_sum(call(*(i + step * t for i, t in zip(inputs, tangents, strict=True))))
    minus = finite_sum(call(*(i - step * t for i, t in zip(inputs, tangents, strict=True))))
    _, tangent = torch.func.jvp(lambda *i: finite_sum(call(*i)), inputs, tangents)
    assert_close(tangent, (plus - minus) / (2 * step), 1e-5, "jvp")
    doubled = tuple(torch.stack((i, i)) for i in inputs)
    mapped = torch.func.vmap(call)(*doubled)
    for m, e in zip(mapped if isinstance(mapped, tuple) else (mapped,),
                    call(*inputs) if isinstance(mapped, tuple) else (call(*inputs),), strict=True):  # fmt: skip
        assert_close(m[1], e, 1e-9, "vmap")


@ALL
def test_fake_matches_real(name):
    make, call, _ = TABLE[name]
    inputs = make()
    real = call(*inputs)
    meta = call(*(i.to("meta") for i in inputs))
    for r, m in zip(real if isinstance(real, tuple) else (real,), meta if isinstance(meta, tuple) else (meta,),
                    strict=True):  # fmt: skip
        assert r.shape == m.shape and r.dtype == m.dtype and r.stride() == m.stride()


@pytest.mark.parametrize("name", ["match", "correlation"])
def test_autocast_casts_features_only(name):
    fa, fb = features(dtype=torch.float32, channels=32), features(dtype=torch.float32, channels=32)
    with torch.autocast("cpu", torch.bfloat16):
        if name == "match":
            result = cosegflow.match(fa, fb, mask_b=torch.rand(2, 4, 3), beta=10.0)
            expected = cosegflow.match(fa, fb, beta=10.0)
            assert all(r.dtype == torch.float32 for r in result)  # a coordinate is never rounded to bfloat16
            result = cosegflow.match(fa, fb, beta=10.0)
            mixed = cosegflow.match(fa.bfloat16(), fb, beta=10.0)
            assert torch.equal(mixed.flow, result.flow)
            rounded = reference.match(fa.bfloat16().double(), fb.bfloat16().double(), None, None, torch.tensor(10.0))
            assert_close(expected.flow, rounded.flow, 1e-4, "features are rounded, nothing else")
        else:
            assert cosegflow.correlation(fa, fb).dtype == torch.bfloat16
            assert cosegflow.correlation(fa.double(), fb.double()).dtype == torch.float64


@pytest.mark.parametrize("name", ["match", "correlation"])
def test_autocast_under_transforms(name):
    """The reference that serves transforms casts the features as the kernels do, and rounds nothing else."""
    fa, fb = features(dtype=torch.float32, channels=32), features(dtype=torch.float32, channels=32)

    def call(a, b):
        result = getattr(cosegflow, name)(a[None], b[None])
        return result.flow if name == "match" else result

    with torch.autocast("cpu", torch.bfloat16):
        mapped, plain = torch.func.vmap(call)(fa, fb), torch.stack([call(a, b) for a, b in zip(fa, fb, strict=True)])
    assert mapped.dtype == plain.dtype
    assert_close(mapped, plain, 1e-5 if name == "match" else 8e-3)


def test_compiled_transforms():
    """torch.func inside torch.compile gives what it gives outside."""
    torch._dynamo.reset()
    fa, fb, tangent = features(), features(), features()

    def jvp(a, t):
        return torch.func.jvp(lambda a: cosegflow.match(a, fb, beta=5.0).flow, (a,), (t,))[1]

    def grad(a):
        return torch.func.grad(lambda a: cosegflow.match(a, fb, beta=5.0).flow.square().sum())(a)

    for function, arguments in ((jvp, (fa, tangent)), (grad, (fa,))):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        assert_close(compiled(*arguments), function(*arguments), 1e-10)


def test_compile_with_a_changing_beta():
    torch._dynamo.reset()
    fa, fb = features(), features()
    compiled = torch.compile(lambda b: cosegflow.match(fa, fb, beta=b).flow, fullgraph=True, backend="aot_eager")
    for beta in (1.0, 2.0, 3.5):
        assert torch.equal(compiled(beta), cosegflow.match(fa, fb, beta=beta).flow)


def test_autocast_backward():
    fa = features(dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cosegflow.match(fa, features(dtype=torch.float32)).flow.sum().backward()
    assert fa.grad is not None and fa.grad.dtype == torch.float32 and bool(torch.isfinite(fa.grad).all())


def test_stubs_match_the_schemas():
    """`_operators.pyi` names every operator with the arguments of its schema, in order."""
    text = (Path(cosegflow.__file__).parent / "_operators.pyi").read_text()
    stubs = {
        name: re.findall(r"(\w+):", arguments)
        for name, arguments in re.findall(r"def (\w+)\(\s*self,(.*?)\)\s*->", text, flags=re.DOTALL)
    }
    for name in TABLE:
        for operator in (name, f"{name}_backward"):
            schema = getattr(torch.ops.cosegflow, operator).default._schema
            assert stubs[operator] == [a.name for a in schema.arguments], operator


@ALL
def test_docstrings(name):
    text = inspect.getdoc(getattr(cosegflow, name))
    assert text is not None
    for part in ("Args:", "Returns:", "Raises:", "arXiv"):
        assert part in text, f"{name}: no {part}"


F4, BETA = torch.ones(2, 3, 4, 5), torch.tensor(1.0)
WRONG = [
    (
        lambda o: o.correlation(F4.long(), F4.long()),
        "fa needs to be float16, bfloat16, float32, float64 or bool, got Long",
    ),
    (lambda o: o.soft_argmax(torch.ones(1, 1, 1, 1, 1).int(), None, BETA), "corr needs to be float16, .* got Int"),
    (lambda o: o.match(F4, F4, F4[0], None, BETA), r"mask_a needs shape \(2, 4, 5\), got \(3, 4, 5\)"),
    (lambda o: o.match(F4, F4, None, F4[:, 0].long(), BETA), "mask_b needs to be float16, .* got Long"),
    (lambda o: o.match(F4, F4, None, None, BETA.long()), "beta needs to be float16, .* got Long"),
    (lambda o: o.local_correlation(F4, F4, F4[0], 1), r"flow needs 4 dimensions, got shape \(3, 4, 5\)"),
    (
        lambda o: o.cycle_error_backward(F4[:, 0].half(), F4[:, :2], F4[:, :2], True, True, False),
        r"grad_error needs shape \(2, 4, 5\) and dtype Float, got \(2, 4, 5\) and Half",
    ),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_the_binding_names_what_is_wrong(call, message):
    """C++ and `torch.ops` come here without the checks of the functions."""
    with pytest.raises(RuntimeError, match=f"^cosegflow: {message}$"):
        call(torch.ops.cosegflow)

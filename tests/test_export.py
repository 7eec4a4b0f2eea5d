"""docs/export.md: exported programs, TorchScript, the decompositions and what ONNX makes of them."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from errors import EPS, assert_close
from test_operators import ALL, TABLE, as_tuple, finite_sum
from torch.export import Dim

import cosegflow
from cosegflow.export import decompositions

operators = torch.ops.cosegflow
INF, NAN = float("inf"), float("nan")


class Module(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def example(name, batch=2, size_a=(4, 3), size_b=(2, 5), dtype=torch.float64):
    """Inputs of a function of TABLE, of other sizes than the table's."""
    fa, fb = torch.randn(batch, 5, *size_a), torch.randn(batch, 5, *size_b)
    mask_a, mask_b = (torch.rand(batch, *size_a) - 0.2).to(dtype), (torch.rand(batch, *size_b) - 0.2).to(dtype)
    flow_ab, flow_ba = 2 * torch.randn(batch, 2, *size_a), 2 * torch.randn(batch, 2, *size_b)
    beta = torch.full((batch,), 3.0)
    inputs = {
        "warp": (fb, flow_ab),
        "cycle_error": (flow_ab, flow_ba),
        "correlation": (fa, fb),
        "soft_argmax": (torch.randn(batch, *size_a, *size_b), mask_b, beta),
        "match": (fa, fb, mask_a, mask_b, beta),
        "match_both": (fa, fb, mask_a, mask_b, beta),
        "local_correlation": (fa, fb, flow_ab),
        "transfer": (fa, fb, torch.randn(batch, 3, *size_b), mask_a, mask_b, beta),
    }[name]
    return tuple(i.to(dtype) for i in inputs)


def all_dynamic(inputs):
    return (tuple(dict.fromkeys(range(i.dim()), Dim.AUTO) for i in inputs),)


def equal(actual, expected):
    """Bit for bit."""
    for a, e in zip(as_tuple(actual), as_tuple(expected), strict=True):
        assert torch.equal(a, e)


@ALL
def test_dynamic_sizes_and_a_file(name):
    call = TABLE[name][1]
    inputs, others = example(name), example(name, 3, (5, 6), (7, 2))
    program = torch.export.export(Module(call), inputs, dynamic_shapes=all_dynamic(inputs))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert any(f"cosegflow.{name}" in str(node.target) for node in loaded.graph.nodes)
    for given in (inputs, others):
        equal(loaded.module()(*given), call(*given))
    leaves = [others[i].requires_grad_() for i in TABLE[name][2]]
    got, want = (torch.autograd.grad(finite_sum(f(*others)), leaves) for f in (loaded.module(), call))
    equal(got, want)


@pytest.mark.parametrize("strict", [False, True])
def test_named_tuples(strict):
    """A model may return what the functions return."""
    fa, fb = example("correlation")
    file = io.BytesIO()
    torch.export.save(torch.export.export(Module(cosegflow.match_both), (fa, fb), strict=strict), file)
    file.seek(0)
    ab, ba = torch.export.load(file).module()(fa, fb)
    assert isinstance(ab, cosegflow.Matches) and isinstance(ba, cosegflow.Matches)
    equal(ba, cosegflow.match_both(fa, fb)[1])


def test_a_beta_that_varies_is_a_tensor():
    fa, fb = example("correlation")
    program = torch.export.export(
        Module(lambda a, b, t: cosegflow.match(a, b, beta=t).flow), (fa, fb, torch.tensor(3.0))
    )
    equal(program.module()(fa, fb, torch.tensor(7.0)), cosegflow.match(fa, fb, beta=7.0).flow)
    program = torch.export.export(Module(lambda a, b, t: cosegflow.match(a, b, beta=t).flow), (fa, fb, 3.0))
    with pytest.raises(AssertionError, match="Guard failed"):
        program.module()(fa, fb, 7.0)


def test_autocast_is_part_of_the_program_where_the_model_says_so():
    class Model(torch.nn.Module):
        def forward(self, a, b):
            with torch.autocast("cpu", torch.bfloat16):
                return cosegflow.match(a, b).flow

    inputs = example("correlation", dtype=torch.float32)
    program = torch.export.export(Model(), inputs)
    equal(program.module()(*inputs), Model()(*inputs))
    assert not torch.equal(program.module()(*inputs), cosegflow.match(*inputs).flow)


@ALL
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_torchscript(name):
    call = TABLE[name][1]
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(Module(call), example(name), check_trace=False), file)
    file.seek(0)
    others = example(name, 3, (5, 6), (7, 2))
    equal(torch.jit.load(file)(*others), call(*others))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_script_takes_operators_only():
    class ByFunction(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return cosegflow.match(a, b).flow

    class ByOperator(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            beta = torch.full((), 50.0, dtype=a.dtype, device=a.device)
            return torch.ops.cosegflow.match(a, b, None, None, beta)[0]

    inputs = example("correlation")
    equal(torch.jit.script(ByOperator())(*inputs), cosegflow.match(*inputs).flow)
    with pytest.raises(torch.jit.frontend.NotSupportedError, match="keyword-only arguments with defaults"):
        torch.jit.script(ByFunction())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_files_need_the_import(tmp_path):
    """What a process sees that loads a file before it imports cosegflow, and that the import is all that it needs."""
    inputs = example("correlation")
    model = Module(lambda a, b: cosegflow.match(a, b).flow)
    torch.export.save(torch.export.export(model, inputs), tmp_path / "model.pt2")
    torch.jit.save(torch.jit.trace(model, inputs, check_trace=False), tmp_path / "model.ts")
    code = """if True:
        import sys, torch
        for load, name in ((torch.export.load, "model.pt2"), (torch.jit.load, "model.ts")):
            try:
                load(name)
            except RuntimeError as error:
                print(error)
        import cosegflow
        torch.export.load("model.pt2"), torch.jit.load("model.ts")
        print("both load")
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(cosegflow.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("ran into an error when deserializing", "Unknown builtin op: cosegflow::match", "both load"):
        assert part in done.stdout
    assert "failed to resolve torch.ops.cosegflow.match.default to an operator" in done.stderr


def test_every_operator_has_a_decomposition():
    stubs = (Path(cosegflow.__file__).parent / "_operators.pyi").read_text()
    forward = {name for name in re.findall(r"def (\w+)\(", stubs) if not name.endswith("_backward")}
    assert {getattr(operators, name).default for name in forward} | {torch.ops.aten.hypot.default} == set(
        decompositions()
    )


def _cases(dtype):
    """(operator, arguments): every option of every operator once."""
    fa, fb, mask_a, mask_b, beta = example("match", dtype=dtype)
    beta = beta.to(torch.promote_types(dtype, torch.float32))
    corr, flow, values = torch.randn(2, 4, 3, 2, 5).to(dtype), example("warp", dtype=dtype)[1], torch.randn(2, 3, 2, 5)
    flow = flow.to(beta.dtype)
    flow[0, 0, 1, 1], flow[1, 1, 2, 0], flow[0, :, 3, 2] = torch.nan, torch.inf, 40.0
    nothing = torch.zeros_like(mask_b)
    for mode, padding in (("bilinear", "zeros"), ("nearest", "zeros"), ("bilinear", "border")):
        yield "warp", (fb, flow, mode, padding)
    yield "cycle_error", (flow.to(dtype), example("cycle_error", dtype=dtype)[1])
    yield "correlation", (fa, fb, True, True)
    for index, sigma in ((False, 0.0), (True, 0.0), (False, 1.5)):
        yield "soft_argmax", (corr, mask_b, beta, False, sigma, index)
        yield "match", (fa, fb, mask_a, mask_b, beta, True, False, sigma, index)
    yield "match", (fa, fb, None, nothing, beta, False)
    yield "match_both", (fa, fb, None, mask_b > 0, beta, False)
    yield "transfer", (fa, fb, values.to(dtype), mask_a, mask_b, beta, True)
    for radius, field, normalize in ((0, flow, False), (2, flow, True), (1, None, True)):
        yield "local_correlation", (fa, fb, field, radius, normalize)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_decompositions_are_the_operators(dtype):
    table = decompositions()
    for name, arguments in _cases(dtype):
        operator = getattr(operators, name).default
        got, want = as_tuple(table[operator](*arguments)), as_tuple(operator(*arguments))
        for k, (g, w) in enumerate(zip(got, want, strict=True)):
            assert g.dtype == w.dtype, (name, k)
            if w.is_floating_point():
                assert_close(g, w, 30 * EPS[w.dtype], f"{name}, output {k}")
            else:
                assert torch.equal(g, w), f"{name}, output {k}"


def test_hypot():
    x, y = torch.tensor([3.0, 0.0, 1e30, 1e-30]), torch.tensor([-4.0, 0.0, 1e30, 0.0])
    got = decompositions()[torch.ops.aten.hypot.default](x, y)
    assert bool(((got - torch.hypot(x, y)).abs() <= 1e-6 * torch.hypot(x, y)).all())
    x, y = torch.tensor([INF, -INF, 1.0, NAN, 0.0]), torch.tensor([1.0, INF, -INF, INF, NAN])
    got = decompositions()[torch.ops.aten.hypot.default](x, y)
    assert got.tolist()[:4] == [INF] * 4 and bool(got[4].isnan())


def refine(fa, fb, mask_b):
    """A model that uses several operations."""
    flow = cosegflow.match(fa, fb, mask_b=mask_b, beta=5.0).flow
    window = cosegflow.local_correlation(fa, fb, 1, flow)
    return flow, window, cosegflow.warp(fb, flow)


def standard(program):
    """The program in torch's own operators."""
    program = program.run_decompositions(decompositions())
    assert not [node for node in program.graph.nodes if "cosegflow" in str(node.target)]
    return program


def evaluate(model, inputs):
    """The outputs of an ONNX model by the evaluator that comes with ONNX."""
    from onnx.reference import ReferenceEvaluator

    named = zip(model.graph.input, inputs, strict=True)
    return tuple(
        torch.tensor(out) for out in ReferenceEvaluator(model).run(None, {v.name: i.numpy() for v, i in named})
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_onnx_of_standard_operators(dynamic):
    """The recipe of docs/export.md: only nodes of ONNX's own, right values, also of other sizes."""
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnx and onnxscript")
    fa, fb, _, mask_b, _ = example("match", dtype=torch.float32)
    inputs = (fa, fb, mask_b)
    shapes = all_dynamic(inputs) if dynamic else None
    program = standard(torch.export.export(Module(refine), inputs, dynamic_shapes=shapes))
    model = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    fa, fb, _, mask_b, _ = example("match", 3, (5, 6), (7, 2), torch.float32)
    for given in (inputs, (fa, fb, mask_b)) if dynamic else (inputs,):
        for got, want in zip(evaluate(model, given), refine(*given), strict=True):
            assert_close(got, want, 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_onnx_with_a_node_of_ours():
    """The other recipe: one node that a runtime with kernels of its own can take."""
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnx and onnxscript")

    def as_node(fa, fb, mask_a, mask_b, beta, normalize=True, simple=False, kernel_sigma=0.0, *_):
        real, one = fa.dtype, (fa.shape[0], *fa.shape[2:])
        return torch.onnx.ops.symbolic_multi_out(
            "cosegflow::match",
            (fa, fb, mask_a, mask_b, beta),
            {"normalize": int(normalize), "kernel_sigma": kernel_sigma},
            dtypes=[real, real, real, torch.int64, real],
            shapes=[(one[0], 2, *one[1:]), one, one, (0,), (0,)],
            version=1,
        )

    fa, fb, _, mask_b, _ = example("match", dtype=torch.float32)
    model = Module(lambda a, b, m: cosegflow.match(a, b, mask_b=m).flow)
    program = torch.export.export(model, (fa, fb, mask_b)).run_decompositions({operators.match.default: as_node})
    graph = torch.onnx.export(program, dynamo=True, verbose=False).model_proto.graph
    (node,) = graph.node
    assert (node.domain, node.op_type) == ("cosegflow", "match") and node.output[0] == graph.output[0].name
    assert [bool(name) for name in node.input] == [True, True, False, True, True]
    assert {a.name: a.i or a.f for a in node.attribute} == {"normalize": 1, "kernel_sigma": 0.0}


@pytest.mark.filterwarnings("ignore")
def test_onnx_without_the_decompositions():
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnx and onnxscript")
    model = Module(lambda a, b: cosegflow.match(a, b).flow)
    with pytest.raises(
        torch.onnx.OnnxExporterError, match=r"No ONNX function found for <OpOverload\(op='cosegflow.match'"
    ):
        torch.onnx.export(model, example("correlation", dtype=torch.float32), dynamo=True, verbose=False)


@pytest.mark.slow
def test_aot_inductor(tmp_path):
    """Compiles C++: takes a minute or more."""
    inputs, others = (example("match", *sizes, dtype=torch.float32)[:2] for sizes in ((), (3, (5, 6), (7, 2))))
    model = Module(lambda a, b: cosegflow.match(a, b).flow * 2)
    program = torch.export.export(model, inputs, dynamic_shapes=all_dynamic(inputs))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    compiled = torch._inductor.aoti_load_package(package)
    for given in (inputs, others):
        assert_close(compiled(*given), model(*given), 1e-6)

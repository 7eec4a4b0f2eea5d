"""float32 on CUDA follows torch's precision of matrix products; the value is an argument that the operators get."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import cosegflow
from cosegflow.ops import _precision
from cosegflow.ops._precision import float32_precision

CUDA = torch.device("cuda", 0)
NUMBERS = {"highest": 0, "high": 1, "medium": 2}


@pytest.fixture(autouse=True)
def _restored():
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", NUMBERS)
def test_it_follows_torch(name):
    torch.set_float32_matmul_precision(name)
    assert float32_precision(torch.float32, CUDA) == NUMBERS[name]
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert float32_precision(dtype, CUDA) == 0
    assert float32_precision(torch.float32, torch.device("cpu")) == 0


def test_it_follows_the_backends_settings():
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = True
    assert _precision.current() == 1
    matmul.allow_tf32 = False
    assert _precision.current() == 0
    torch.set_float32_matmul_precision("medium")
    matmul.fp32_precision = "ieee"  # get_float32_matmul_precision still says "medium", and cuBLAS computes in float32
    assert _precision.current() == 0
    torch.set_float32_matmul_precision("highest")
    matmul.fp32_precision = "tf32"  # torch refuses to say what the older setting is now
    assert _precision.current() == 1
    matmul.fp32_precision = "none"
    torch.backends.fp32_precision = "tf32"  # for every backend
    assert _precision.current() == 1


CALLS = {
    "match": lambda x, beta: cosegflow.match(x, x, beta=beta).flow,
    "match_both": lambda x, beta: cosegflow.match_both(x, x, beta=beta)[1].flow,
    "transfer": lambda x, beta: cosegflow.transfer(x, x, x, beta=beta),
    "correlation": lambda x, beta: cosegflow.correlation(x, x),
}


@pytest.fixture
def cuda_inputs(monkeypatch):
    """Features (1, 4, 3, 5), float32, and beta, as if on a CUDA device: fake."""
    monkeypatch.setattr(cosegflow._library, "HAS_CUDA_KERNELS", True)
    with FakeTensorMode():
        return torch.empty(1, 4, 3, 5, device=CUDA), torch.empty((), device=CUDA)


@pytest.mark.parametrize("op", CALLS)
def test_a_change_recompiles(op, cuda_inputs):
    torch._dynamo.reset()
    seen = []

    def backend(module, inputs):
        schema = getattr(torch.ops.cosegflow, op).default._schema
        at = [a.name for a in schema.arguments].index("precision")
        seen.extend(node.args[at] for node in module.graph.nodes if node.target is getattr(torch.ops.cosegflow, op))
        last = seen[-1]
        return lambda *inputs: (torch.tensor(last),)

    compiled = torch.compile(CALLS[op], fullgraph=True, backend=backend)
    names = ["highest", "high", "medium", "high", "highest", "medium"]
    given = []
    for name in names:
        torch.set_float32_matmul_precision(name)
        given.append(int(compiled(*cuda_inputs)))
    assert given == [NUMBERS[n] for n in names]
    assert sorted(seen) == [0, 1, 2]  # one graph for each, not one for each change
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert int(compiled(*cuda_inputs)) == 0


def test_without_a_guard_medium_is_served_as_high(monkeypatch):
    """A torch whose Dynamo has no such guard still sees a change from and to "highest"."""
    torch._dynamo.reset()
    monkeypatch.setattr(_precision, "_guard", lambda: False)
    compiled = torch.compile(lambda x: x * (10 + float32_precision(x.dtype, CUDA)), fullgraph=True, backend="eager")
    for name, expected in (("medium", 11), ("high", 11), ("highest", 10), ("medium", 11)):
        torch.set_float32_matmul_precision(name)
        assert int(compiled(torch.ones(1))) == expected


@pytest.mark.parametrize("op", CALLS)
def test_eager_calls_pass_it(op, cuda_inputs):
    """Seen by a dispatch mode, before any kernel."""
    given = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is getattr(torch.ops.cosegflow, op).default:
                names = [a.name for a in function._schema.arguments]
                given.append(dict(zip(names, args, strict=False)).get("precision", 0))
            return function(*args, **(kwargs or {}))

    for name in NUMBERS:
        torch.set_float32_matmul_precision(name)
        with cuda_inputs[0].fake_mode, Watch():
            CALLS[op](*cuda_inputs)
    assert given == [0, 1, 2]


@pytest.mark.parametrize("op", CALLS)
def test_the_binding_names_a_bad_precision(op):
    x = torch.randn(1, 4, 3, 5)
    inputs = (x, x, x) if op == "transfer" else (x, x)
    if op != "correlation":
        inputs += (None, None, torch.tensor(5.0))
    operator = getattr(torch.ops.cosegflow, op)
    for precision in (0, 1, 2):
        got = operator(*inputs, precision=precision, portable=True)
        assert torch.equal(got[0], operator(*inputs)[0])  # the CPU takes no notice
    for precision in (-1, 3):
        with pytest.raises(RuntimeError, match=rf"precision needs to be 0 .*, got {precision}"):
            operator(*inputs, precision=precision)

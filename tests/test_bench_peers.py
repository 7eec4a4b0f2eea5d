"""Every peer does what it says: right, with right gradients, or unavailable with a reason."""

import contextlib
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend

from benchmarks.case import Case
from benchmarks.peers import PEERS, sdpa
from benchmarks.peers.base import Unavailable
from benchmarks.works import WORKS
from benchmarks.works.base import cotangent

CPU = torch.device("cpu")
SLOW = {"flex", "compile"}
PAIRS = [
    pytest.param(peer, work, marks=pytest.mark.slow if peer in SLOW else ())
    for peer in PEERS
    for work in PEERS[peer].works
]


def small(work: str) -> Case:
    shapes = {"warp": ((7, 9), (6, 8)), "soft_argmax": ((3, 4), (5, 6))}
    a, b = shapes.get(work, ((6, 7), (6, 7)))
    return Case(batch=2, channels=16, a=a, b=b, beta=6.0, radius=2)


def evaluate(peer: str, work: str, case: Case):
    """Relative errors of the output and of each gradient."""
    inputs = WORKS[work].inputs(case, CPU, 3)
    exact = WORKS[work].exact(case, inputs, True)
    try:
        output = PEERS[peer].works[work](case, CPU)(inputs)
    except Unavailable as reason:
        assert len(str(reason)) > 10
        pytest.skip(f"{peer}: {reason}")
    leaves = {k: v for k, v in inputs.items() if v.requires_grad}
    found = torch.autograd.grad(output, list(leaves.values()), cotangent(output))
    pairs = [(output, exact.output), *((g, exact.gradients[k]) for k, g in zip(leaves, found, strict=True))]
    return [((g.double() - w).norm() / w.norm()).item() for g, w in pairs]


@pytest.mark.parametrize("foreground", [1.0, 0.5])
@pytest.mark.parametrize(("peer", "work"), PAIRS)
def test_outputs_and_gradients(peer, work, foreground):
    case = replace(small(work), foreground=foreground)
    if foreground < 1 and work in ("warp", "correlation", "local_correlation", "lookup", "cycle_error"):
        pytest.skip("the work has no masks")
    for error in evaluate(peer, work, case):
        assert error <= 2e-5


@pytest.mark.parametrize("peer", ["cosegflow", "eager", "chunked"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(peer, dtype):
    tolerance = 1e-9 if dtype == "float64" else 0.1
    for error in evaluate(peer, "match", replace(small("match"), dtype=dtype)):
        assert error <= tolerance


def test_a_wrong_peer_is_seen(monkeypatch):
    right = PEERS["eager"].works["match"]
    wrong = {"match": lambda case, device: right(replace(case, beta=case.beta * 1.1), device)}
    monkeypatch.setitem(PEERS, "eager", replace(PEERS["eager"], works=wrong))
    assert all(error > 1e-3 for error in evaluate("eager", "match", small("match")))


def test_the_registry():
    assert list(PEERS)[:3] == ["cosegflow", "two-calls", "eager"]
    assert set(PEERS["cosegflow"].works) == set(WORKS)
    for name, peer in PEERS.items():
        assert name == peer.name and peer.summary and set(peer.works) <= set(WORKS)
    for name in ("cosegflow", "eager", "chunked", "sdpa"):
        assert PEERS[name].version() and PEERS[name].default
    assert not PEERS["compile"].default


def test_reasons_are_precise():
    with pytest.raises(Unavailable, match="half precision"):
        PEERS["eager-float32"].works["match"](Case(), CPU)
    with pytest.raises(Unavailable, match="CUDA only"):
        PEERS["eager-float32"].works["match"](Case(dtype="bfloat16"), CPU)
    with pytest.raises(Unavailable, match="no mask"):
        PEERS["kornia"].works["soft_argmax"](Case(foreground=0.5), CPU)


@pytest.mark.parametrize(("peer", "work"), PAIRS)
def test_without_gradients(peer, work):
    case = small(work)
    inputs = WORKS[work].inputs(case, CPU, 4)
    want = WORKS[work].exact(case, inputs, False).output
    try:
        function = PEERS[peer].works[work](case, CPU)
    except Unavailable as reason:
        pytest.skip(f"{peer}: {reason}")
    with torch.no_grad():
        output = function(inputs)
    assert ((output.double() - want).norm() / want.norm()).item() <= 2e-5


def test_grids_of_two_sizes():
    case = replace(small("match"), a=(4, 5), b=(7, 3))
    for peer in ("eager", "chunked", "sdpa"):
        assert max(evaluate(peer, "match", case)) <= 2e-5
    for peer in ("unfold", "spatial-correlation-sampler"):
        with pytest.raises(Unavailable):
            PEERS[peer].works["local_correlation"](case, CPU)


def test_a_missing_package_is_named(monkeypatch):
    for name in ("kornia.geometry.transform", "spatial_correlation_sampler"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(Unavailable, match=r"kornia.*pip install 'cosegflow"):
        PEERS["kornia"].works["warp"](Case(), CPU)
    with pytest.raises(Unavailable, match=r"sampler.*no-build-isolation"):
        PEERS["spatial-correlation-sampler"].works["local_correlation"](Case(), CPU)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("foreground", [1.0, 0.5])
def test_what_sdpa_gets_on_cuda(monkeypatch, foreground, layout):
    """The efficient kernel wants C last, values in columns of 8 and an aligned bias; none of it may be a volume."""
    plain, seen = F.scaled_dot_product_attention, []

    def attention(q, k, v, attn_mask=None, scale=None):
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1 and v.shape[-1] == 8
        if attn_mask is not None:
            assert attn_mask.shape == (len(q), 1, q.shape[2], k.shape[2]) and attn_mask.stride(-1) == 1
            assert all(stride % 16 == 0 for stride in attn_mask.stride()[:-1])
            assert attn_mask.untyped_storage().nbytes() < 4 * q.shape[2] * k.shape[2]
        seen.append(attn_mask is not None)
        return plain(q, k, v, attn_mask=attn_mask, scale=scale)

    monkeypatch.setattr(sdpa, "sdpa_kernel", lambda backends: contextlib.nullcontext(seen.append(backends)))
    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    case = replace(small("match"), foreground=foreground, layout=layout)
    inputs = WORKS["match"].inputs(case, CPU, 3)
    output = PEERS["sdpa"].works["match"](case, torch.device("cuda"))(inputs)
    want = WORKS["match"].exact(case, inputs, False).output
    assert ((output.double() - want).norm() / want.norm()).item() <= 2e-5
    assert seen == [[SDPBackend.EFFICIENT_ATTENTION], foreground < 1]


@pytest.mark.parametrize("foreground", [1.0, 0.5])
def test_float32_scores_as_on_cuda(monkeypatch, foreground):
    """With the product that only CUDA has, emulated: better than half scores, and no bias where there is no mask."""
    used = []

    def product(bias, a, b, out_dtype, *, beta, alpha, out):
        assert bias is out and out.dtype == out_dtype == torch.float32
        used.append(beta)
        start = bias.clone() if beta else torch.zeros_like(bias)
        return out.copy_(start + alpha * (a.float() @ b.float()))

    case = replace(small("match"), dtype="bfloat16", foreground=foreground, beta=20.0)
    half = evaluate("eager", "match", case)
    inputs = WORKS["match"].inputs(case, CPU, 3)
    exact = WORKS["match"].exact(case, inputs, True)
    monkeypatch.setattr(torch, "baddbmm", product)
    output = PEERS["eager-float32"].works["match"](case, torch.device("cuda"))(inputs)
    found = torch.autograd.grad(output, [inputs["fa"], inputs["fb"]], cotangent(output))
    pairs = [(output, exact.output), (found[0], exact.gradients["fa"]), (found[1], exact.gradients["fb"])]
    errors = [((g.double() - w).norm() / w.norm()).item() for g, w in pairs]
    assert used == [int(foreground < 1)]
    assert errors[0] < half[0] and all(error <= 0.05 for error in errors)


@pytest.mark.parametrize("peer", ["compile", "flex"])
def test_many_cases_are_compiled(monkeypatch, peer):
    """More than dynamo's limit of recompilations of one function, which would be an error."""
    compiler = torch.compile

    def quick(function, **options):
        return compiler(function, backend="eager", **{k: v for k, v in options.items() if k != "mode"})

    monkeypatch.setattr(torch, "compile", quick)
    for width in range(4, 4 + torch._dynamo.config.recompile_limit + 2):
        case = Case(channels=4, a=(3, width), b=(3, width))
        inputs = WORKS["match"].inputs(case, CPU, 0)
        with torch.no_grad():
            output = PEERS[peer].works["match"](case, CPU)(inputs)
        want = WORKS["match"].exact(case, inputs, False).output
        assert ((output.double() - want).norm() / want.norm()).item() <= 2e-5

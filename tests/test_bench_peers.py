"""Every peer does what it says: right, with right gradients, or unavailable with a reason."""

from dataclasses import replace

import pytest
import torch

from benchmarks.case import Case
from benchmarks.peers import PEERS
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
    if foreground < 1 and work in ("warp", "correlation", "local_correlation", "cycle_error"):
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
    assert list(PEERS)[:2] == ["cosegflow", "eager"]
    assert set(PEERS["cosegflow"].works) == set(WORKS)
    for name, peer in PEERS.items():
        assert name == peer.name and peer.summary and set(peer.works) <= set(WORKS)
    for name in ("cosegflow", "eager", "chunked", "sdpa"):
        assert PEERS[name].version() and PEERS[name].default
    assert not PEERS["compile"].default


def test_reasons_are_precise():
    with pytest.raises(Unavailable, match="half precision"):
        PEERS["eager-float32-scores"].works["match"](Case(), CPU)
    with pytest.raises(Unavailable, match="CUDA only"):
        PEERS["eager-float32-scores"].works["match"](Case(dtype="bfloat16"), CPU)
    with pytest.raises(Unavailable, match="no mask"):
        PEERS["kornia"].works["soft_argmax"](Case(foreground=0.5), CPU)

"""Fast kernels are taken once they agree with the simple ones; the check is real, and its failure is a fallback."""

import types

import backends
import pytest
import torch

import cosegflow
from cosegflow.ops import _trust


def hostsim_operators(spoil: str | None = None):
    """The operators' signatures on hostsim; `spoil` changes one value of the fast kernels of that operator."""
    module = backends.hostsim_module()

    def convert(arguments):
        return [backends.to_numpy(a) if isinstance(a, torch.Tensor) else a for a in arguments]

    def spoiled(name, simple, results):
        tensors = [backends.to_torch(r) for r in results]
        if name == spoil and not simple:
            tensors[0].view(-1)[5] = float("nan")
        return tensors

    def match(fa, fb, mask_a, mask_b, beta, normalize, simple, *options):
        beta = backends.beta_per_image(beta, fa.shape[0])
        results = module.match(*convert((fa, fb, mask_a, mask_b)), beta, normalize, simple, *options)
        return spoiled("match", simple, results)

    def match_backward(grad_flow, grad_lse, fa, fb, mask_a, mask_b, beta, flow, lse, normalize, simple, *need):
        beta = backends.beta_per_image(beta, fa.shape[0])
        arrays = convert((fa, fb, mask_a, mask_b)), convert((flow, lse, grad_flow, grad_lse))
        results = module.match_backward(*arrays[0], beta, *arrays[1], normalize, simple, need)
        return spoiled("match_backward", simple, results)

    def match_both(fa, fb, mask_a, mask_b, beta, normalize, simple):
        beta = backends.beta_per_image(beta, fa.shape[0])
        results = module.match_both(*convert((fa, fb, mask_a, mask_b)), beta, normalize, simple)
        return spoiled("match_both", simple, results)

    def match_both_backward(*arguments):
        incoming, (fa, fb, mask_a, mask_b, beta), saved = arguments[:4], arguments[4:9], arguments[9:13]
        normalize, simple, *need = arguments[13:]
        beta = backends.beta_per_image(beta, fa.shape[0])
        results = module.match_both_backward(
            *convert((fa, fb, mask_a, mask_b)), beta, convert(saved), convert(incoming), normalize, simple, need
        )
        return spoiled("match_both_backward", simple, results)

    def transfer(fa, fb, values, mask_a, mask_b, beta, normalize, simple):
        beta = backends.beta_per_image(beta, fa.shape[0])
        results = module.transfer(*convert((fa, fb, values, mask_a, mask_b)), beta, normalize, simple)
        return spoiled("transfer", simple, results)

    def transfer_backward(grad, fa, fb, values, mask_a, mask_b, beta, out, lse, normalize, simple, *need):
        beta = backends.beta_per_image(beta, fa.shape[0])
        arrays = convert((grad, fa, fb, values, mask_a, mask_b)), convert((out, lse))
        results = module.transfer_backward(*arrays[0], beta, *arrays[1], normalize, simple, need)
        return spoiled("transfer_backward", simple, results)

    def soft_argmax(corr, mask_b, beta, simple, *options):
        beta = backends.beta_per_image(beta, corr.shape[0])
        return spoiled("soft_argmax", simple, module.soft_argmax(*convert((corr, mask_b)), beta, simple, *options))

    def soft_argmax_backward(grad_flow, grad_lse, corr, mask_b, beta, flow, lse, simple, *rest):
        beta = backends.beta_per_image(beta, corr.shape[0])
        arrays = convert((corr, mask_b)), convert((flow, lse, grad_flow, grad_lse))
        results = module.soft_argmax_backward(*arrays[0], beta, *arrays[1], simple, rest[:3], *convert(rest[3:]))
        return spoiled("soft_argmax_backward", simple, results)

    def correlation(fa, fb, normalize, relu, simple):
        return spoiled("correlation", simple, [module.correlation(*convert((fa, fb)), normalize, relu, simple)])[0]

    def correlation_backward(grad, fa, fb, corr, normalize, relu, simple, *need):
        results = module.correlation_backward(*convert((grad, fa, fb, corr)), normalize, relu, simple, need)
        return spoiled("correlation_backward", simple, results)

    def local_correlation(fa, fb, flow, radius, normalize, simple):
        out = module.local_correlation(*convert((fa, fb, flow)), radius, normalize, simple)
        return spoiled("local_correlation", simple, [out])[0]

    found = (match, match_backward, match_both, match_both_backward, soft_argmax, soft_argmax_backward, correlation)
    found += (correlation_backward, local_correlation, transfer, transfer_backward)
    return types.SimpleNamespace(**{f.__name__: f for f in found})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", _trust.PROBLEMS)
def test_fast_agrees_with_simple(op, dtype):
    _, sizes = _trust.PROBLEMS[op]
    sizes = [s for s in sizes if op != "correlation" or s[-1] < 128]  # 16 million entries are for a GPU
    assert _trust.agrees(op, torch.empty(0, dtype=dtype), hostsim_operators(), tuple(sizes))


@pytest.mark.parametrize("part", ["", "_backward"])
@pytest.mark.parametrize("op", _trust.PROBLEMS)
def test_one_wrong_value_is_noticed(op, part):
    if part and op == "local_correlation":
        pytest.skip("its backward has one path")
    _, sizes = _trust.PROBLEMS[op]
    assert not _trust.agrees(op, torch.empty(0), hostsim_operators(spoil=op + part), sizes[:1])


@pytest.fixture
def pretend_gpu(monkeypatch):
    """A CUDA device to decide about; no kernel runs."""
    monkeypatch.setattr(_trust, "_agreed", {})
    monkeypatch.delenv("COSEGFLOW_SIMPLE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "pretended")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: torch.zeros(*a, **k))
    return torch.device("cuda", 0)


def test_disagreement_warns_once_and_falls_back(pretend_gpu, monkeypatch):
    monkeypatch.setattr(_trust, "agrees", lambda op, like: False)
    with pytest.warns(RuntimeWarning, match="match for torch.float16 disagree"):
        assert _trust.use_simple("match", torch.float16, pretend_gpu)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _trust.use_simple("match", torch.float16, pretend_gpu)


def test_agreement_is_checked_once(pretend_gpu, monkeypatch):
    calls = []
    monkeypatch.setattr(_trust, "agrees", lambda op, like: calls.append(op) or True)
    assert not _trust.use_simple("match", torch.float16, pretend_gpu)
    assert not _trust.use_simple("match", torch.float16, pretend_gpu)
    assert calls == ["match"]


def test_no_check_while_capturing(pretend_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(_trust, "agrees", lambda op, like: pytest.fail("a check ran during capture"))
    assert _trust.use_simple("match", torch.float16, pretend_gpu)
    assert _trust._agreed == {}


def test_verified_paths_need_no_check(pretend_gpu, monkeypatch):
    monkeypatch.setattr(_trust, "VERIFIED", frozenset({("match", "sm_90")}))
    monkeypatch.setattr(_trust, "agrees", lambda op, like: pytest.fail("a check ran"))
    assert not _trust.use_simple("match", torch.float16, pretend_gpu)


def test_the_environment_forces_the_simple_kernels(monkeypatch):
    monkeypatch.setenv("COSEGFLOW_SIMPLE", "1")
    assert _trust.use_simple("match", torch.float32, torch.device("cpu"))
    monkeypatch.setenv("COSEGFLOW_SIMPLE", "0")
    assert not _trust.use_simple("match", torch.float32, torch.device("cpu"))
    fa = torch.randn(1, 8, 3, 4)
    assert cosegflow.match(fa, fa).flow.shape == (1, 2, 3, 4)


def test_old_architectures_take_the_simple_kernels(pretend_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(_trust, "agrees", lambda op, like: pytest.fail("a check ran"))
    assert _trust.use_simple("match", torch.float16, pretend_gpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_warmup():
    cosegflow.warmup()
    assert len(_trust._agreed) + len(_trust.VERIFIED) >= len(_trust.PROBLEMS)

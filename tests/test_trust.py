"""Fast kernels are taken once they agree with the simple ones; the check is real, and its failure is a fallback."""

import types
import warnings

import backends
import pytest
import torch

import cosegflow
from cosegflow.ops import _checks, _log, _self_check, _trust
from cosegflow.ops._self_check import CASES, HOPPER, PORTABLE
from cosegflow.ops._trust import FAST, SIMPLE


def hostsim_operators(spoil: str | None = None):
    """The operators' signatures on hostsim; `spoil` changes one value of the fast kernels of that operator.

    Its bindings take `precision` and `portable` by name, where they have them.
    """
    module = backends.hostsim_module()

    def convert(arguments):
        return [backends.to_numpy(a) if isinstance(a, torch.Tensor) else a for a in arguments]

    def named(name, precision, portable):
        given = backends.which_kernels(precision, portable)
        return {k: v for k, v in given.items() if k in (getattr(module, name).__doc__ or "")}

    def spoiled(name, simple, results):
        tensors = [backends.to_torch(r) for r in results]
        if name == spoil and not simple:
            tensors[0].as_strided((1,), (1,), 5).fill_(float("nan"))
        return tensors

    def match(fa, fb, mask_a, mask_b, beta, normalize, simple, sigma, indexed, *kernels):
        beta = backends.beta_per_image(beta, fa.shape[0])
        results = module.match(
            *convert((fa, fb, mask_a, mask_b)), beta, normalize, simple, sigma, indexed, **named("match", *kernels)
        )
        return spoiled("match", simple, results)

    def match_backward(
        grad_flow, grad_lse, fa, fb, mask_a, mask_b, beta, flow, lse, normalize, simple, *need, portable
    ):
        beta = backends.beta_per_image(beta, fa.shape[0])
        arrays = convert((fa, fb, mask_a, mask_b)), convert((flow, lse, grad_flow, grad_lse))
        results = module.match_backward(*arrays[0], beta, *arrays[1], normalize, simple, need, portable=portable)
        return spoiled("match_backward", simple, results)

    def match_both(fa, fb, mask_a, mask_b, beta, normalize, simple, *kernels):
        beta = backends.beta_per_image(beta, fa.shape[0])
        arrays = convert((fa, fb, mask_a, mask_b))
        results = module.match_both(*arrays, beta, normalize, simple, **named("match_both", *kernels))
        return spoiled("match_both", simple, results)

    def match_both_backward(*arguments, portable):
        incoming, (fa, fb, mask_a, mask_b, beta), saved = arguments[:4], arguments[4:9], arguments[9:13]
        normalize, simple, *need = arguments[13:]
        beta = backends.beta_per_image(beta, fa.shape[0])
        results = module.match_both_backward(
            *convert((fa, fb, mask_a, mask_b)), beta, convert(saved), convert(incoming), normalize, simple, need,
            portable=portable,
        )  # fmt: skip
        return spoiled("match_both_backward", simple, results)

    def transfer(fa, fb, values, mask_a, mask_b, beta, normalize, simple, *kernels):
        beta = backends.beta_per_image(beta, fa.shape[0])
        arrays = convert((fa, fb, values, mask_a, mask_b))
        results = module.transfer(*arrays, beta, normalize, simple, **named("transfer", *kernels))
        return spoiled("transfer", simple, results)

    def transfer_backward(grad, fa, fb, values, mask_a, mask_b, beta, out, lse, normalize, simple, *need, portable):
        beta = backends.beta_per_image(beta, fa.shape[0])
        arrays = convert((grad, fa, fb, values, mask_a, mask_b)), convert((out, lse))
        results = module.transfer_backward(*arrays[0], beta, *arrays[1], normalize, simple, need, portable=portable)
        return spoiled("transfer_backward", simple, results)

    def soft_argmax(corr, mask_b, beta, simple, *options):
        beta = backends.beta_per_image(beta, corr.shape[0])
        return spoiled("soft_argmax", simple, module.soft_argmax(*convert((corr, mask_b)), beta, simple, *options))

    def soft_argmax_backward(grad_flow, grad_lse, corr, mask_b, beta, flow, lse, simple, *rest):
        beta = backends.beta_per_image(beta, corr.shape[0])
        arrays = convert((corr, mask_b)), convert((flow, lse, grad_flow, grad_lse))
        results = module.soft_argmax_backward(*arrays[0], beta, *arrays[1], simple, rest[:3], *convert(rest[3:]))
        return spoiled("soft_argmax_backward", simple, results)

    def correlation(fa, fb, normalize, relu, simple, *kernels):
        options = named("correlation", *kernels)
        volume = module.correlation(*convert((fa, fb)), normalize, relu, simple, **options)
        return spoiled("correlation", simple, [volume])[0]

    def correlation_backward(grad, fa, fb, corr, normalize, relu, simple, *need, portable):
        arrays = convert((grad, fa, fb, corr))
        results = module.correlation_backward(*arrays, normalize, relu, simple, need, portable=portable)
        return spoiled("correlation_backward", simple, results)

    def local_correlation(fa, fb, flow, radius, normalize, simple):
        out = module.local_correlation(*convert((fa, fb, flow)), radius, normalize, simple)
        return spoiled("local_correlation", simple, [out])[0]

    def local_correlation_backward(grad, fa, fb, flow, radius, normalize, deterministic, *need_and_simple):
        *need, simple = need_and_simple
        arrays = convert((grad, fa, fb, flow))
        results = module.local_correlation_backward(*arrays, radius, normalize, deterministic, need, simple)
        return spoiled("local_correlation_backward", simple, results)

    def warp(x, flow, mode, padding, simple):
        return spoiled("warp", simple, module.warp(*convert((x, flow)), mode, padding, simple))

    def warp_backward(grad, x, flow, *options):
        return spoiled("warp_backward", options[-1], module.warp_backward(*convert((grad, x, flow)), *options))

    def cycle_error(flow_ab, flow_ba, simple):
        return spoiled("cycle_error", simple, module.cycle_error(*convert((flow_ab, flow_ba)), simple))

    def cycle_error_backward(grad, flow_ab, flow_ba, *options):
        results = module.cycle_error_backward(*convert((grad, flow_ab, flow_ba)), *options)
        return spoiled("cycle_error_backward", options[-1], results)

    found = (match, match_backward, match_both, match_both_backward, soft_argmax, soft_argmax_backward, correlation)
    found += (correlation_backward, local_correlation, local_correlation_backward, transfer, transfer_backward)
    found += (warp, warp_backward, cycle_error, cycle_error_backward)
    return types.SimpleNamespace(**{f.__name__: f for f in found})


ALL_CASES = [(op, path, *case) for (op, path), cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("op", "path", "dtype", "precision"), ALL_CASES, ids=lambda v: str(v).removeprefix("torch."))
def test_fast_agrees_with_simple(op, path, dtype, precision):
    sizes = _self_check.sizes_of(op, path, small=True)
    assert _self_check.agrees(op, path, torch.empty(0, dtype=dtype), precision, hostsim_operators(), sizes)


@pytest.mark.parametrize("part", ["", "_backward"])
@pytest.mark.parametrize(("op", "path"), CASES)
def test_one_wrong_value_is_noticed(op, path, part):
    sizes = _self_check.sizes_of(op, path)[:1]
    dtype, precision = CASES[op, path][-1]
    spoilt = hostsim_operators(spoil=op + part)
    assert not _self_check.agrees(op, path, torch.empty(0, dtype=dtype), precision, spoilt, sizes)


def test_every_operation_is_checked_in_every_dtype():
    for op in _self_check.PROBLEMS:
        assert {dtype for dtype, _ in CASES[op, PORTABLE]} == set(_checks.FLOATING)
    assert {op for op, _ in CASES} == set(_self_check.PROBLEMS)
    assert {case[2:] for case in ALL_CASES} == set(_self_check.TOLERANCES)


@pytest.fixture
def pretend_gpu(monkeypatch):
    """A CUDA device to decide about; no kernel runs."""
    monkeypatch.setattr(_trust, "_agreed", {})
    monkeypatch.setattr(_trust, "_chosen", {})
    monkeypatch.setattr(_log, "_said", set())
    for variable in ("COSEGFLOW_SIMPLE", "COSEGFLOW_PORTABLE", "COSEGFLOW_LOG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "pretended")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(_trust._library, "HAS_SM90A", True)
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: torch.zeros(*a, **k))
    return torch.device("cuda", 0)


@pytest.fixture
def said(pretend_gpu, monkeypatch, capsys):
    """The lines of COSEGFLOW_LOG=1."""
    monkeypatch.setenv("COSEGFLOW_LOG", "1")
    _log.wanted.cache_clear()
    yield lambda: capsys.readouterr().err.splitlines()
    _log.wanted.cache_clear()


def checks_say(monkeypatch, **answers):
    """Checks that give these answers by path; returns the list of (operation, path, precision) that they were asked."""
    calls = []

    def agrees(op, path, like, precision):
        calls.append((op, path, precision))
        return answers[path]

    monkeypatch.setattr(_trust, "agrees", agrees)
    return calls


HALF, FLOAT = torch.float16, torch.float32


def test_both_paths_are_checked_once(pretend_gpu, monkeypatch):
    calls = checks_say(monkeypatch, portable=True, hopper=True)
    for _ in range(2):
        assert _trust.choose("match", HALF, pretend_gpu) == FAST
    assert calls == [("match", PORTABLE, 0), ("match", HOPPER, 0)]


def test_precisions_of_float32_are_checked_by_themselves(pretend_gpu, monkeypatch):
    calls = checks_say(monkeypatch, portable=True, hopper=True)
    for precision in (0, 1, 2, 1):
        assert _trust.choose("match", FLOAT, pretend_gpu, precision) == FAST
    hopper = [("match", path, p) for p in (1, 2) for path in (PORTABLE, HOPPER)]
    assert calls == [("match", PORTABLE, 0), *hopper]  # "highest" has no kernel of Hopper's own


def test_disagreement_warns_once_and_falls_back(pretend_gpu, monkeypatch, said):
    checks_say(monkeypatch, portable=False, hopper=True)
    with pytest.warns(RuntimeWarning, match="fast CUDA kernels of match for torch.float16 disagree.*simple ones are"):
        assert _trust.choose("match", HALF, pretend_gpu) == SIMPLE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _trust.choose("match", HALF, pretend_gpu) == SIMPLE
    reason = "the fast ones disagree with the simple ones for float16"
    assert said() == [f"cosegflow: match: simple kernels: {reason}"]


def test_hoppers_own_kernels_fall_back_to_the_portable_ones(pretend_gpu, monkeypatch, said):
    checks_say(monkeypatch, portable=True, hopper=False)
    with pytest.warns(
        RuntimeWarning, match="sm_90 CUDA kernels of match for torch.float32 high disagree.*portable ones"
    ):
        assert _trust.choose("match", FLOAT, pretend_gpu, 1) == PORTABLE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _trust.choose("match", FLOAT, pretend_gpu, 1) == PORTABLE
    reason = "those of sm_90 disagree with the simple ones for float32 high"
    assert said() == [f"cosegflow: match: portable kernels: {reason}"]
    assert _trust.choose("match", FLOAT, pretend_gpu, 0) == FAST  # which here are the portable ones


def test_no_check_while_capturing(pretend_gpu, monkeypatch, said):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(_trust, "agrees", lambda *a: pytest.fail("a check ran during capture"))
    assert _trust.choose("match", HALF, pretend_gpu) == SIMPLE
    assert _trust._agreed == {} and _trust._chosen == {}
    _trust._agreed["match", PORTABLE, HALF, 0, 0] = True
    assert _trust.choose("match", HALF, pretend_gpu) == PORTABLE
    lines = said()
    assert len(lines) == 2 and all("a stream is being captured" in line and "warmup" in line for line in lines)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    checks_say(monkeypatch, portable=True, hopper=True)
    assert _trust.choose("match", HALF, pretend_gpu) == FAST


def test_verified_paths_need_no_check(pretend_gpu, monkeypatch):
    portable, hopper = ("match", PORTABLE, "sm_90"), ("match", HOPPER, "sm_90")
    monkeypatch.setattr(_trust, "VERIFIED", frozenset({portable, hopper}))
    monkeypatch.setattr(_trust, "agrees", lambda *a: pytest.fail("a check ran"))
    assert _trust.choose("match", HALF, pretend_gpu) == FAST
    monkeypatch.setattr(_trust, "_chosen", {})
    monkeypatch.setattr(_trust, "VERIFIED", frozenset({hopper}))
    calls = checks_say(monkeypatch, portable=True, hopper=False)
    assert _trust.choose("match", HALF, pretend_gpu) == FAST
    assert calls == [("match", PORTABLE, 0)]  # each path has its own evidence


def test_the_environment_forces_the_simple_kernels(monkeypatch):
    monkeypatch.setenv("COSEGFLOW_SIMPLE", "1")
    assert _trust.choose("match", FLOAT, torch.device("cpu")) == SIMPLE
    monkeypatch.setenv("COSEGFLOW_SIMPLE", "0")
    assert _trust.choose("match", FLOAT, torch.device("cpu")) == FAST
    fa = torch.randn(1, 8, 3, 4)
    assert cosegflow.match(fa, fa).flow.shape == (1, 2, 3, 4)


def test_the_environment_leaves_out_hoppers_own_kernels(pretend_gpu, monkeypatch, said):
    monkeypatch.setenv("COSEGFLOW_PORTABLE", "1")
    calls = checks_say(monkeypatch, portable=True)
    assert _trust.choose("match", HALF, pretend_gpu) == PORTABLE
    assert calls == [("match", PORTABLE, 0)]
    assert said() == ["cosegflow: match: portable kernels: COSEGFLOW_PORTABLE is set"]
    monkeypatch.delenv("COSEGFLOW_PORTABLE")
    checks_say(monkeypatch, portable=True, hopper=True)
    assert _trust.choose("match", HALF, pretend_gpu) == FAST


def test_a_build_without_hoppers_kernels_has_none_to_check(pretend_gpu, monkeypatch, said):
    monkeypatch.setattr(_trust._library, "HAS_SM90A", False)
    checks_say(monkeypatch, portable=True)
    assert _trust.choose("match", HALF, pretend_gpu) == PORTABLE
    assert "TORCH_CUDA_ARCH_LIST" in said()[0]


@pytest.mark.parametrize("capability", [(8, 0), (10, 0)])
def test_other_architectures_have_the_portable_kernels(pretend_gpu, monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    calls = checks_say(monkeypatch, portable=True)
    assert _trust.choose("match", HALF, pretend_gpu) == FAST
    assert calls == [("match", PORTABLE, 0)]


def test_old_architectures_take_the_simple_kernels(pretend_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(_trust, "agrees", lambda *a: pytest.fail("a check ran"))
    assert _trust.choose("match", HALF, pretend_gpu) == SIMPLE


def test_nothing_is_said_unasked(pretend_gpu, monkeypatch, capsys):
    monkeypatch.setenv("COSEGFLOW_PORTABLE", "1")
    _log.wanted.cache_clear()
    checks_say(monkeypatch, portable=True)
    assert _trust.choose("match", HALF, pretend_gpu) == PORTABLE
    assert capsys.readouterr().err == ""


def test_warmup_checks_every_case(pretend_gpu, monkeypatch):
    calls = checks_say(monkeypatch, portable=True, hopper=True)
    cosegflow.warmup()
    assert len(calls) == len(ALL_CASES)
    assert {(op, path) for op, path, _ in calls} == set(CASES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_warmup():
    cosegflow.warmup()
    assert len(_trust._agreed) + len(_trust.VERIFIED) >= len(_self_check.PROBLEMS)

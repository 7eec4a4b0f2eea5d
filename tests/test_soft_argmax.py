"""soft_argmax on every backend, against reference.soft_argmax in float64."""

import pytest
import torch
from errors import EPS, assert_close, assert_no_worse
from test_match import MASKS, leaf, masks, slack_of

import cosegflow
from cosegflow import reference

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# (B, Ha, Wa, Hb, Wb)
SHAPES = [(1, 1, 1, 1, 1), (2, 5, 7, 4, 6), (1, 1, 13, 11, 1), (1, 3, 2, 17, 19), (2, 2, 3, 32, 33), (1, 40, 3, 2, 2)]
NAMES = ("flow", "lse", "confidence", "grad corr", "grad mask_b", "grad beta")


def run(function, corr, mask_b, beta, grads, *options):
    flow, lse, confidence = function(corr, mask_b, beta, *options)
    torch.autograd.backward((flow, lse), [g.to(flow.dtype) for g in grads])
    return [flow.detach(), lse.detach(), confidence.detach(), corr.grad, None if mask_b is None else mask_b.grad,
            beta.grad]  # fmt: skip


def compare(backend, shape, kind, dtype, beta, simple=False, oracle=reference.soft_argmax):
    """kind: of masks, or mask_b itself."""
    batch, ha, wa, hb, wb = shape
    mask_b = masks(kind, batch, ha, wa, hb, wb)[1] if isinstance(kind, str) else kind
    corr = torch.randn(shape).to(dtype)
    if mask_b is not None:  # excluded entries are never read into a result
        corr.masked_fill_(~(mask_b > 0)[:, None, None], float("nan"))
    acc = reference.accumulate_dtype(dtype)
    beta = torch.as_tensor(beta, dtype=torch.float64)
    grads = [torch.randn(batch, 2, ha, wa, dtype=torch.float64), torch.randn(batch, ha, wa, dtype=torch.float64)]
    exact = run(oracle, leaf(corr, torch.float64), leaf(mask_b), leaf(beta), grads)
    nothing = torch.isneginf(exact[1])
    spoiled = [torch.where(nothing.unsqueeze(1), float("nan"), grads[0]), torch.where(nothing, float("inf"), grads[1])]
    actual = run(backend.soft_argmax, leaf(corr), leaf(mask_b), leaf(beta, acc), spoiled, simple)
    plain = run(oracle, leaf(corr), leaf(mask_b), leaf(beta, acc), grads)
    for name, a, p, e in zip(NAMES, actual, plain, exact, strict=True):
        if e is None:
            assert a is None, name
            continue
        e = e.double()
        if name == "grad mask_b" and isinstance(kind, str) and kind == "wild":
            usual = (mask_b > 1e-3) & (mask_b < 1e3)
            a, p, e = (torch.where(usual, t.double(), 0.0) for t in (a, p, e))
        if dtype == torch.float64:
            assert_close(a, e, 1e-10, name)
        else:
            assert_no_worse(a, p, e, slack_of(name, exact[1]) * EPS[torch.float32], name)
    if mask_b is not None:  # exactly 0, not NaN * 0
        assert torch.equal(
            actual[3].masked_select(~(mask_b > 0)[:, None, None]).abs().sum(), torch.zeros((), dtype=dtype)
        )


@pytest.mark.parametrize("simple", [False, True], ids=["fast", "simple"])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("kind", MASKS)
def test_masks(backend, kind, dtype, simple):
    if simple and backend.name == "cpu":
        pytest.skip("the CPU has one kernel")
    compare(backend, (2, 6, 7, 5, 9), kind, dtype, 3.0, simple)


@pytest.mark.parametrize("simple", [False, True], ids=["fast", "simple"])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(backend, shape, dtype, simple):
    if simple and backend.name == "cpu":
        pytest.skip("the CPU has one kernel")
    compare(backend, shape, "none", dtype, 2.0, simple)
    compare(backend, shape, "holes", dtype, 2.0, simple)


# Rows of whole 16-byte words, which lie in columns of b, in its image rows, and across their ends, one or several; of a
# warp, and of a team of warps.
WORDS = [(1, 2, 2, 64, 64), (2, 1, 3, 24, 40), (1, 3, 3, 20, 20), (1, 2, 2, 6, 4), (1, 1, 3, 128, 72)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", WORDS)
def test_words(backend, shape, dtype):
    compare(backend, shape, "none", dtype, 2.0)
    compare(backend, shape, "none", dtype, -3.0)
    batch, _, _, hb, wb = shape
    sparse = torch.zeros(batch, hb, wb)  # most words have no target
    sparse[:, hb // 3 : hb // 2, wb // 4 : wb // 2] = torch.rand(hb // 2 - hb // 3, wb // 2 - wb // 4) + 0.05
    sparse[0, hb - 1, wb - 1] = 0.5
    compare(backend, shape, sparse, dtype, 2.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("targets", [(24, 32), (18, 20), (96, 96), (7, 9)])
def test_index_of_ties(backend, targets, dtype):
    """The lowest, within a word, in different words, lanes and warps; with and without a mask."""
    corr = (torch.randn(1, 3, 4, *targets) * 1.5).round().div(2).to(dtype)
    mask = (torch.rand(1, *targets) < 0.4).float()
    for beta in (0.0, 4.0, -4.0):
        for m in (None, mask):
            scale = torch.tensor(beta, dtype=reference.accumulate_dtype(dtype))
            logits = beta * corr.double().flatten(3)
            if m is not None:
                logits.masked_fill_(m.flatten() == 0, -float("inf"))
            expected = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)  # the first
            index, score = backend.soft_argmax_indexed(corr, m, scale)[3:]
            assert torch.equal(index, expected)
            assert torch.equal(score.double(), corr.double().flatten(3).gather(-1, expected.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("beta", [3e38, -3e38, 1e30, 1e9, 1e8])
@pytest.mark.parametrize("targets", [(1, 3), (4, 8), (3, 8)])
def test_huge_beta(backend, beta, targets):
    """Never NaN while float32 can hold beta * s."""
    corr = torch.full((1, 1, 2, *targets), -1.1)
    corr[..., 0, 0] = 1.1
    best = 0 if beta > 0 else 1
    for mask in (None, torch.ones(1, *targets), torch.full((1, *targets), 0.5)):
        for sigma in (0.0, 2.0):
            leaves = leaf(corr), torch.tensor(beta, requires_grad=True)
            result = backend.soft_argmax_indexed(leaves[0], mask, leaves[1], sigma)
            torch.autograd.backward(result[:2], [torch.ones_like(t) for t in result[:2]])
            assert all(bool(torch.isfinite(t).all()) for t in (*result, leaves[1].grad))
            assert not bool(torch.isnan(leaves[0].grad).any())  # beta times a gradient may be infinite
            assert bool((result[3] == best).all())
            if beta > 0:  # one target has it all
                assert_close(result[2], torch.ones_like(result[2]), 1e-5)
                if backend.name != "cpu":  # whose backward may round a logit in another way than its forward
                    assert_close(leaves[1].grad, torch.tensor(2.2), 1e-5)


@pytest.mark.parametrize("beta", [0.0, -7.5, 100.0, [3.0, -4.0]], ids=str)
def test_beta(backend, beta):
    compare(backend, (2, 6, 5, 4, 7), "holes", torch.float64, beta)
    compare(backend, (2, 6, 5, 4, 7), "holes", torch.float32, beta)


def test_gradcheck(backend):
    corr = torch.randn(2, 2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[[0.5, 0.0], [1.0, 2.0], [0.3, 0.7]]] * 2, dtype=torch.float64)
    weights = torch.randn(2, 2, 2, 3, dtype=torch.float64)
    beta = torch.tensor([1.5, -0.5], dtype=torch.float64, requires_grad=True)

    def scalar(corr, beta):
        flow, lse, _ = backend.soft_argmax(corr, mask, beta)
        return (flow * weights).sum() + lse.square().sum()

    assert torch.autograd.gradcheck(scalar, (corr, beta))


def test_not_contiguous(backend):
    corr = torch.randn(2, 4, 3, 5, 6)
    expected = backend.soft_argmax(corr, None, torch.tensor(2.0))
    strided = corr.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    for a, e in zip(backend.soft_argmax(strided, None, torch.tensor(2.0)), expected, strict=True):
        assert_close(a, e, 1e-6)


@pytest.mark.parametrize("targets", [(4, 8), (5, 7)])
def test_excluded_targets_get_no_part_of_an_infinite_gradient(backend, targets):
    corr = torch.randn(1, 1, 3, *targets).requires_grad_()
    mask = torch.ones(1, *targets)
    mask[:, 1, 2:5] = 0
    flow, _, _ = backend.soft_argmax(corr, mask, torch.tensor(2.0))
    flow.backward(torch.tensor([float("inf"), 1.0, 1.0]).expand_as(flow))
    excluded = corr.grad[..., 1, 2:5]
    assert torch.equal(excluded, torch.zeros_like(excluded))
    assert not bool(torch.isfinite(corr.grad[0, 0, 0, 0]).any()) and bool(torch.isfinite(corr.grad[0, 0, 1:]).all())


def test_one_hot_gives_the_position(backend):
    corr = torch.zeros(1, 2, 3, 4, 5)
    corr[0, 1, 2, 3, 4] = 1
    flow, lse, confidence = backend.soft_argmax(corr, None, torch.tensor(100.0))
    assert torch.equal(flow[0, :, 1, 2], torch.tensor([4.0 - 2.0, 3.0 - 1.0]))
    assert_close(lse[0, 1, 2], torch.tensor(100.0), 1e-6)
    assert_close(confidence[0, 1, 2], torch.tensor(1.0), 1e-6)


def test_nan_of_an_included_entry_comes_out(backend):
    corr = torch.randn(1, 2, 2, 3, 3)
    corr[0, 0, 1, 2, 2] = float("nan")
    flow, _, _ = backend.soft_argmax(corr, None, torch.tensor(1.0))
    assert bool(torch.isnan(flow[0, :, 0, 1]).all())
    assert bool(torch.isfinite(flow[0, :, 1]).all())


def test_empty_batch(backend):
    flow, lse, _ = backend.soft_argmax(torch.zeros(0, 2, 3, 4, 5), None, torch.tensor(1.0))
    assert flow.shape == (0, 2, 2, 3) and lse.shape == (0, 2, 3)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"corr must have shape \(B, Ha, Wa, Hb, Wb\).*got \(2, 3\)"):
        cosegflow.soft_argmax(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"corr must be float16.*got torch.int64"):
        cosegflow.soft_argmax(torch.zeros(1, 2, 2, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"mask_b must have shape \(1, 4, 5\) or \(1, 1, 4, 5\), got \(4, 5\)"):
        cosegflow.soft_argmax(torch.zeros(1, 2, 3, 4, 5), torch.zeros(4, 5))

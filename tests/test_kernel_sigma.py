"""The kernel soft argmax (kernel_sigma) of match and soft_argmax on every backend, against the reference in float64."""

from functools import partial
from types import SimpleNamespace

import pytest
import test_match
import test_soft_argmax
import torch
from errors import assert_close
from test_match import FLOATING, INF, MASKS, NAN, features, leaf, masks

import cosegflow
from cosegflow import reference

SIMPLE = pytest.mark.parametrize("simple", [False, True], ids=["fast", "simple"])


def windowed(backend, sigma):
    """The backend, with windows in its match and soft_argmax."""

    def match(fa, fb, mask_a, mask_b, beta, normalize=True, simple=False, chunk_bytes=0):
        options = {"normalize": normalize, "sigma": sigma, "simple": simple, "chunk_bytes": chunk_bytes}
        return backend.match_indexed(fa, fb, mask_a, mask_b, beta, **options)[:3]

    def soft_argmax(corr, mask_b, beta, simple=False):
        return backend.soft_argmax_indexed(corr, mask_b, beta, sigma, simple)[:3]

    return SimpleNamespace(name=backend.name, match=match, soft_argmax=soft_argmax)


def compare_match(backend, shape, kind, dtype, beta, sigma=1.7, **options):
    oracle = partial(reference.match, kernel_sigma=sigma)
    test_match.compare(windowed(backend, sigma), shape, kind, dtype, beta, oracle=oracle, **options)


def compare_soft_argmax(backend, shape, kind, dtype, beta, sigma=1.7, simple=False):
    oracle = partial(reference.soft_argmax, kernel_sigma=sigma)
    test_soft_argmax.compare(windowed(backend, sigma), shape, kind, dtype, beta, simple, oracle)


@SIMPLE
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("kind", MASKS)
def test_masks(backend, kind, dtype, simple):
    if simple and backend.name == "cpu":
        pytest.skip("the CPU has one kernel")
    compare_match(backend, (2, 19, 6, 7, 5, 9), kind, dtype, 8.0, simple=simple)


@SIMPLE
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("kind", MASKS)
def test_soft_argmax_masks(backend, kind, dtype, simple):
    if simple and backend.name == "cpu":
        pytest.skip("the CPU has one kernel")
    compare_soft_argmax(backend, (2, 6, 7, 5, 9), kind, dtype, 3.0, simple=simple)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*test_match.SHAPES, (1, 8, 4, 33, 19, 29)])
def test_shapes(backend, shape, dtype):
    for kind in ("none", "holes"):
        compare_match(backend, shape, kind, dtype, 15.0)
        compare_soft_argmax(backend, (shape[0], *shape[2:]), kind, dtype, 2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("targets", [(47, 53), (1, 8200), (64, 64)])
def test_many_targets(backend, targets, dtype):
    """Rows of several tiles, of a block and of a warp, aligned and not."""
    compare_soft_argmax(backend, (1, 2, 3, *targets), "holes", dtype, 2.0, sigma=5.0)
    compare_match(backend, (1, 8, 2, 3, *targets), "holes", dtype, 9.0, sigma=5.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("targets", [(16, 16), (12, 40), (130, 128), (2, 4096)])
def test_rows_in_shared_memory(backend, targets, dtype):
    """cuda: rows that are kept, by a warp and by several; longer ones, and ones whose tables are too large."""
    for beta in (2.0, -3.0):
        compare_soft_argmax(backend, (1, 1, 3, *targets), "none", dtype, beta, sigma=4.0)
    mask = torch.zeros(1, *targets)
    mask[:, targets[0] // 3 :, targets[1] // 4 : targets[1] // 2] = 0.5
    compare_soft_argmax(backend, (1, 1, 3, *targets), mask, dtype, 2.0, sigma=4.0)


def test_rows_whose_scores_are_not_kept():
    """cpu: more targets than the scores of a tile of rows are kept for; they are computed twice."""
    import backends

    compare_match(backends.Torch("cpu"), (1, 5, 3, 47, 83, 67), "soft", torch.float32, 9.0, sigma=4.0)
    compare_match(backends.Torch("cpu"), (1, 5, 3, 47, 53, 67), "soft", torch.float64, 9.0, sigma=4.0)


@pytest.mark.parametrize("beta", [0.0, -7.5, 100.0, [3.0, -4.0]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_beta(backend, beta, dtype):
    """Also negative, where the window is around the least score, and per image."""
    compare_match(backend, (2, 12, 6, 5, 4, 7), "holes", dtype, beta)
    compare_soft_argmax(backend, (2, 6, 5, 4, 7), "holes", dtype, beta)


@pytest.mark.parametrize("sigma", [1e-300, 1e-30, 0.05, 0.5, 5.0, 1e30, 1e300])
def test_sigma(backend, sigma):
    compare_match(backend, (1, 12, 6, 5, 7, 9), "soft", torch.float32, 6.0, sigma)
    compare_soft_argmax(backend, (1, 6, 5, 7, 9), "soft", torch.float32, 6.0, sigma)


def test_backward_in_chunks():
    """hostsim: a workspace too small for all rows at once gives the same gradients."""
    import backends

    for chunk_bytes in (1, 3_000):
        options = {"chunk_bytes": chunk_bytes}
        compare_match(backends.Hostsim(), (2, 6, 5, 7, 4, 6), "holes", torch.float32, 10.0, **options)


@pytest.mark.parametrize("order, seed", [("reverse", 0), ("random", 1), ("random", 2)])
def test_bits_do_not_depend_on_the_order_of_threads(order, seed):
    import backends

    module, backend = backends.hostsim_module(), windowed(backends.Hostsim(), 2.0)
    fa, fb = features(1, 8, 5, 6, 10, 13, torch.float32)
    corr = torch.randn(1, 5, 6, 32, 33)
    _, mask_b = masks("holes", 1, 5, 6, 10, 13)
    _, mask_c = masks("holes", 1, 5, 6, 32, 33)
    grads = [torch.randn(1, 2, 5, 6), torch.randn(1, 5, 6)]

    def results():
        beta = torch.tensor(9.0)
        first = test_match.run(backend.match, leaf(fa), leaf(fb), None, leaf(mask_b), leaf(beta), grads)
        return first + test_soft_argmax.run(backend.soft_argmax, leaf(corr), leaf(mask_c), leaf(beta), grads)

    expected = results()
    module.set_order(order, seed)
    try:
        actual = results()
    finally:
        module.set_order("forward", 0)
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize("beta", [3e38, -3e38, 1e30])
@pytest.mark.parametrize("targets", [1, 3, 37])
def test_huge_beta(backend, beta, targets):
    """Never NaN while float32 can hold beta * s, and the index is that of the extreme score."""
    fa, fb = torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, targets), -1.1)
    fb[..., 0] = 1.0
    best = 0 if beta > 0 or targets == 1 else 1
    for mask in (None, torch.ones(1, 1, targets), torch.full((1, 1, targets), 0.5)):
        for sigma in (0.0, 2.0):
            beta_leaf = torch.tensor(beta, requires_grad=True)
            result = backend.match_indexed(fa, fb, None, mask, beta_leaf, False, sigma)
            result[0].sum().backward()
            assert all(bool(torch.isfinite(t).all()) for t in (*result, beta_leaf.grad))
            assert bool((result[3] == best).all())


def test_the_window_ignores_a_far_second_peak(backend):
    """What the window is for: of two peaks the higher one is the answer, not a point between them."""
    corr = torch.zeros(1, 1, 1, 1, 41)
    corr[..., 4], corr[..., 36] = 1.0, 0.99
    flow, _, _, index, score = backend.soft_argmax_indexed(corr, None, torch.tensor(50.0), sigma=2.0)
    assert index.item() == 4 and score.item() == 1.0 and abs(flow[0, 0].item() - 4) < 1e-3
    flow = backend.soft_argmax(corr, None, torch.tensor(50.0))[0]
    assert flow[0, 0].item() > 10


def test_index_and_score_are_of_the_plain_distribution(backend):
    fa, fb = features(2, 12, 6, 5, 7, 9, torch.float64)
    _, mask = masks("soft", 2, 6, 5, 7, 9)
    beta = torch.tensor(-6.0).double()
    plain = backend.match_indexed(fa, fb, None, mask, beta)
    window = backend.match_indexed(fa, fb, None, mask, beta, sigma=1.5)
    assert torch.equal(plain[3], window[3])
    assert_close(window[4], plain[4], 1e-12)
    assert not torch.equal(plain[0], window[0])


def test_nan_of_an_included_entry_comes_out(backend):
    corr = torch.randn(1, 2, 2, 3, 3)
    corr[0, 0, 1, 2, 2] = NAN
    corr[0, 1, 1] = NAN
    flow = backend.soft_argmax_indexed(corr, None, torch.tensor(1.0), 1.0)[0]
    assert bool(torch.isnan(flow[0, :, 0, 1]).all()) and bool(torch.isnan(flow[0, :, 1, 1]).all())
    assert bool(torch.isfinite(flow[0, :, :, 0]).all())


# ---- the operators: what torch wants of them ----------------------------------------------------------------------


def match_inputs():
    mask_a = (torch.rand(2, 4, 3) < 0.8).double()
    mask_b = torch.rand(2, 2, 5, dtype=torch.float64) * 0.9 + 0.1
    mask_b[:, 0, 1] = -1.0  # a hole of 0 is no place for differences
    beta = torch.tensor([3.0, -2.0]).double()
    fa, fb = torch.randn(2, 5, 4, 3, dtype=torch.float64), torch.randn(2, 5, 2, 5, dtype=torch.float64)
    return [t.requires_grad_() if t is not mask_a else t for t in (fa, fb, mask_a, mask_b, beta)]


def soft_argmax_inputs():
    mask_b = torch.rand(2, 4, 3, dtype=torch.float64) * 0.9 + 0.1
    mask_b[:, 1, 1] = -1.0
    corr = torch.randn(2, 3, 2, 4, 3, dtype=torch.float64)
    return [t.requires_grad_() for t in (corr, mask_b, torch.tensor(1.5).double())]


def call_match(sigma, fa, fb, mask_a, mask_b, beta):
    return cosegflow.match(fa, fb, mask_a, mask_b, beta=beta, kernel_sigma=sigma, return_index=True)


def call_soft_argmax(sigma, corr, mask_b, beta):
    return cosegflow.soft_argmax(corr, mask_b, beta=beta, kernel_sigma=sigma, return_index=True)


OPS = {"match": (match_inputs, call_match), "soft_argmax": (soft_argmax_inputs, call_soft_argmax)}
EACH = pytest.mark.parametrize("op", OPS)
SIGMAS = pytest.mark.parametrize("sigma", [None, 1.3])


def weighted_sum(matches):
    """A scalar of flow and lse, where lse is finite."""
    flow, lse = matches[:2]
    weights = torch.arange(flow.numel(), dtype=flow.dtype).reshape(flow.shape) / flow.numel() - 0.4
    return (flow * weights).sum() + (torch.where(torch.isfinite(lse), lse, 0.0) * weights[:, 0]).sum()


@EACH
@SIGMAS
def test_gradcheck(op, sigma):
    make, call = OPS[op]
    inputs = make()
    assert torch.autograd.gradcheck(lambda *i: weighted_sum(call(sigma, *i)), inputs)
    # By random projections: all of it takes a minute and a half for match.
    assert torch.autograd.gradgradcheck(lambda *i: weighted_sum(call(sigma, *i)), inputs, fast_mode=True)


@EACH
@SIGMAS
def test_opcheck(op, sigma):
    make, _ = OPS[op]
    inputs, middle = make(), ((True, False) if op == "match" else (False,))
    operator = getattr(torch.ops.cosegflow, op).default
    torch.library.opcheck(operator, (*inputs, *middle, sigma or 0.0, True))
    inputs = [i.detach() for i in inputs]
    flow, lse, _, index, _ = operator(*inputs, *middle, sigma or 0.0, True)
    need = (True,) * (4 if op == "match" else 3)
    arguments = (torch.randn_like(flow), torch.randn_like(lse), *inputs, flow, lse, *middle, *need)
    backward = getattr(torch.ops.cosegflow, f"{op}_backward").default
    torch.library.opcheck(backward, (*arguments, index if sigma else None, sigma or 0.0))


@EACH
@SIGMAS
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(op, sigma, dynamic):
    torch._dynamo.reset()
    make, call = OPS[op]
    inputs = make()
    leaves = [i for i in inputs if i.requires_grad]
    compiled = torch.compile(partial(call, sigma), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected, actual = call(sigma, *inputs), compiled(*inputs)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    for a, e in zip(torch.autograd.grad(weighted_sum(actual), leaves),
                    torch.autograd.grad(weighted_sum(expected), leaves), strict=True):  # fmt: skip
        assert torch.equal(a, e)


def test_compile_with_a_changing_sigma():
    torch._dynamo.reset()
    corr = torch.randn(2, 3, 2, 4, 3)
    compiled = torch.compile(
        lambda s: cosegflow.soft_argmax(corr, kernel_sigma=s).flow, fullgraph=True, backend="aot_eager"
    )
    for sigma in (1.0, 2.0, 3.5):
        assert torch.equal(compiled(sigma), cosegflow.soft_argmax(corr, kernel_sigma=sigma).flow)


@EACH
def test_fake_matches_real(op):
    make, call = OPS[op]
    inputs = [i.detach() for i in make()]
    for r, m in zip(call(2.0, *inputs), call(2.0, *(i.to("meta") for i in inputs)), strict=True):
        assert r.shape == m.shape and r.dtype == m.dtype and r.stride() == m.stride()


@EACH
def test_transforms(op):
    """jvp and vmap: the reference, with windows."""
    make, call = OPS[op]
    inputs = [i.detach() for i in make()]
    differ = {"match": (0, 1, 3, 4), "soft_argmax": (0, 1, 2)}[op]
    tangents = [torch.randn_like(i) if k in differ else torch.zeros_like(i) for k, i in enumerate(inputs)]
    step = 1e-6
    plus = weighted_sum(call(1.3, *(i + step * t for i, t in zip(inputs, tangents, strict=True))))
    minus = weighted_sum(call(1.3, *(i - step * t for i, t in zip(inputs, tangents, strict=True))))
    _, tangent = torch.func.jvp(lambda *i: weighted_sum(call(1.3, *i)), tuple(inputs), tuple(tangents))
    assert_close(tangent, (plus - minus) / (2 * step), 1e-5)
    doubled = [torch.stack((i, i)) for i in inputs]
    for mapped, e in zip(torch.func.vmap(partial(call, 1.3))(*doubled), call(1.3, *inputs), strict=True):
        assert_close(mapped[1], e, 1e-12)


def test_autocast_casts_features_only():
    fa, fb = features(2, 32, 4, 5, 6, 3, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = cosegflow.match(fa, fb, beta=10.0, kernel_sigma=2.0)
    fa, fb = fa.bfloat16().double(), fb.bfloat16().double()
    expected = reference.match(fa, fb, None, None, torch.tensor(10.0), kernel_sigma=2.0)
    assert result.flow.dtype == torch.float32
    assert_close(result.flow, expected.flow, 1e-4)


@pytest.mark.parametrize("sigma", [0.0, -1.0, INF, NAN])
def test_wrong_sigma(sigma):
    fa = torch.zeros(1, 3, 4, 5)
    with pytest.raises(ValueError, match=r"kernel_sigma must be positive and finite \(pixels\), or None, got"):
        cosegflow.match(fa, fa, kernel_sigma=sigma)
    with pytest.raises(ValueError, match="kernel_sigma must be positive and finite"):
        cosegflow.soft_argmax(torch.zeros(1, 2, 2, 2, 2), kernel_sigma=sigma)


def test_wrong_type_of_sigma():
    for sigma in ("wide", True, torch.tensor(1.0)):
        with pytest.raises(TypeError, match="kernel_sigma must be a number or None, got"):
            cosegflow.match(torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 5), kernel_sigma=sigma)

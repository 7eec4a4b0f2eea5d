"""return_index of match and soft_argmax on every backend: the most probable target of the plain distribution."""

import backends
import pytest
import torch
from errors import assert_close
from test_match import FLOATING, INF, MASKS, NAN, SHAPES, features, masks, poison_excluded

import cosegflow
from cosegflow import reference
from cosegflow.types import IndexedMatches

OPS = ("match", "soft_argmax")
SIMPLE = pytest.mark.parametrize("simple", [False, True], ids=["fast", "simple"])


def skip_if_only_one(backend, simple):
    if simple and backend.name == "cpu":
        pytest.skip("the CPU has one kernel")


def call(backend, op, fa, fb, mask_a, mask_b, beta, simple=False, portable=False):
    """(IndexedMatches, scores (B, Na, Nb) in float64): soft_argmax gets the volume of the features, rounded."""
    volume = reference.correlation(fa.double().nan_to_num(0, 0, 0), fb.double().nan_to_num(0, 0, 0), True)
    if op == "match":
        result = backend.match_indexed(fa, fb, mask_a, mask_b, beta, simple=simple, portable=portable)
    else:
        volume = volume.to(fa.dtype)
        corr = volume.clone()
        if mask_b is not None:  # entries of excluded targets are never read into a result
            corr.masked_fill_(~(mask_b > 0)[:, None, None], NAN)
        result = backend.soft_argmax_indexed(corr, mask_b, beta, simple=simple)
    return IndexedMatches(*result), volume.double().flatten(3).flatten(1, 2)


def check(result, scores, mask_a, mask_b, beta, tolerance):
    """index is where the logit is the largest up to `tolerance`, score is the score there; -1 and -inf elsewhere."""
    index, score = result.index.flatten(1), result.score.double().flatten(1)
    assert index.dtype == torch.int64 and result.index.shape == result.score.shape == result.lse.shape
    assert result.score.dtype == result.lse.dtype
    allowed = torch.ones_like(scores, dtype=torch.bool)
    logits = beta.double().reshape(-1, 1, 1) * scores
    if mask_b is not None:
        weights = reference.mask_weights(mask_b, torch.float64).flatten(1).unsqueeze(1)
        allowed = (weights > 0).expand_as(scores)
        logits = logits + weights.log()
    if mask_a is not None:
        allowed = allowed & (mask_a.flatten(1) > 0).unsqueeze(-1)
    logits = logits.masked_fill(~allowed, -INF)
    nothing = ~allowed.any(-1)
    assert torch.equal(index == -1, nothing)
    assert torch.equal(torch.isneginf(score), nothing)
    assert torch.equal(torch.isneginf(result.lse.flatten(1)), nothing)
    if bool(nothing.all()):
        return
    at = index.clamp(min=0).unsqueeze(-1)
    assert bool((allowed.gather(-1, at).squeeze(-1) | nothing).all())
    gap = (logits.amax(-1) - logits.gather(-1, at).squeeze(-1))[~nothing].max().item()
    assert gap <= tolerance * max(1.0, logits[allowed].abs().max().item()), f"logit {gap} below the largest"
    assert_close(score[~nothing], scores.gather(-1, at).squeeze(-1)[~nothing], tolerance, "score")


@SIMPLE
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("kind", MASKS)
def test_masks(backend, op, kind, dtype, simple):
    skip_if_only_one(backend, simple)
    mask_a, mask_b = masks(kind, 2, 6, 7, 5, 9)
    fa, fb = features(2, 19, 6, 7, 5, 9, dtype)
    if op == "soft_argmax":
        mask_a = None
    poison_excluded(fa, fb, mask_a, mask_b)
    beta = torch.tensor(8.0, dtype=reference.accumulate_dtype(dtype))
    result, scores = call(backend, op, fa, fb, mask_a, mask_b, beta, simple)
    check(result, scores, mask_a, mask_b, beta, 1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 16, 23, 17, 19, 29), (1, 24, 3, 5, 47, 53)])
def test_shapes(backend, op, shape, dtype):
    """Also more sources, or more targets, than a tile holds, and than a block walks through without splits."""
    for kind in ("none", "holes"):
        _, mask_b = masks(kind, shape[0], *shape[2:])
        fa, fb = features(*shape, dtype)
        beta = torch.tensor(20.0)
        result, scores = call(backend, op, fa, fb, None, mask_b, beta)
        check(result, scores, None, mask_b, beta, 2e-6)


@SIMPLE
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("beta", [0.0, -7.5, 100.0, [3.0, -4.0], [0.0, 1e-30]], ids=str)
def test_beta(backend, op, beta, simple):
    """The largest beta s + log m: not the largest s where beta is not positive."""
    skip_if_only_one(backend, simple)
    _, mask_b = masks("soft", 2, 6, 5, 4, 7)
    fa, fb = features(2, 12, 6, 5, 4, 7, torch.float64)
    for mask in (None, mask_b):
        values = torch.tensor(beta, dtype=torch.float64)
        result, scores = call(backend, op, fa, fb, None, mask, values, simple)
        check(result, scores, None, mask, values, 1e-12)


def tied(dtype, positions, hb=23, wb=61, channels=8):
    """Features of which the same best target stands at all of `positions`, the rest being worse."""
    fa = torch.zeros(1, channels, 3, 45)
    fa[:, 0] = 1
    fb = torch.zeros(1, channels, hb, wb)
    fb[:, 1] = 1
    fb[:, 0] = torch.linspace(-1, 0.5, hb * wb).reshape(hb, wb)
    fb.flatten(2)[:, :, positions] = 0
    fb.flatten(2)[:, 0, positions] = 2
    return fa.to(dtype), fb.to(dtype)


@pytest.mark.parametrize("kernels", backends.KERNELS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(
    "positions", [[5, 6], [31, 32, 900], [140, 1400], [127, 128, 129], [1030, 1401, 1402]], ids=str
)
def test_the_lowest_of_ties(backend, op, positions, dtype, kernels):
    """Within a vector, between lanes, warps, tiles, splits and fragments."""
    options = backends.options_of(kernels, backend, dtype)
    if kernels == "portable" and op != "match":
        pytest.skip("the fast kernels are the portable ones")
    fa, fb = tied(dtype, positions)
    beta = torch.tensor(30.0, dtype=reference.accumulate_dtype(dtype))
    bool_mask = torch.ones(1, 23, 61, dtype=torch.bool)
    weights = torch.full((1, 23, 61), 0.5)
    holes = weights.clone()
    holes.flatten()[positions[0]] = 0
    for mask, expected in ((None, 0), (bool_mask, 0), (weights, 0), (holes, 1)):
        result, _ = call(backend, op, fa, fb, None, mask, beta, **options)
        assert torch.equal(result.index, torch.full((1, 3, 45), positions[expected]))
        assert_close(result.score, torch.ones_like(result.score), 1e-6)


@SIMPLE
@pytest.mark.parametrize("op", OPS)
def test_everything_ties_without_beta(backend, op, simple):
    skip_if_only_one(backend, simple)
    fa, fb = features(2, 8, 4, 5, 13, 21, torch.float32)
    mask = torch.ones(2, 13, 21)
    mask[:, 0] = 0
    for m, expected in ((None, 0), (mask, 21)):
        result, scores = call(backend, op, fa, fb, None, m, torch.tensor(0.0), simple)
        assert torch.equal(result.index, torch.full((2, 4, 5), expected))
        assert_close(result.score.flatten(1), scores[:, :, expected], 1e-6)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("order, seed", [("reverse", 0), ("random", 1), ("random", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_order_of_threads_does_not_matter(op, order, seed, dtype):
    """hostsim: ties and rounding fall the same way whatever the order of threads and blocks."""
    module, backend = backends.hostsim_module(), backends.Hostsim()
    fa, fb = tied(dtype, [140, 141, 700, 1400])
    beta = torch.tensor(9.0)
    for simple in (False, True):
        expected, _ = call(backend, op, fa, fb, None, None, beta, simple)
        module.set_order(order, seed)
        try:
            actual, _ = call(backend, op, fa, fb, None, None, beta, simple)
        finally:
            module.set_order("forward", 0)
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
        assert bool((actual.index == 140).all())


@SIMPLE
@pytest.mark.parametrize("op", OPS)
def test_nan_is_passed_over(backend, op, simple):
    """flow and lse are NaN, the index is that of the best number."""
    skip_if_only_one(backend, simple)
    fa, fb = features(1, 8, 3, 4, 4, 3, torch.float32)
    beta = torch.tensor(5.0)
    if op == "match":
        clean, _ = call(backend, op, fa, fb, None, None, beta, simple)
        bad = fb.clone()
        bad[0, 3, 3, 2] = NAN
        result = IndexedMatches(*backend.match_indexed(fa, bad, None, None, beta, simple=simple))
    else:
        corr = torch.randn(1, 3, 4, 4, 3)
        clean = IndexedMatches(*backend.soft_argmax_indexed(corr, None, beta, simple=simple))
        corr[..., 3, 2] = NAN
        result = IndexedMatches(*backend.soft_argmax_indexed(corr, None, beta, simple=simple))
    assert bool(torch.isnan(result.flow).all())
    same = clean.index != 11
    assert torch.equal(result.index[same], clean.index[same]) and bool((result.index < 11).all())


@pytest.mark.parametrize("op", OPS)
def test_the_rest_is_that_of_the_plain_call(backend, op):
    fa, fb = features(2, 32, 9, 7, 8, 15, torch.float32)
    _, mask = masks("holes", 2, 9, 7, 8, 15)
    beta = torch.tensor(12.0)
    indexed, _ = call(backend, op, fa, fb, None, mask, beta)
    if op == "match":
        plain = backend.match(fa, fb, None, mask, beta)
    else:
        volume = reference.correlation(fa.double(), fb.double(), True).to(fa.dtype)
        plain = backend.soft_argmax(volume, mask, beta)
    assert all(torch.equal(i, p) for i, p in zip(indexed[:3], plain, strict=True))


def test_empty_batch(backend):
    result = backend.match_indexed(torch.zeros(0, 8, 3, 4), torch.zeros(0, 8, 5, 6), None, None, torch.tensor(5.0))
    assert result[3].shape == result[4].shape == (0, 3, 4)
    result = backend.soft_argmax_indexed(torch.zeros(0, 2, 3, 4, 5), None, torch.tensor(1.0))
    assert result[3].shape == result[4].shape == (0, 2, 3)


def test_public_functions():
    fa, fb = features(2, 8, 4, 5, 6, 3, torch.float32)
    volume = cosegflow.correlation(fa, fb, normalize=True)
    for result in (
        cosegflow.match(fa.requires_grad_(), fb, beta=9.0, return_index=True),
        cosegflow.soft_argmax(volume.requires_grad_(), beta=9.0, return_index=True),
    ):
        assert isinstance(result, IndexedMatches)
        assert result.flow.requires_grad and not result.score.requires_grad and not result.confidence.requires_grad
        best = volume.detach().flatten(3).max(-1)
        assert torch.equal(result.index, best.indices)
        assert_close(result.score, best.values, 1e-6)
    assert type(cosegflow.match(fa, fb)) is type(cosegflow.soft_argmax(volume)) is cosegflow.Matches
    with pytest.raises(TypeError, match="return_index must be True or False, got int"):
        cosegflow.match(fa, fb, return_index=1)  # type: ignore[call-overload]


@pytest.mark.parametrize("sigma", [None, 1.5])
def test_transforms_take_all_five_fields(sigma):
    """No field is ever None, so vmap and jvp take the tuple."""
    fa, fb = features(2, 8, 4, 5, 6, 3, torch.float64)
    expected = cosegflow.match(fa, fb, beta=9.0, kernel_sigma=sigma, return_index=True)

    def one(a, b):
        result = cosegflow.match(a[None], b[None], beta=9.0, kernel_sigma=sigma, return_index=True)
        return IndexedMatches(*(t[0] for t in result))

    for actual, e in zip(torch.func.vmap(one)(fa, fb), expected, strict=True):
        assert_close(actual, e, 1e-12)

    def whole(a):
        return cosegflow.match(a, fb, beta=9.0, kernel_sigma=sigma, return_index=True)

    tangent = torch.randn_like(fa)
    values, tangents = torch.func.jvp(whole, (fa,), (tangent,))
    step = 1e-6
    numeric = (whole(fa + step * tangent).flow - whole(fa - step * tangent).flow) / (2 * step)
    assert_close(tangents.flow, numeric, 1e-6)
    assert torch.equal(values.index, expected.index) and bool((tangents.score == 0).all())
    jacobian = torch.func.jacrev(lambda a: whole(a).flow)(fa)
    assert jacobian.shape == (*expected.flow.shape, *fa.shape)

"""match_both on every backend, against two calls of reference.match in float64."""

import backends
import pytest
import torch
from errors import EPS, assert_close, assert_no_worse
from test_match import FLOATING, HALF, INF, NAN, features, leaf, masks, poison_excluded, slack_of

import cosegflow
from cosegflow import reference

NAMES = (
    "flow ab", "lse ab", "confidence ab", "flow ba", "lse ba", "confidence ba",
    "grad fa", "grad fb", "grad mask_a", "grad mask_b", "grad beta",
)  # fmt: skip
# (B, C, Ha, Wa, Hb, Wb)
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 7, 4, 6),
    (1, 17, 1, 13, 11, 1),
    (2, 64, 12, 12, 12, 12),
    (1, 40, 17, 9, 13, 19),
    (1, 257, 3, 5, 7, 2),
]
MASKS = ("none", "only a", "only b", "soft", "holes", "bool", "zero a", "zero b", "wild", "one image empty", "disjoint")


def both_masks(kind, batch, ha, wa, hb, wb):
    """(mask_a, mask_b) of a kind; both weigh and gate."""
    if kind == "none":
        return None, None
    a, b = torch.rand(batch, ha, wa) * 0.95 + 0.05, torch.rand(batch, hb, wb) * 0.95 + 0.05
    if kind == "only a":
        return torch.where(torch.rand(a.shape) < 0.7, a, 0.0), None
    if kind == "only b":
        return None, torch.where(torch.rand(b.shape) < 0.7, b, -1.0)
    if kind == "zero a":
        return torch.zeros_like(a), b
    if kind == "zero b":
        return a, torch.zeros_like(b)
    if kind == "soft":
        return a, b
    if kind == "wild":
        wild_b, wild_a = masks("wild", batch, hb, wb, ha, wa)[1], masks("wild", batch, ha, wa, hb, wb)[1]
        return wild_b, wild_a
    a, b = torch.where(torch.rand(a.shape) < 0.7, a, 0.0), torch.where(torch.rand(b.shape) < 0.6, b, 0.0)
    if kind == "bool":
        return a > 0, b > 0
    if kind == "one image empty":
        b[0] = NAN
    if kind == "disjoint" and batch > 1:  # in one image a is empty, in the other b
        a[0], b[1] = 0.0, 0.0
    return a, b


def run(function, fa, fb, mask_a, mask_b, beta, grads, **options):
    """Outputs and gradients (fa, fb, mask_a, mask_b, beta), in the order of NAMES."""
    outputs = function(fa, fb, mask_a, mask_b, beta, **options)
    wanted = [outputs[i] for i in (0, 1, 3, 4)]
    torch.autograd.backward(wanted, [g.to(o.dtype) for g, o in zip(grads, wanted, strict=True)])
    gradients = [None if t is None else t.grad for t in (fa, fb, mask_a, mask_b, beta)]
    return [o.detach() for o in outputs] + gradients


def by_reference(fa, fb, mask_a, mask_b, beta, normalize=True):
    """Two calls of match."""
    ab = reference.match(fa, fb, mask_a, mask_b, beta, normalize)
    return (*ab, *reference.match(fb, fa, mask_b, mask_a, beta, normalize))


def random_grads(batch, ha, wa, hb, wb):
    shapes = [(batch, 2, ha, wa), (batch, ha, wa), (batch, 2, hb, wb), (batch, hb, wb)]
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def compare(backend, shape, kind, dtype, beta, normalize=True, **options):
    batch, _, ha, wa, hb, wb = shape
    mask_a, mask_b = both_masks(kind, batch, ha, wa, hb, wb)
    fa, fb = features(*shape, dtype)
    if not normalize:
        fa, fb = fa / 4, fb / 4
    poison_excluded(fa, fb, mask_a, mask_b)
    acc = reference.accumulate_dtype(dtype)
    beta = torch.as_tensor(beta, dtype=torch.float64)
    grads = random_grads(batch, ha, wa, hb, wb)
    exact = run(by_reference, leaf(fa, torch.float64), leaf(fb, torch.float64), leaf(mask_a), leaf(mask_b), leaf(beta),
                grads, normalize=normalize)  # fmt: skip
    # Where nothing matches, incoming gradients are not read, NaN or not.
    nothing = [torch.isneginf(exact[1]), torch.isneginf(exact[4])]
    spoiled = []
    for none, flow, lse in zip(nothing, grads[::2], grads[1::2], strict=True):
        spoiled += [torch.where(none.unsqueeze(1), NAN, flow), torch.where(none, INF, lse)]
    actual = run(backend.match_both, leaf(fa), leaf(fb), leaf(mask_a), leaf(mask_b), leaf(beta, acc), spoiled,
                 normalize=normalize, **options)  # fmt: skip
    plain = run(by_reference, leaf(fa), leaf(fb), leaf(mask_a), leaf(mask_b), leaf(beta, acc), grads,
                normalize=normalize)  # fmt: skip
    lse = torch.cat((exact[1].flatten(), exact[4].flatten()))
    assert actual[0].dtype == acc and actual[6].dtype == dtype
    for name, a, p, e in zip(NAMES, actual, plain, exact, strict=True):
        if e is None:
            assert a is None, name
            continue
        e = e.double()
        if kind == "wild" and "mask" in name:
            # 1/m of a weight of 1e-30 makes a gradient of 1e30, and that of +inf is a convention: compare the rest.
            mask = mask_a if name == "grad mask_a" else mask_b
            usual = (mask > 1e-3) & (mask < 1e3)
            a, p, e = (torch.where(usual, t.double(), 0.0) for t in (a, p, e))
        if dtype == torch.float64:
            assert_close(a, e, 1e-9, name)
        else:
            rounding = EPS[dtype] if name in ("grad fa", "grad fb") and dtype in HALF else 0.0  # of the gradient itself
            if options.get("simple"):
                rounding *= 2  # each direction rounds its own
            assert_no_worse(a, p, e, slack_of(name, lse) * EPS[torch.float32] + rounding, name)
    for none, flow in zip(nothing, (actual[0], actual[3]), strict=True):
        assert bool((flow.movedim(1, -1)[none] == 0).all())


@pytest.mark.parametrize("kernels", backends.KERNELS)
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("kind", MASKS)
def test_masks(backend, kind, dtype, kernels):
    compare(backend, (2, 19, 6, 7, 5, 9), kind, dtype, 8.0, **backends.options_of(kernels, backend, dtype))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(backend, shape, dtype):
    compare(backend, shape, "none", dtype, 20.0)
    compare(backend, shape, "holes", dtype, 20.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("beta", [0.0, -7.5, 50.0, [3.0, -4.0]], ids=str)
def test_beta(backend, beta, dtype):
    compare(backend, (2, 24, 6, 5, 4, 7), "holes", dtype, beta)
    compare(backend, (2, 24, 6, 5, 4, 7), "none", dtype, beta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_normalisation(backend, dtype):
    compare(backend, (2, 24, 6, 5, 4, 7), "soft", dtype, 1.0, normalize=False)


@pytest.mark.parametrize("kernels", ["fast", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("shape", [(2, 16, 23, 17, 19, 29), (1, 136, 47, 53, 5, 7)], ids=["both", "rows"])
def test_many_tiles(backend, shape, dtype, kernels):
    """More pixels of both images than any tile, band and split holds, and no multiples of them."""
    options = backends.options_of(kernels, backend, dtype)
    compare(backend, shape, "holes", dtype, 15.0, **options)
    compare(backend, shape, "soft", dtype, 15.0, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 100_000])
def test_backward_in_chunks_and_forward(dtype, chunk_bytes):
    """hostsim: a workspace too small for all rows at once gives the same, forward and backward."""
    compare(backends.Hostsim(), (2, 16, 15, 19, 9, 14), "holes", dtype, 10.0, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("order, seed", [("reverse", 0), ("random", 1), ("random", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bits_do_not_depend_on_the_order_of_threads(order, seed, dtype):
    """hostsim: forward and backward are deterministic by construction."""
    module, backend = backends.hostsim_module(), backends.Hostsim()
    shape = (1, 16, 9, 15, 10, 13)
    fa, fb = features(*shape, dtype)
    mask_a, mask_b = both_masks("holes", 1, 9, 15, 10, 13)
    grads = random_grads(1, 9, 15, 10, 13)

    def results():
        return run(backend.match_both, leaf(fa), leaf(fb), leaf(mask_a), leaf(mask_b), leaf(torch.tensor(9.0)), grads)

    expected = results()
    module.set_order(order, seed)
    try:
        actual = results()
    finally:
        module.set_order("forward", 0)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert torch.equal(a, e), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_of_the_forward_do_not_depend_on_the_number_of_threads(dtype):
    fa, fb = features(1, 24, 30, 31, 29, 23, dtype)
    mask_a, mask_b = both_masks("holes", 1, 30, 31, 29, 23)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            ab, ba = cosegflow.match_both(fa, fb, mask_a, mask_b, beta=20.0)
            results.append((*ab, *ba))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, e in zip(other, results[0], strict=True):
            assert torch.equal(a, e)


def test_equals_two_calls_of_match(backend):
    """The same engine computes the scores: only the sums over columns take another order."""
    fa, fb = features(2, 32, 9, 7, 8, 5, torch.float32)
    mask_a, mask_b = both_masks("soft", 2, 9, 7, 8, 5)
    beta = torch.tensor(12.0)
    two = (*backend.match(fa, fb, mask_a, mask_b, beta), *backend.match(fb, fa, mask_b, mask_a, beta))
    for name, a, e in zip(NAMES, backend.match_both(fa, fb, mask_a, mask_b, beta), two, strict=False):
        assert_close(a, e, 1e-5, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(backend, dtype):
    fa, fb = features(2, 16, 5, 6, 7, 4, dtype)
    mask_a, mask_b = both_masks("soft", 2, 5, 6, 7, 4)
    beta = torch.tensor(10.0)
    expected = backend.match_both(fa, fb, mask_a, mask_b, beta)
    spaced = torch.zeros(2, 32, 5, 12, dtype=dtype)[:, ::2, :, 1::2]
    spaced.copy_(fa)
    transposed_mask = mask_b.transpose(1, 2).contiguous().transpose(1, 2)
    channels_last = fa.contiguous(memory_format=torch.channels_last)
    batch_inside = fb.transpose(0, 1).contiguous().transpose(0, 1)
    for a, b in ((channels_last, fb), (spaced, batch_inside)):
        for actual, e in zip(backend.match_both(a, b, mask_a, transposed_mask, beta), expected, strict=True):
            assert_close(actual, e, 1e-5)


def test_one_direction_alone(backend):
    """Without a gradient of the second direction those of the first are match's."""
    fa, fb = features(2, 8, 4, 5, 3, 6, torch.float64)
    mask_a, mask_b = both_masks("holes", 2, 4, 5, 3, 6)
    leaves = [leaf(t) for t in (fa, fb, mask_a, mask_b)]
    weight = torch.randn(2, 2, 4, 5, dtype=torch.float64)
    beta = torch.tensor(4.0, dtype=torch.float64)
    flow = backend.match_both(*leaves, beta)[0]
    actual = torch.autograd.grad((flow * weight).sum(), leaves)
    flow = reference.match(*leaves, beta).flow
    expected = torch.autograd.grad((flow * weight).sum(), leaves, allow_unused=True)
    for name, a, e in zip(("fa", "fb", "mask_a", "mask_b"), actual, expected, strict=True):
        assert_close(a, torch.zeros_like(a) if e is None else e, 1e-9, name)


def test_nan_of_an_included_feature_comes_out(backend):
    """In the direction whose sum it enters everywhere, and at its own pixel."""
    fa, fb = features(1, 8, 3, 4, 4, 3, torch.float32)
    fb[0, 3, 2, 1] = NAN
    outputs = backend.match_both(fa, fb, None, None, torch.tensor(5.0))
    assert bool(torch.isnan(outputs[0]).all()) and bool(torch.isnan(outputs[1]).all())
    nan = torch.isnan(outputs[4])
    assert nan.sum() == 1 and bool(nan[0, 2, 1])


@pytest.mark.parametrize("beta", [3e38, -3e38, 1e30])
@pytest.mark.parametrize("targets", [1, 3, 37])
def test_huge_beta(backend, beta, targets):
    """Never NaN while float32 can hold beta * s."""
    fa, fb = torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, targets), -1.1)
    fb[..., 0] = 1.0
    fa[..., 1] = 0.9
    for mask_a, mask_b in ((None, None), (torch.full((1, 1, 2), 0.5), torch.ones(1, 1, targets))):
        beta_leaf = torch.tensor(beta, requires_grad=True)
        outputs = backend.match_both(fa, fb, mask_a, mask_b, beta_leaf, False)
        (outputs[0].sum() + outputs[3].sum()).backward()
        assert all(bool(torch.isfinite(o).all()) for o in outputs) and bool(torch.isfinite(beta_leaf.grad))
        if beta > 0:
            assert torch.equal(outputs[0], torch.tensor([[[[0.0, -1.0]], [[0.0, 0.0]]]]))
            assert outputs[3][0, 0, 0, 0] == 0


def test_empty_batch(backend):
    outputs = backend.match_both(torch.zeros(0, 8, 3, 4), torch.zeros(0, 8, 5, 6), None, None, torch.tensor(5.0))
    assert [tuple(o.shape) for o in outputs] == [(0, 2, 3, 4), (0, 3, 4), (0, 3, 4), (0, 2, 5, 6), (0, 5, 6), (0, 5, 6)]


def test_public_function_takes_every_form():
    fa, fb = features(2, 8, 4, 5, 6, 3, torch.float32)
    mask_a, mask_b = torch.rand(2, 4, 5), torch.rand(2, 6, 3)
    ab, ba = cosegflow.match_both(fa, fb, mask_a, mask_b, beta=10)
    assert isinstance(ab, cosegflow.Matches) and isinstance(ba, cosegflow.Matches)
    other = cosegflow.match_both(fa, fb, mask_a.unsqueeze(1), mask_b.unsqueeze(1), beta=torch.tensor([10.0, 10.0]))
    assert torch.equal(other[0].flow, ab.flow) and torch.equal(other[1].flow, ba.flow)
    flipped = cosegflow.match_both(fb, fa, mask_b, mask_a, beta=10)
    assert_close(flipped[0].flow, ba.flow, 1e-5)
    assert_close(flipped[1].flow, ab.flow, 1e-5)


def test_gradient_reaches_a_beta_of_another_dtype():
    beta = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    fa, fb = features(2, 8, 4, 5, 6, 3, torch.float32)
    cosegflow.match_both(fa, fb, beta=beta)[1].lse.sum().backward()
    assert beta.grad is not None and beta.grad.dtype == torch.float64 and bool(torch.isfinite(beta.grad))


def test_autocast_casts_features_only():
    fa, fb = features(2, 32, 4, 5, 6, 3, torch.float32)
    mask_a, mask_b = torch.rand(2, 4, 5), torch.rand(2, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        actual = cosegflow.match_both(fa, fb, mask_a, mask_b, beta=10.0)
        mapped = torch.func.vmap(lambda a, b: cosegflow.match_both(a[None], b[None], beta=10.0)[1].flow)(fa, fb)
        plain = torch.stack(
            [cosegflow.match_both(a[None], b[None], beta=10.0)[1].flow for a, b in zip(fa, fb, strict=True)]
        )
    exact = reference.match_both(
        fa.bfloat16().double(), fb.bfloat16().double(), mask_a, mask_b, torch.tensor(10.0, dtype=torch.float64)
    )
    for a, e in zip((*actual[0], *actual[1]), (*exact[0], *exact[1]), strict=True):
        assert a.dtype == torch.float32
        assert_close(a, e, 1e-4, "features are rounded, nothing else")
    assert mapped.dtype == torch.float32
    assert_close(mapped, plain, 1e-5)


@pytest.mark.parametrize("options", [{"kernel_sigma": 3.0}, {"return_index": True}], ids=lambda o: next(iter(o)))
def test_options_of_match_are_served_by_match(options):
    """By two calls of it, or by its refusal."""
    fa, fb = features(2, 8, 4, 5, 6, 3, torch.float32)
    mask_a, mask_b = torch.rand(2, 4, 5), torch.rand(2, 6, 3)
    try:
        ab = cosegflow.match(fa, fb, mask_a, mask_b, **options)
    except NotImplementedError:
        with pytest.raises(NotImplementedError, match=next(iter(options))):
            cosegflow.match_both(fa, fb, mask_a, mask_b, **options)
        return
    expected = (*ab, *cosegflow.match(fb, fa, mask_b, mask_a, **options))
    both = cosegflow.match_both(fa, fb, mask_a, mask_b, **options)
    assert type(both[0]) is type(ab)
    for a, e in zip((*both[0], *both[1]), expected, strict=True):
        assert torch.equal(a, e)


F4 = torch.zeros(1, 3, 4, 5)


@pytest.mark.parametrize(
    "error, call, message",
    [
        (ValueError, lambda: cosegflow.match_both(torch.zeros(3, 4, 5), F4), r"fa must have shape \(B, C, H, W\)"),
        (ValueError, lambda: cosegflow.match_both(F4, torch.zeros(1, 2, 4, 5)), r"fa and fb must have the same batch"),
        (TypeError, lambda: cosegflow.match_both(F4, F4.half()), r"fb must have the dtype of fa, torch.float32, got"),
        (ValueError, lambda: cosegflow.match_both(F4, F4, torch.zeros(1, 5, 4)), r"mask_a must have shape \(1, 4, 5\)"),
        (TypeError, lambda: cosegflow.match_both(F4, F4, None, torch.zeros(1, 4, 5).byte()), r"pass `mask_b > 0`"),
        (ValueError, lambda: cosegflow.match_both(F4, F4, beta=NAN), r"beta must be finite in torch.float32, got nan"),
        (TypeError, lambda: cosegflow.match_both(F4, F4, normalize=1), r"normalize must be True or False, got int"),
    ],
)
def test_wrong_arguments(error, call, message):
    with pytest.raises(error, match=message):
        call()

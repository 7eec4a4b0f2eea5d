"""match on every backend, against reference.match in float64."""

import backends
import pytest
import torch
from errors import EPS, assert_close, assert_no_worse

import cosegflow
from cosegflow import reference

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HALF = (torch.float16, torch.bfloat16)
# (B, C, Ha, Wa, Hb, Wb)
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 7, 4, 6),
    (1, 17, 1, 13, 11, 1),
    (2, 64, 12, 12, 12, 12),
    (1, 40, 17, 9, 13, 19),
    (1, 257, 3, 5, 7, 2),
]
MASKS = ("none", "soft", "holes", "bool", "zero", "wild", "one image empty")
INF, NAN = float("inf"), float("nan")


def masks(kind, batch, ha, wa, hb, wb):
    """(mask_a, mask_b) of a kind."""
    if kind == "none":
        return None, None
    a, b = torch.rand(batch, ha, wa), torch.rand(batch, hb, wb) + 0.05
    if kind == "soft":
        return None, b
    if kind == "zero":
        return None, torch.zeros(batch, hb, wb)
    holes_a, holes_b = (torch.rand(a.shape) < 0.7), (torch.rand(b.shape) < 0.6)
    if kind == "bool":
        return holes_a, holes_b
    if kind == "holes":
        return holes_a.float(), torch.where(holes_b, b, 0.0)
    if kind == "wild":
        wild = torch.tensor([NAN, -1.0, 0.0, -INF, 1e-30, 3.0, INF])
        picks = torch.randint(len(wild) - 1, b.shape)
        if b.numel() > 30:
            picks.flatten()[0] = len(wild) - 1  # one +inf outweighs the rest
        return torch.where(holes_a, a, NAN), torch.where(holes_b, b, wild[picks])
    holes_b[0] = False
    return holes_a.float(), torch.where(holes_b, b, 0.0)


def features(batch, channels, ha, wa, hb, wb, dtype):
    """Features that correlate, so that the softmax has peaks."""
    fa = torch.randn(batch, channels, ha, wa)
    fb = torch.randn(batch, channels, hb, wb)
    h, w = min(ha, hb), min(wa, wb)
    fb[:, :, :h, :w] += fa[:, :, :h, :w].flip(2)
    return fa.to(dtype), fb.to(dtype)


def poison_excluded(fa, fb, mask_a, mask_b):
    """NaN and inf in the features of excluded positions, which must not reach anything."""
    if mask_a is not None:
        fa.masked_fill_(~(mask_a > 0).unsqueeze(1), NAN)
    if mask_b is not None:
        fb.masked_fill_(~(mask_b > 0).unsqueeze(1), INF)


def leaf(t, dtype=None):
    if t is None:
        return None
    t = t.detach().clone().to(dtype or t.dtype)
    return t.requires_grad_() if t.is_floating_point() else t


def run(function, fa, fb, mask_a, mask_b, beta, grads, **options):
    """Outputs and gradients (fa, fb, mask_b, beta) of a backend or of the reference."""
    flow, lse, confidence = function(fa, fb, mask_a, mask_b, beta, **options)
    torch.autograd.backward((flow, lse), [g.to(flow.dtype) for g in grads])
    return [flow.detach(), lse.detach(), confidence.detach(), fa.grad, fb.grad,
            None if mask_b is None else mask_b.grad, beta.grad]  # fmt: skip


NAMES = ("flow", "lse", "confidence", "grad fa", "grad fb", "grad mask_b", "grad beta")


def slack_of(name, lse):
    """How many float32 roundings a result may be off by, beyond the rule.

    The backward recomputes p = exp(logit - lse) from the saved lse, whose rounding is relative to its size; and the
    gradient of beta sums over everything, so its error scales with the terms and not with their sum.
    """
    if not name.startswith("grad"):
        return 30
    finite = lse[lse.isfinite()]
    return (300 if name == "grad beta" else 30) + (finite.abs().max().item() if finite.numel() else 0)


def compare(backend, shape, kind, dtype, beta, normalize=True, oracle=reference.match, **options):
    batch, _, ha, wa, hb, wb = shape
    mask_a, mask_b = masks(kind, batch, ha, wa, hb, wb)
    fa, fb = features(*shape, dtype)
    if not normalize:
        fa, fb = fa / 4, fb / 4
    poison_excluded(fa, fb, mask_a, mask_b)
    acc = reference.accumulate_dtype(dtype)
    beta = torch.as_tensor(beta, dtype=torch.float64)
    grads = [torch.randn(batch, 2, ha, wa, dtype=torch.float64), torch.randn(batch, ha, wa, dtype=torch.float64)]
    exact = run(oracle, leaf(fa, torch.float64), leaf(fb, torch.float64), mask_a, leaf(mask_b),
                leaf(beta), grads, normalize=normalize)  # fmt: skip
    # Where nothing matches, incoming gradients are not read, NaN or not.
    nothing = torch.isneginf(exact[1])
    spoiled = [torch.where(nothing.unsqueeze(1), NAN, grads[0]), torch.where(nothing, INF, grads[1])]
    actual = run(backend.match, leaf(fa), leaf(fb), mask_a, leaf(mask_b), leaf(beta, acc), spoiled,
                 normalize=normalize, **options)  # fmt: skip
    plain = run(oracle, leaf(fa), leaf(fb), mask_a, leaf(mask_b), leaf(beta, acc), grads, normalize=normalize)
    assert actual[0].dtype == acc and actual[3].dtype == dtype
    for name, a, p, e in zip(NAMES, actual, plain, exact, strict=True):
        if e is None:
            assert a is None, name
            continue
        e = e.double()
        if name == "grad mask_b" and kind == "wild":
            # 1/m of a weight of 1e-30 makes a gradient of 1e30, and that of +inf is a convention: compare the rest.
            usual = (mask_b > 1e-3) & (mask_b < 1e3)
            a, p, e = (torch.where(usual, t.double(), 0.0) for t in (a, p, e))
        if dtype == torch.float64:
            assert_close(a, e, 1e-9, name)
        else:
            rounding = EPS[dtype] if name in ("grad fa", "grad fb") and dtype in HALF else 0.0  # of the gradient itself
            assert_no_worse(a, p, e, slack_of(name, exact[1]) * EPS[torch.float32] + rounding, name)
    nothing_flow = actual[0].movedim(1, -1)[nothing]
    assert torch.equal(nothing_flow, torch.zeros_like(nothing_flow))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 31, 63, 65, 127, 129, 512, 1025])
def test_channels(backend, channels, dtype):
    compare(backend, (1, channels, 3, 6, 5, 3), "holes", dtype, 10.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("beta", [0.0, -7.5, 50.0, [3.0, -4.0]], ids=str)
def test_beta(backend, beta, dtype):
    compare(backend, (2, 24, 6, 5, 4, 7), "holes", dtype, beta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_normalisation(backend, dtype):
    compare(backend, (2, 24, 6, 5, 4, 7), "soft", dtype, 1.0, normalize=False)


@pytest.mark.parametrize("kernels", ["fast", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("shape", [(2, 16, 23, 17, 19, 29), (1, 136, 3, 5, 47, 53)], ids=["rows", "targets"])
def test_many_tiles(backend, shape, dtype, kernels):
    """More sources, or more targets and channels, than any tile, split and pipeline holds, and no multiples of them."""
    options = backends.options_of(kernels, backend, dtype)
    compare(backend, shape, "holes", dtype, 15.0, **options)
    compare(backend, shape, "soft", dtype, 15.0, **options)


def test_backward_in_chunks():
    """hostsim: a workspace too small for all rows at once gives the same gradients."""
    backend = backends.Hostsim()
    for chunk_bytes in (1, 20_000, 100_000):
        compare(backend, (2, 16, 13, 11, 9, 14), "holes", torch.float32, 10.0, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("order, seed", [("reverse", 0), ("random", 1), ("random", 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bits_do_not_depend_on_the_order_of_threads(order, seed, dtype):
    """hostsim: forward and backward are deterministic by construction."""
    module, backend = backends.hostsim_module(), backends.Hostsim()
    fa, fb = features(1, 16, 9, 15, 10, 13, dtype)
    _, mask_b = masks("holes", 1, 9, 15, 10, 13)
    grads = [torch.randn(1, 2, 9, 15), torch.randn(1, 9, 15)]

    def results():
        return run(backend.match, leaf(fa), leaf(fb), None, leaf(mask_b), leaf(torch.tensor(9.0)), grads)

    expected = results()
    module.set_order(order, seed)
    try:
        actual = results()
    finally:
        module.set_order("forward", 0)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert torch.equal(a, e), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(backend, dtype):
    fa, fb = features(2, 16, 5, 6, 7, 4, dtype)
    mask = torch.rand(2, 7, 4)
    beta = torch.tensor(10.0)
    expected = backend.match(fa, fb, None, mask, beta)
    spaced = torch.zeros(2, 32, 5, 12, dtype=dtype)[:, ::2, :, 1::2]
    spaced.copy_(fa)
    transposed_mask = mask.transpose(1, 2).contiguous().transpose(1, 2)
    channels_last = fa.contiguous(memory_format=torch.channels_last)
    batch_inside = fb.transpose(0, 1).contiguous().transpose(0, 1)
    for a, b in ((channels_last, fb), (spaced, batch_inside)):
        for actual, e in zip(backend.match(a, b, None, transposed_mask, beta), expected, strict=True):
            assert_close(actual, e, 1e-5)
    one = backend.match(fa[:1], fb[:1], None, None, beta)
    expanded = backend.match(fa[:1].expand(3, -1, -1, -1), fb[:1].expand(3, -1, -1, -1), None, None, beta)
    assert_close(expanded[0], one[0].expand(3, -1, -1, -1), 1e-5)


def test_gradient_at_zero_and_tiny_norm(backend):
    """A zero feature is divided by 1e-12, as F.normalize does; nothing becomes NaN."""
    fa, fb = features(1, 4, 3, 3, 3, 3, torch.float64)
    fa[0, :, 0, 0] = 0
    fb[0, :, 1, 1] = 1e-13
    grads = [torch.randn(1, 2, 3, 3).double(), torch.randn(1, 3, 3).double()]
    beta = torch.tensor(2.0).double()
    actual = run(backend.match, leaf(fa), leaf(fb), None, None, leaf(beta), grads)
    expected = run(reference.match, leaf(fa), leaf(fb), None, None, leaf(beta), grads)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        if e is not None:
            scale = e.abs().clamp(min=1)  # gradients of 1e12 beside gradients of 1
            assert_close(a / scale, e / scale, 1e-8, name)


def test_nan_of_an_included_feature_comes_out(backend):
    fa, fb = features(1, 8, 3, 4, 4, 3, torch.float32)
    fb[0, 3, 2, 1] = NAN
    flow, lse, _ = backend.match(fa, fb, None, None, torch.tensor(5.0))
    assert bool(torch.isnan(flow).all()) and bool(torch.isnan(lse).all())


@pytest.mark.parametrize("beta", [3e38, -3e38, 1e30])
@pytest.mark.parametrize("targets", [1, 3, 37])
def test_huge_beta(backend, beta, targets):
    """Never NaN while float32 can hold beta * s."""
    fa, fb = torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, targets), -1.1)
    fb[..., 0] = 1.0
    for mask in (None, torch.ones(1, 1, targets)):
        beta_leaf = torch.tensor(beta, requires_grad=True)
        flow, lse, confidence = backend.match(fa, fb, None, mask, beta_leaf, False)
        flow.sum().backward()
        assert bool(torch.isfinite(flow).all()) and bool(torch.isfinite(lse).all())
        assert bool(torch.isfinite(confidence).all()) and bool(torch.isfinite(beta_leaf.grad))
        if beta > 0:
            assert torch.equal(flow, torch.tensor([[[[0.0, -1.0]], [[0.0, 0.0]]]]))


def test_empty_batch(backend):
    flow, lse, confidence = backend.match(
        torch.zeros(0, 8, 3, 4), torch.zeros(0, 8, 5, 6), None, None, torch.tensor(5.0)
    )
    assert flow.shape == (0, 2, 3, 4) and lse.shape == confidence.shape == (0, 3, 4)


def test_agrees_with_correlation_and_soft_argmax(backend):
    fa, fb = features(2, 32, 6, 7, 8, 5, torch.float32)
    mask = torch.rand(2, 8, 5)
    beta = torch.tensor(12.0)
    fused = backend.match(fa, fb, None, mask, beta)
    composed = backend.soft_argmax(backend.correlation(fa, fb, True), mask, beta)
    for a, e in zip(fused, composed, strict=True):
        assert_close(a, e, 1e-5)


def test_public_function_takes_every_form():
    fa, fb = features(2, 8, 4, 5, 6, 3, torch.float32)
    mask = torch.rand(2, 6, 3)
    flow = cosegflow.match(fa, fb, mask_b=mask, beta=10).flow
    assert torch.equal(cosegflow.match(fa, fb, mask_b=mask.unsqueeze(1), beta=torch.tensor(10.0)).flow, flow)
    assert torch.equal(cosegflow.match(fa, fb, mask_b=mask, beta=torch.tensor([10.0, 10.0])).flow, flow)
    assert isinstance(cosegflow.match(fa, fb), cosegflow.Matches)


def test_gradient_reaches_a_beta_of_another_dtype():
    beta = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    fa, fb = features(2, 8, 4, 5, 6, 3, torch.float32)
    cosegflow.match(fa, fb, beta=beta).lse.sum().backward()
    assert beta.grad is not None and beta.grad.dtype == torch.float64 and bool(torch.isfinite(beta.grad))


F4 = torch.zeros(1, 3, 4, 5)


@pytest.mark.parametrize(
    "error, call, message",
    [
        (ValueError, lambda: cosegflow.match(torch.zeros(3, 4, 5), F4), r"fa must have shape \(B, C, H, W\)"),
        (ValueError, lambda: cosegflow.match(F4, torch.zeros(1, 2, 4, 5)), r"fa and fb must have the same batch size"),
        (ValueError, lambda: cosegflow.match(F4, torch.zeros(1, 3, 0, 5)), r"fb must have at least one channel"),
        (TypeError, lambda: cosegflow.match(F4, F4.half()), r"fb must have the dtype of fa, torch.float32, got"),
        (TypeError, lambda: cosegflow.match(F4.long(), F4.long()), r"fa must be float16"),
        (ValueError, lambda: cosegflow.match(F4, F4, torch.zeros(1, 5, 4)), r"mask_a must have shape \(1, 4, 5\)"),
        (ValueError, lambda: cosegflow.match(F4, F4, None, torch.zeros(1, 2, 4, 5)), r"mask_b must have shape"),
        (TypeError, lambda: cosegflow.match(F4, F4, None, torch.zeros(1, 4, 5).byte()), r"pass `mask_b > 0`"),
        (TypeError, lambda: cosegflow.match(F4, F4, beta="warm"), r"beta must be a number .* got str"),
        (ValueError, lambda: cosegflow.match(F4, F4, beta=NAN), r"beta must be finite in torch.float32, got nan"),
        (ValueError, lambda: cosegflow.match(F4, F4, beta=torch.zeros(2)), r"beta must be .* got \(2,\)"),
        (ValueError, lambda: cosegflow.match(F4, F4, beta=1e39), r"beta must be finite in torch.float32, got 1e\+39"),
        (TypeError, lambda: cosegflow.match(F4, F4, normalize=None), r"normalize must be True or False, got NoneType"),
        (TypeError, lambda: cosegflow.match(F4.to_sparse(), F4), r"fa must be a dense tensor.*got layout"),
        (ValueError, lambda: cosegflow.match(F4, F4.to("meta")), r"fb must be on the device of fa, cpu, got meta"),
    ],
)
def test_wrong_arguments(error, call, message):
    with pytest.raises(error, match=message):
        call()

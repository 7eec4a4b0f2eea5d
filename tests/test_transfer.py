"""transfer on every backend, against reference.transfer in float64."""

import backends
import pytest
import torch
from backends_transfer import transfer
from errors import EPS, assert_close, assert_no_worse
from test_match import FLOATING, HALF, INF, MASKS, NAN, features, leaf, masks, poison_excluded

import cosegflow
from cosegflow import reference

NAMES = ("out", "grad fa", "grad fb", "grad values", "grad mask_b", "grad beta")
# (B, C, Ha, Wa, Hb, Wb), V
SHAPES = [
    ((1, 1, 1, 1, 1, 1), 1),
    ((2, 3, 5, 7, 4, 6), 3),
    ((1, 17, 1, 13, 11, 1), 33),
    ((1, 40, 17, 9, 13, 19), 8),
    ((1, 257, 3, 5, 7, 2), 70),
]


def run(function, fa, fb, values, mask_a, mask_b, beta, grad, **options):
    """out, and the gradients (fa, fb, values, mask_b, beta)."""
    out = function(fa, fb, values, mask_a, mask_b, beta, **options)
    out = out[0] if isinstance(out, tuple) else out
    out.backward(grad.to(out.dtype))
    return [out.detach(), fa.grad, fb.grad, values.grad, None if mask_b is None else mask_b.grad, beta.grad]


def compare(backend, shape, channels, kind, dtype, beta, normalize=True, values_dtype=None, **options):
    batch, _, ha, wa, hb, wb = shape
    mask_a, mask_b = masks(kind, batch, ha, wa, hb, wb)
    fa, fb = features(*shape, dtype)
    if not normalize:
        fa, fb = fa / 4, fb / 4
    acc = reference.accumulate_dtype(dtype)
    values = torch.randn(batch, channels, hb, wb).to(values_dtype or dtype)
    poison_excluded(fa, fb, mask_a, mask_b)
    if mask_b is not None:
        values.masked_fill_(~(mask_b > 0).unsqueeze(1), NAN)
    beta = torch.as_tensor(beta, dtype=torch.float64)
    grad = torch.randn(batch, channels, ha, wa, dtype=torch.float64)
    exact = run(reference.transfer, leaf(fa, torch.float64), leaf(fb, torch.float64), leaf(values, torch.float64),
                mask_a, leaf(mask_b), leaf(beta), grad, normalize=normalize)  # fmt: skip
    # Where nothing matches, incoming gradients are not read, NaN or not.
    gated = torch.ones(batch, 1, ha, wa).bool() if mask_a is None else (mask_a > 0).unsqueeze(1)
    if mask_b is not None:
        gated = gated & (mask_b > 0).flatten(1).any(1).reshape(-1, 1, 1, 1)
    actual = run(lambda *a, **k: transfer(backend, *a, **k), leaf(fa), leaf(fb), leaf(values), mask_a, leaf(mask_b),
                 leaf(beta, acc), torch.where(gated, grad, NAN), normalize=normalize, **options)  # fmt: skip
    plain = run(reference.transfer, leaf(fa), leaf(fb), leaf(values), mask_a, leaf(mask_b), leaf(beta, acc), grad,
                normalize=normalize)  # fmt: skip
    assert actual[0].dtype == acc and actual[1].dtype == dtype and actual[3].dtype == values.dtype
    size = 1 + beta.abs().max().item()  # about that of lse
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
            continue
        # Beyond the rule: the backward's p = exp(logit - lse) has the rounding of the saved lse, row by row; the
        # gradient of beta sums the rows, each of the size of its incoming gradient.
        slack = (30 + size * (grad.norm().item() if name == "grad beta" else 1.0)) * EPS[torch.float32]
        rounded = {"grad fa": dtype, "grad fb": dtype, "grad values": values.dtype}.get(name)
        assert_no_worse(a, p, e, slack + (EPS[rounded] if rounded in HALF else 0.0), name)
    nothing = actual[0][~gated.expand_as(actual[0])]
    assert torch.equal(nothing, torch.zeros_like(nothing))


@pytest.mark.parametrize("kernels", backends.KERNELS)
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("kind", MASKS)
def test_masks(backend, kind, dtype, kernels):
    compare(backend, (2, 19, 6, 7, 5, 9), 3, kind, dtype, 8.0, **backends.options_of(kernels, backend, dtype))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("shape, channels", SHAPES, ids=str)
def test_shapes(backend, shape, channels, dtype):
    compare(backend, shape, channels, "none", dtype, 20.0)
    compare(backend, shape, channels, "holes", dtype, 20.0)


@pytest.mark.parametrize("channels", [1, 2, 15, 16, 17, 31, 32, 33, 64, 129])
def test_value_channels(backend, channels):
    compare(backend, (1, 5, 3, 6, 5, 3), channels, "holes", torch.float32, 10.0)


@pytest.mark.parametrize("dtype, values_dtype", [(torch.float32, torch.float16), (torch.bfloat16, torch.float32),
                                                 (torch.float16, torch.bfloat16)], ids=str)  # fmt: skip
def test_values_of_another_dtype(backend, dtype, values_dtype):
    compare(backend, (2, 9, 4, 6, 5, 3), 5, "holes", dtype, 6.0, values_dtype=values_dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", [0.0, -7.5, 50.0, [3.0, -4.0]], ids=str)
def test_beta(backend, beta, dtype):
    compare(backend, (2, 24, 6, 5, 4, 7), 4, "holes", dtype, beta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_normalisation(backend, dtype):
    compare(backend, (2, 24, 6, 5, 4, 7), 4, "soft", dtype, 1.0, normalize=False)


@pytest.mark.parametrize("kernels", ["fast", "portable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("shape", [(2, 16, 23, 17, 19, 29), (1, 136, 3, 5, 47, 53)], ids=["rows", "targets"])
def test_many_tiles(backend, shape, dtype, kernels):
    """More sources, or more targets and channels, than any tile, split and pipeline holds, and no multiples of them."""
    options = backends.options_of(kernels, backend, dtype)
    compare(backend, shape, 5, "holes", dtype, 15.0, **options)
    if kernels == "fast":
        compare(backend, shape, 70, "soft", dtype, 15.0)


def test_backward_in_chunks():
    """hostsim: a workspace too small for all rows at once gives the same results."""
    for simple in (False, True):
        for chunk_bytes in (1, 20_000, 100_000):
            compare(backends.Hostsim(), (2, 16, 13, 11, 9, 14), 6, "holes", torch.float32, 10.0, simple=simple,
                    chunk_bytes=chunk_bytes)  # fmt: skip


@pytest.mark.parametrize("order, seed", [("reverse", 0), ("random", 1)])
@pytest.mark.parametrize("simple", [False, True], ids=["fast", "simple"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bits_do_not_depend_on_the_order_of_threads(order, seed, dtype, simple):
    """hostsim: forward and backward are deterministic by construction."""
    module, backend = backends.hostsim_module(), backends.Hostsim()
    fa, fb = features(1, 16, 9, 15, 10, 13, dtype)
    _, mask_b = masks("holes", 1, 9, 15, 10, 13)
    values, grad = torch.randn(1, 5, 10, 13, dtype=dtype), torch.randn(1, 5, 9, 15)

    def results():
        return run(lambda *a: transfer(backend, *a, simple=simple), leaf(fa), leaf(fb), leaf(values), None,
                   leaf(mask_b), leaf(torch.tensor(9.0)), grad)  # fmt: skip

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
    values, mask, beta = torch.randn(2, 6, 7, 4, dtype=dtype), torch.rand(2, 7, 4), torch.tensor(10.0)
    grad = torch.randn(2, 6, 5, 6)

    def both(a, b, v, m, g):
        v = v.detach().requires_grad_()
        out, _ = transfer(backend, a, b, v, None, m, beta)
        return out.detach(), torch.autograd.grad(out, v, g)[0]

    expected = both(fa, fb, values, mask, grad)
    spaced = torch.zeros(2, 12, 7, 8, dtype=dtype)[:, ::2, :, 1::2]
    spaced.copy_(values)
    channels_last = values.contiguous(memory_format=torch.channels_last)
    turned = grad.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for v in (spaced, channels_last, values.transpose(0, 1).contiguous().transpose(0, 1)):
        for a, e in zip(both(fa.contiguous(memory_format=torch.channels_last), fb, v, mask, turned), expected,
                        strict=True):  # fmt: skip
            assert_close(a, e, 1e-5 if a.dtype == torch.float32 else 8e-3)
    one = transfer(backend, fa[:1], fb[:1], values[:1], None, None, beta)[0]
    expanded = [t[:1].expand(3, -1, -1, -1) for t in (fa, fb, values)]
    assert_close(transfer(backend, *expanded, None, None, beta)[0], one.expand(3, -1, -1, -1), 1e-5)


def test_coordinates_give_the_flow_of_match(backend):
    fa, fb = features(2, 24, 6, 7, 8, 5, torch.float32)
    mask_a, mask_b = masks("holes", 2, 6, 7, 8, 5)
    grid = reference.pixel_grid(8, 5, fa).expand(2, -1, -1, -1)
    beta = torch.tensor(12.0)
    out, lse = transfer(backend, fa, fb, grid, mask_a, mask_b, beta)
    matches = backend.match(fa, fb, mask_a, mask_b, beta)
    found = torch.isfinite(matches[1]).unsqueeze(1)
    assert_close(out, torch.where(found, matches[0] + reference.pixel_grid(6, 7, fa), 0.0), 1e-5)
    assert_close(lse, matches[1], 1e-5)


def test_labels_give_probabilities(backend):
    fa, fb = features(2, 24, 6, 7, 8, 5, torch.float32)
    labels = torch.nn.functional.one_hot(torch.randint(7, (2, 8, 5)), 7).permute(0, 3, 1, 2).float()
    out, _ = transfer(backend, fa, fb, labels, None, torch.rand(2, 8, 5) + 0.1, torch.tensor(12.0))
    assert bool((out >= 0).all())
    assert_close(out.sum(1), torch.ones(2, 6, 7), 1e-5)


def test_nan_of_an_included_target_comes_out(backend):
    fa, fb = features(1, 8, 3, 4, 4, 3, torch.float32)
    values, beta = torch.randn(1, 2, 4, 3), torch.tensor(5.0)
    values[0, 1, 2, 1] = NAN
    out = transfer(backend, fa, fb, values, None, None, beta)[0]
    assert bool(torch.isnan(out[:, 1]).all()) and bool(torch.isfinite(out[:, 0]).all())
    fb[0, 3, 2, 1] = NAN
    assert bool(torch.isnan(transfer(backend, fa, fb, torch.zeros(1, 2, 4, 3), None, None, beta)[0]).all())


@pytest.mark.parametrize("beta", [3e38, -3e38, 1e30])
@pytest.mark.parametrize("targets", [1, 3, 37])
def test_huge_beta(backend, beta, targets):
    """Never NaN while float32 can hold beta * s, and the weights still sum to 1 where several targets tie."""
    fa, fb = torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, targets), -1.1)
    fb[..., 0] = 1.0
    for mask in (None, torch.ones(1, 1, targets)):
        beta_leaf = torch.tensor(beta, requires_grad=True)
        out, _ = transfer(backend, fa, fb, torch.ones(1, 3, 1, targets), None, mask, beta_leaf, False)
        out.sum().backward()
        assert_close(out, torch.ones(1, 3, 1, 2), 1e-6)
        assert bool(torch.isfinite(beta_leaf.grad))


def test_gradient_at_zero_and_tiny_norm(backend):
    fa, fb = features(1, 4, 3, 3, 3, 3, torch.float64)
    fa[0, :, 0, 0] = 0
    fb[0, :, 1, 1] = 1e-13
    values, grad, beta = torch.randn(1, 2, 3, 3).double(), torch.randn(1, 2, 3, 3).double(), torch.tensor(2.0).double()
    arguments = (leaf(values), None, None, leaf(beta), grad)
    actual = run(lambda *a: transfer(backend, *a), leaf(fa), leaf(fb), *arguments)
    expected = run(reference.transfer, leaf(fa), leaf(fb), leaf(values), None, None, leaf(beta), grad)
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        if e is not None:
            scale = e.abs().clamp(min=1)  # gradients of 1e12 beside gradients of 1
            assert_close(a / scale, e / scale, 1e-8, name)


def test_only_what_is_needed(backend):
    """Each gradient alone equals the one that comes with all others."""
    fa, fb = features(1, 6, 4, 5, 3, 7, torch.float64)
    inputs = [fa, fb, torch.randn(1, 3, 3, 7).double(), torch.rand(1, 3, 7).double(), torch.tensor(4.0).double()]
    grad = torch.randn(1, 3, 4, 5).double()

    def gradients(wanted):
        leaves = [leaf(t) if k in wanted else t for k, t in enumerate(inputs)]
        out, _ = transfer(backend, *leaves[:3], None, *leaves[3:])
        return torch.autograd.grad(out, [leaves[k] for k in wanted], grad)

    together = gradients(range(5))
    for k in range(5):
        assert_close(gradients([k])[0], together[k], 1e-12, str(k))


def test_empty_batch(backend):
    out, lse = transfer(backend, torch.zeros(0, 8, 3, 4), torch.zeros(0, 8, 5, 6), torch.zeros(0, 2, 5, 6), None, None,
                        torch.tensor(5.0))  # fmt: skip
    assert out.shape == (0, 2, 3, 4) and lse.shape == (0, 3, 4)


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("values_dtype", FLOATING)
def test_public_dtypes(dtype, values_dtype):
    """The result has the dtype of values and is accumulated in the wider of both; gradients have their input's."""
    fa, fb = (f.to(dtype).requires_grad_() for f in features(2, 8, 4, 5, 6, 3, torch.float64))
    values = torch.randn(2, 3, 6, 3).to(values_dtype).requires_grad_()
    out = cosegflow.transfer(fa, fb, values, beta=5.0)
    assert out.dtype == values_dtype
    exact = reference.transfer(fa.double(), fb.double(), values.double(), None, None, torch.tensor(5.0))
    wide = torch.float64 in (dtype, values_dtype)
    assert_close(out, exact, max(1e-12 if wide else 1e-5, EPS[values_dtype]))
    out.sum().backward()
    assert (fa.grad.dtype, fb.grad.dtype, values.grad.dtype) == (dtype, dtype, values_dtype)


def test_public_function_takes_every_form():
    fa, fb = features(2, 8, 4, 5, 6, 3, torch.float32)
    values, mask = torch.randn(2, 3, 6, 3), torch.rand(2, 6, 3)
    out = cosegflow.transfer(fa, fb, values, mask_b=mask, beta=10)
    assert isinstance(out, torch.Tensor) and out.shape == (2, 3, 4, 5)
    assert torch.equal(cosegflow.transfer(fa, fb, values, None, mask.unsqueeze(1), beta=torch.tensor(10.0)), out)
    assert torch.equal(cosegflow.transfer(fa, fb, values, mask_b=mask, beta=torch.tensor([10.0, 10.0])), out)


def test_autocast_casts_features_only():
    fa, fb = features(2, 32, 4, 5, 6, 3, torch.float32)
    values = torch.randn(2, 3, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        out = cosegflow.transfer(fa, fb, values, beta=10.0)
    assert out.dtype == torch.float32
    exact = reference.transfer(fa.bfloat16().double(), fb.bfloat16().double(), values.double(), None, None,
                               torch.tensor(10.0))  # fmt: skip
    assert_close(out, exact, 1e-5)


F4, V4 = torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5)


@pytest.mark.parametrize(
    "error, call, message",
    [
        (ValueError, lambda: cosegflow.transfer(torch.zeros(3, 4, 5), F4, V4), r"fa must have shape \(B, C, H, W\)"),
        (TypeError, lambda: cosegflow.transfer(F4, F4.half(), V4), r"fb must have the dtype of fa"),
        (TypeError, lambda: cosegflow.transfer(F4, F4, [1.0]), r"values must be a tensor, got list"),
        (TypeError, lambda: cosegflow.transfer(F4, F4, V4.long()), r"values must be float16.* got torch.int64; for"),
        (TypeError, lambda: cosegflow.transfer(F4, F4, V4.bool()), r"values must be float16.* got torch.bool"),
        (ValueError, lambda: cosegflow.transfer(F4, F4, V4[0]), r"values must have shape \(1, V, 4, 5\)"),
        (ValueError, lambda: cosegflow.transfer(F4, F4, V4[:, :0]), r"values must have shape .* with V >= 1"),
        (ValueError, lambda: cosegflow.transfer(F4, F4, V4.transpose(2, 3)), r"values must .* got \(1, 2, 5, 4\)"),
        (ValueError, lambda: cosegflow.transfer(F4, F4, V4.to("meta")), r"values must be on the device of fa"),
        (TypeError, lambda: cosegflow.transfer(F4, F4, V4.to_sparse()), r"values must be a dense tensor"),
        (ValueError, lambda: cosegflow.transfer(F4, F4, V4, torch.zeros(1, 5, 4)), r"mask_a must have shape"),
        (TypeError, lambda: cosegflow.transfer(F4, F4, V4, None, F4[:, 0].byte()), r"pass `mask_b > 0`"),
        (ValueError, lambda: cosegflow.transfer(F4, F4, V4, beta=INF), r"beta must be finite"),
        (TypeError, lambda: cosegflow.transfer(F4, F4, V4, normalize=1), r"normalize must be True or False"),
    ],
)
def test_wrong_arguments(error, call, message):
    with pytest.raises(error, match=message):
        call()

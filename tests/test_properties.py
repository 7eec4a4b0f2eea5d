"""Properties that hold for every call: each operation against its definition, and laws that need no oracle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from errors import EPS, assert_close, assert_no_worse
from hypothesis import given
from hypothesis import strategies as st
from properties import CALLS, HALF, Call, examples, flat, masks_of, pair, sources
from torch import Tensor

import cosegflow
from cosegflow import reference

ALL = pytest.mark.parametrize("name", CALLS)


def evaluate(call: Call, function: Callable[..., tuple[Tensor, ...]], double: bool, seed: int = 0) -> dict[str, Tensor]:
    """Outputs by number, and gradients of a weighted sum of them by the names of the inputs."""
    inputs = {}
    for name, t in call.tensors.items():
        if t is not None and name not in call.constant and t.is_floating_point():
            t = (t.double() if double and not name.startswith("mask") else t).detach().requires_grad_()
        elif t is not None and double and t.is_floating_point() and not name.startswith("mask"):
            t = t.double()
        inputs[name] = t
    outputs = tuple(function(**inputs))
    random = torch.Generator().manual_seed(seed)
    weights = [torch.randn(o.shape, generator=random, dtype=torch.float64) for o in outputs[: call.grads]]
    leaves = {name: t for name, t in inputs.items() if t is not None and t.requires_grad}
    grads = torch.autograd.grad(
        outputs[: call.grads], list(leaves.values()), [w.to(o.dtype) for w, o in zip(weights, outputs, strict=False)]
    )
    results = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    return results | {f"grad {name}": g for name, g in zip(leaves, grads, strict=True)}


def usual_weights(mask: Tensor) -> Tensor:
    """Where the gradient of a mask is of a size that can be compared: not beside weights that outweigh all others."""
    image = mask.flatten(1).double()
    ordinary = (image < 1e3) & (image > 1e-3) | ~(image > 0)
    return (ordinary & ordinary.all(1, keepdim=True)).reshape(mask.shape)


def scale_of(call: Call, key: str, rows: int) -> float:
    """How much larger than its result the terms of a gradient may be, whose roundings it has.

    The gradient of beta sums over all rows. That of a normalised feature is what is left of one 1 / |feature| times as
    large, once its component along the feature is taken away.
    """
    if key == "grad beta":
        return math.sqrt(1 + rows)
    if key in ("grad fa", "grad fb"):
        features = call.tensors[key.removeprefix("grad ")].double()
        norms = torch.linalg.vector_norm(features, dim=1)
        norms = norms[norms > 1e-3]
        terms = math.sqrt(1 + rows) if features.shape[1] == 1 else 2.0  # of one channel nothing is left but rounding
        return terms / min(1.0, norms.min().item()) if norms.numel() else 1.0
    return 1.0


@ALL
def test_against_the_definition(name):
    @examples(150)
    @given(CALLS[name])
    def check(call):
        exact = evaluate(call, call.oracle, True)
        plain = evaluate(call, call.oracle, False)
        actual = evaluate(call, call.actual, False)
        assert actual.keys() == exact.keys()
        for key, e in exact.items():
            a, p = actual[key], plain[key]
            if e.dtype == torch.bool:
                assert torch.equal(a, e), key
                continue
            if key.startswith("grad"):
                given_dtype = call.tensors[key.removeprefix("grad ")].dtype
                assert a.dtype == given_dtype, key
            if key.startswith("grad mask"):
                usual = usual_weights(call.tensors[key.removeprefix("grad ")])
                a, p, e = (torch.where(usual, t.double(), 0.0) for t in (a, p, e))
            e = e.double()
            rounding = EPS[actual[key].dtype] if actual[key].dtype in HALF else 0.0
            if call.dtype == torch.float64:
                assert_close(a, e, 1e-9 + rounding + (1e-6 if actual[key].dtype == torch.float32 else 0), key)
                continue
            slack = (60 + call.logit) * scale_of(call, key, exact["output 0"].numel())
            assert_no_worse(a, p, e, slack * EPS[torch.float32] + rounding, key)

    check()


@ALL
def test_two_runs_are_equal(name):
    @examples(45)
    @given(CALLS[name])
    def check(call):
        first, second = (evaluate(call, call.actual, False) for _ in range(2))
        for key, value in first.items():
            assert torch.equal(value.nan_to_num(7.0), second[key].nan_to_num(7.0)), key

    check()


@ALL
def test_the_order_of_a_batch_does_not_matter(name):
    @examples(45)
    @given(CALLS[name], st.randoms(use_true_random=False))
    def check(call, random):
        batch = next(iter(call.tensors.values())).shape[0]
        order = list(range(batch))
        random.shuffle(order)
        per_image = {k: t for k, t in call.tensors.items() if t is not None and t.dim() > 0}
        permuted = call.actual(**{**call.tensors, **{k: t[order] for k, t in per_image.items()}})
        for got, want in zip(permuted, call.actual(**call.tensors), strict=True):
            assert torch.equal(got.nan_to_num(7.0), want[order].nan_to_num(7.0))

    check()


@ALL
def test_vmap_is_a_loop(name):
    @examples(24)
    @given(CALLS[name])
    def check(call):
        tensors = {k: t for k, t in call.tensors.items() if t is not None}
        absent = dict.fromkeys(call.tensors.keys() - tensors.keys())
        names = list(tensors)
        stacked = [
            torch.stack((tensors[n], tensors[n].flip(-1) if tensors[n].dim() > 1 else tensors[n])) for n in names
        ]

        def one(*values):
            return tuple(call.actual(**dict(zip(names, values, strict=True)), **absent))

        mapped = torch.func.vmap(one)(*stacked)
        for i, looped in enumerate(one(*(t[i] for t in stacked)) for i in range(2)):
            for got, want in zip(mapped, looped, strict=True):
                assert_close(got[i], want, 1e-10 if call.dtype == torch.float64 else 1e-4 + 2 * EPS[call.dtype])

    check()


@pytest.mark.parametrize("name", ["match", "match_both", "transfer"])
def test_excluded_positions_reach_nothing(name):
    """NaN in features (and values) of excluded positions: the same results, and gradients of 0 for them."""

    @examples(75)
    @given(CALLS[name])
    def check(call):
        kept = {x: call.tensors[f"mask_{x}"] for x in "ab"}
        kept = {x: None if m is None else flat(m) > 0 for x, m in kept.items()}
        spoilt = dict(call.tensors)
        for key, x in (("fa", "a"), ("fb", "b"), ("values", "b")):
            if key in spoilt and kept[x] is not None:
                spoilt[key] = torch.where(kept[x].unsqueeze(1), spoilt[key], math.nan)
        dense = {k: None if t is None else t.contiguous() for k, t in call.tensors.items()}
        call = Call(call.actual, call.oracle, dense, call.grads, call.constant, call.dtype)
        clean = evaluate(call, call.actual, False)
        call.tensors = spoilt
        for key, value in evaluate(call, call.actual, False).items():
            assert not torch.isnan(value).any() or torch.isnan(clean[key]).any(), key
            assert torch.equal(value.nan_to_num(7.0), clean[key].nan_to_num(7.0)), key
        for key, x in (("grad fa", "a"), ("grad fb", "b")):
            if kept[x] is not None:
                assert not clean[key].masked_fill(kept[x].unsqueeze(1), 0.0).any(), key

    check()


@examples(75)
@given(sources())
def test_match_is_soft_argmax_of_correlation(s):
    fa, fb = (t.double() for t in pair(s).values())
    mask_b, beta = s.mask(fb.shape[0], *fb.shape[2:]), s.beta(fb.shape[0]).double()
    sigma = s.one(None, 1.5)
    corr = cosegflow.correlation(fa, fb, normalize=True)
    options = {"beta": beta, "kernel_sigma": sigma, "return_index": True}
    one, two = cosegflow.match(fa, fb, None, mask_b, **options), cosegflow.soft_argmax(corr, mask_b, **options)
    if not torch.equal(one.index, two.index):  # equal logits but for rounding
        assert_close(one.score, two.score, 1e-12, "score of ties")
        return
    for name, got, want in zip(one._fields, one, two, strict=True):
        assert_close(got, want, 1e-9, name)


@examples(75)
@given(sources())
def test_an_excluded_target_does_not_exist(s):
    fa, fb = (t.double() for t in pair(s).values())
    kept = s.draw(st.integers(1, fb.shape[3]))
    values = s.normal(fb.shape[0], 3, *fb.shape[2:], dtype=torch.float64)
    mask_b = torch.zeros(fb.shape[0], *fb.shape[2:])
    mask_b[..., :kept] = 1.0
    beta = s.beta(fb.shape[0]).double()
    masked, cropped = (cosegflow.match(fa, b, None, m, beta=beta, return_index=True)
                       for b, m in ((fb, mask_b), (fb[..., :kept], None)))  # fmt: skip
    for name, got, want in zip(masked._fields[:3], masked, cropped, strict=False):
        assert_close(got, want, 1e-10, name)
    assert_close(cosegflow.transfer(fa, fb, values, None, mask_b, beta=beta),
                 cosegflow.transfer(fa, fb[..., :kept], values[..., :kept], beta=beta), 1e-10)  # fmt: skip


@examples(60)
@given(sources())
def test_shifted_features_have_the_shift_as_flow(s):
    """One direction of its own for each pixel, so that each has one match."""
    (h, w), dtype = s.sides(2), s.dtype
    dy, dx = s.draw(st.integers(0, h - 1)), s.draw(st.integers(0, w - 1))
    fa = torch.eye(h * w).reshape(1, h * w, h, w).to(dtype)
    flow = cosegflow.match(fa, fa.roll((dy, dx), (2, 3)), beta=100.0).flow
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    expected = torch.stack(((x + dx) % w - x, (y + dy) % h - y))[None].to(flow.dtype)
    assert_close(flow, expected, 1e-6)
    assert_close(cosegflow.cycle_error(flow, -flow.roll((dy, dx), (2, 3))).error, torch.zeros(1, h, w), 1e-4)


@examples(60)
@given(sources())
def test_warp_by_a_whole_flow_shifts(s):
    batch, (h, w) = s.one(1, 2), s.sides(2)
    dx, dy = (s.draw(st.integers(-3, 3)) for _ in range(2))
    mode, padding = s.one("bilinear", "nearest"), s.one("zeros", "border")
    x = s.normal(batch, 3, h, w)
    flow = torch.tensor([dx, dy], dtype=reference.accumulate_dtype(s.dtype)).reshape(1, 2, 1, 1).expand(batch, 2, h, w)
    out, valid = cosegflow.warp(x, flow, mode=mode, padding=padding, return_valid=True)
    for i, j in itertools.product(range(h), range(w)):
        y_, x_ = i + dy, j + dx
        inside = 0 <= y_ < h and 0 <= x_ < w
        assert bool((valid[:, i, j] == inside).all())
        if inside or padding == "border":
            assert torch.equal(out[:, :, i, j], x[:, :, min(max(y_, 0), h - 1), min(max(x_, 0), w - 1)])
        else:
            assert not out[:, :, i, j].any()


@examples(45)
@given(sources())
def test_the_cycle_of_flows_of_zero_is_zero(s):
    batch, (ha, wa, hb, wb) = s.one(0, 1, 2), s.sides(4)
    zero = torch.zeros(batch, 2, ha, wa, dtype=s.dtype), torch.zeros(batch, 2, hb, wb, dtype=s.dtype)
    error, valid = cosegflow.cycle_error(*zero)
    assert not error.any()
    inside = (torch.arange(ha) < hb)[:, None] & (torch.arange(wa) < wb)
    assert torch.equal(valid, inside.expand(batch, ha, wa))


@examples(75)
@given(sources())
def test_transfer_of_a_constant_is_the_constant(s):
    tensors = pair(s)
    masks_of(s, tensors)
    fa, fb = tensors["fa"], tensors["fb"]
    constant = s.one(1.0, -2.0, 0.5)
    values = torch.full((fb.shape[0], 2, *fb.shape[2:]), constant, dtype=s.dtype)
    out = cosegflow.transfer(fa, fb, values, tensors["mask_a"], tensors["mask_b"], beta=s.one(0.0, -3.0, 20.0))
    allowed = torch.ones(out.shape, dtype=torch.bool)
    if tensors["mask_a"] is not None:
        allowed &= (flat(tensors["mask_a"]) > 0).unsqueeze(1)
    if tensors["mask_b"] is not None:
        allowed &= (flat(tensors["mask_b"]) > 0).flatten(1).any(1).reshape(-1, 1, 1, 1)
    assert_close(out, torch.where(allowed, constant, 0.0).to(s.dtype), 30 * EPS[torch.float32] + EPS[s.dtype])


@examples(60)
@given(sources())
def test_resize_flow_to_the_same_sizes(s):
    batch, (h, w) = s.one(0, 1, 2), s.sides(2)
    flow = s.normal(batch, 2, h, w)
    resized = cosegflow.resize_flow(flow, (h, w), (h, w))
    assert_close(resized, flow, 8 * EPS[s.dtype])

"""local_correlation on every backend, against reference.local_correlation in float64."""

import backends
import numpy as np
import pytest
import torch
from errors import EPS, assert_close, assert_no_worse

import cosegflow
from cosegflow import reference

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# (B, C, Ha, Wa, Hb, Wb, radius): windows larger than the image, tiles with tails, both images of any size
SHAPES = [
    (1, 1, 1, 1, 1, 1, 0),
    (2, 19, 7, 37, 5, 41, 2),
    (1, 33, 5, 3, 4, 17, 4),
    (2, 3, 2, 5, 3, 1, 5),
    (1, 40, 9, 19, 9, 19, 1),
    (1, 1025, 2, 3, 3, 2, 1),
]


def make_flow(batch, height, width, dtype):
    """Inside, outside, on pixel centres, non-finite and enormous; sums with coordinates are exact in float32."""
    flow = (torch.randn(batch, 2, height, width, dtype=torch.float64) * 3 * 256).round() / 256
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.0, 1.0, -1.0, 0.5])
    flat = flow.flatten()
    where = torch.randperm(flat.numel())[: flat.numel() // 4]
    flat[where] = special[torch.randint(len(special), (len(where),))].double()
    return flat.reshape(flow.shape).to(reference.accumulate_dtype(dtype))


def run(function, fa, fb, radius, flow, grad, *options):
    """Output and gradients to fa, fb and, where there is one, flow."""
    leaves = [t.clone().requires_grad_() for t in (fa, fb, flow) if t is not None]
    out = function(leaves[0], leaves[1], radius, None if flow is None else leaves[2], *options)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def check(backend, fa, fb, radius, flow, normalize, simple=False):
    """Output and gradients against float64, and no worse than the reference in the dtype of the features."""
    dtype = fa.dtype
    grad = torch.randn(fa.shape[0], (2 * radius + 1) ** 2, *fa.shape[2:]).to(dtype)
    flow64 = None if flow is None else flow.double()
    exact = run(reference.local_correlation, fa.double(), fb.double(), radius, flow64, grad, normalize)
    plain = run(reference.local_correlation, fa, fb, radius, flow, grad, normalize)
    actual = run(backend.local_correlation, fa, fb, radius, flow, grad, normalize, simple)
    for name, a, p, e, d in zip(("out", "grad fa", "grad fb", "grad flow"), actual, plain, exact,
                                (dtype, dtype, dtype, reference.accumulate_dtype(dtype)), strict=False):  # fmt: skip
        assert a.dtype == d
        if dtype == torch.float64:
            assert_close(a, e, 1e-12, name)
        else:
            assert_no_worse(a, p, e, 30 * EPS[torch.float32] + EPS[d], name)


def check_orders(*arguments):
    """hostsim: the same bits in any order of blocks and threads."""
    module, backend, results = backends.hostsim_module(), backends.Hostsim(), []
    try:
        for order, seed in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
            module.set_order(order, seed)
            results.append(run(backend.local_correlation, *arguments))
    finally:
        module.set_order("forward", 0)
    for result in results[1:]:
        assert all(torch.equal(r, first) for r, first in zip(result, results[0], strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATING, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("with_flow", [False, True], ids=["grid", "flow"])
@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalize"])
@pytest.mark.parametrize("simple", [False, True], ids=["fast", "simple"])
def test_values_and_gradients(backend, simple, normalize, with_flow, dtype, shape):
    if simple and backend.name == "cpu":
        pytest.skip("there is one kernel")
    batch, channels, ha, wa, hb, wb, radius = shape
    fa, fb = torch.randn(batch, channels, ha, wa).to(dtype), torch.randn(batch, channels, hb, wb).to(dtype)
    flow = make_flow(batch, ha, wa, dtype) if with_flow else None
    check(backend, fa, fb, radius, flow, normalize, simple)


def test_definition():
    """The window is row by row from (-r, -r), and with flow it is what warp samples."""
    fa, fb = torch.randn(1, 6, 5, 7).double(), torch.randn(1, 6, 5, 7).double()
    flow = torch.randn(1, 2, 5, 7).double() * 2
    out, moved = cosegflow.local_correlation(fa, fb, 2), cosegflow.local_correlation(fa, fb, 2, flow)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            k = (dy + 2) * 5 + dx + 2
            offset = torch.tensor([dx, dy]).double().reshape(1, 2, 1, 1)
            assert_close(out[:, k], (fa * cosegflow.warp(fb, offset.expand_as(flow).clone())).sum(1), 1e-12)
            assert_close(moved[:, k], (fa * cosegflow.warp(fb, flow + offset)).sum(1), 1e-12)
    assert_close(cosegflow.local_correlation(fa, fb, 2, torch.zeros_like(flow)), out, 1e-12)


@pytest.mark.parametrize("radius", [3, 4, 8])
@pytest.mark.parametrize("with_flow", [False, True])
def test_large_images(backend, radius, with_flow):
    """Several tiles, strips and pieces of a window; sides that no tile divides."""
    fa, fb = torch.randn(1, 21, 11, 70), torch.randn(1, 21, 13, 67)
    flow = (torch.randn(1, 2, 11, 70) * 1024).round() / 256 if with_flow else None
    expected = reference.local_correlation(fa.double(), fb.double(), radius, flow)
    assert_close(backend.local_correlation(fa, fb, radius, flow), expected, 1e-5)


def flow_to(x, y, height, width):
    """The flow that takes every pixel to (x, y)."""
    return torch.tensor([x, y]).reshape(1, 2, 1, 1) - reference.pixel_grid(height, width, torch.zeros(1)).unsqueeze(0)


# What the kernels along a flow tell apart: four neighbouring windows that are nearly one, or not; windows that all lie
# at one place, in one cell or in a few; that lie inside, half outside or far away.
FLOWS = {
    "smooth": lambda h, w: torch.stack([x * 0.1 + y * 0.03 - 1 for y, x in [torch.meshgrid(
        torch.arange(h).float(), torch.arange(w).float(), indexing="ij")]] * 2).unsqueeze(0),
    "torn": lambda h, w: torch.rand(1, 2, h, w) * 40 - 20,
    "one place": lambda h, w: flow_to(5.25, 3.5, h, w),
    "a corner": lambda h, w: flow_to(-0.5, -1.75, h, w) + torch.rand(1, 2, h, w),
    "a column": lambda h, w: flow_to(7.0, 0.0, h, w) * torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1),
    "outside": lambda h, w: flow_to(-300.0, 1e30, h, w),
}  # fmt: skip
# (channels, Ha, Wa, Hb, Wb, radius): part of a chunk of channels, several; runs of pixels with a tail; several pieces
FLOW_SHAPES = [
    (3, 34, 35, 11, 14, 1),
    (3, 34, 35, 13, 16, 1),
    (9, 13, 18, 12, 17, 4),
    (130, 3, 10, 4, 9, 2),
    (20, 4, 9, 15, 13, 7),
    (5, 3, 3, 4, 4, 130),
]


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalize"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("shape", FLOW_SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("flow", FLOWS)
def test_kernels_along_a_flow(backend, flow, shape, dtype, normalize):
    """The fast kernels against the simple ones."""
    if backend.name == "cpu":
        pytest.skip("there is one kernel")
    channels, ha, wa, hb, wb, radius = shape
    fa, fb = torch.randn(1, channels, ha, wa).to(dtype), torch.randn(1, channels, hb, wb).to(dtype)
    flow = FLOWS[flow](ha, wa).to(reference.accumulate_dtype(dtype))
    grad = torch.randn(1, (2 * radius + 1) ** 2, ha, wa).to(dtype)
    fast = run(backend.local_correlation, fa, fb, radius, flow, grad, normalize)
    simple = run(backend.local_correlation, fa, fb, radius, flow, grad, normalize, True)
    for name, f, s in zip(("out", "grad fa", "grad fb", "grad flow"), fast, simple, strict=True):
        scale = s.abs().max().clamp(min=1e-30).double()
        assert_close(f.double() / scale, s.double() / scale, 64 * EPS[f.dtype], name)


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
@pytest.mark.parametrize("normalize", [False, True])
def test_one_gradient_along_a_flow(backend, needed, normalize):
    """Each gradient alone: a workspace holds only what it takes."""
    inputs = [torch.randn(2, 12, 5, 6), torch.randn(2, 12, 7, 4), torch.randn(2, 2, 5, 6) * 2]
    grad = torch.randn(2, 9, 5, 6)
    everything = run(backend.local_correlation, *inputs[:2], 1, inputs[2], grad, normalize)[1:]
    leaves = [t.clone().requires_grad_(n) for t, n in zip(inputs, needed, strict=True)]
    backend.local_correlation(*leaves[:2], 1, leaves[2], normalize).backward(grad)
    for leaf, expected, need in zip(leaves, everything, needed, strict=True):
        assert (leaf.grad is not None) == need and (not need or torch.equal(leaf.grad, expected))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_channels_last_along_a_flow(backend, dtype):
    """Rows of channels that are read in place, or packed because they are not aligned: the same bits."""
    if backend.name == "cpu":
        pytest.skip("no rows on the CPU")
    fa, fb = torch.randn(2, 40, 5, 9).to(dtype), torch.randn(2, 40, 6, 7).to(dtype)
    flow, grad = make_flow(2, 5, 9, dtype), torch.randn(2, 25, 5, 9).to(dtype)
    expected = run(backend.local_correlation, fa, fb, 2, flow, grad)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (fa, fb)]
    shifted = [torch.cat((t[:, :1], t), 1).contiguous(memory_format=torch.channels_last)[:, 1:] for t in (fa, fb)]
    for a, b in (last, shifted, (last[0], fb), (fa, last[1])):
        out = backend.local_correlation(a, b, 2, flow)
        assert torch.equal(out, expected[0])
        for result, e in zip(run(backend.local_correlation, a, b, 2, flow, grad), expected, strict=True):
            assert torch.equal(result, e)


def test_infinity_between_windows(backend):
    """Sums over what four neighbouring pixels see together leave out what one of them does not see."""
    fa, fb = torch.randn(1, 5, 4, 16), torch.randn(1, 5, 4, 16)
    fa[0, 1, 2, 5], fb[0, 3, 1, 9], fb[0, 2, 2, 2] = float("inf"), float("nan"), -float("inf")
    flow, grad = torch.full((1, 2, 4, 16), 0.5), torch.randn(1, 9, 4, 16)
    expected = run(reference.local_correlation, fa.double(), fb.double(), 1, flow.double(), grad.double())
    actual = run(backend.local_correlation, fa, fb, 1, flow, grad)
    for name, a, e in zip(("out", "grad fa", "grad fb", "grad flow"), actual, expected, strict=True):
        finite = torch.isfinite(e)
        assert torch.equal(torch.isfinite(a), finite) and bool(finite.any()) and not bool(finite.all()), name
        assert_close(a[finite], e[finite], 1e-5, name)


@pytest.mark.parametrize("with_flow", [False, True], ids=["grid", "flow"])
@pytest.mark.parametrize("channels", [128, 512])
def test_many_channels(backend, channels, with_flow):
    """No slack here: sums over many channels must not be one long chain of float32 adds. A flow of whole pixels, so
    that no error of the coordinates hides that of the sums."""
    if backend.name != "cpu":
        pytest.skip("the order of the sums is that of the CPU kernels")
    size = 20
    fa, fb = torch.randn(1, channels, size, size), torch.randn(1, channels, size, size)
    flow = torch.randint(-3, 4, (1, 2, size, size)).float() if with_flow else None
    grad = torch.randn(1, 49, size, size)
    exact = run(reference.local_correlation, fa.double(), fb.double(), 3, None if flow is None else flow.double(), grad)
    plain = run(reference.local_correlation, fa, fb, 3, flow, grad)
    actual = run(backend.local_correlation, fa, fb, 3, flow, grad)
    for name, a, p, e in zip(("out", "grad fa", "grad fb", "grad flow"), actual, plain, exact, strict=False):
        assert_no_worse(a, p, e, 0.0, name)


@pytest.mark.parametrize("with_flow", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(backend, dtype, with_flow):
    fa, fb = torch.randn(2, 16, 5, 6).to(dtype), torch.randn(2, 16, 7, 4).to(dtype)
    flow = make_flow(2, 5, 6, dtype) if with_flow else None
    grad = torch.randn(2, 25, 5, 6).to(dtype)
    expected = run(backend.local_correlation, fa, fb, 2, flow, grad)
    last = fa.contiguous(memory_format=torch.channels_last)
    flipped = fb.flip(3).contiguous().flip(3)
    strided_flow = None if flow is None else torch.stack((flow, flow), -1)[..., 0]
    strided_grad = grad.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    actual = run(backend.local_correlation, last, flipped, 2, strided_flow, strided_grad)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 4 * EPS[dtype])
    spread = fa[:1].expand(2, -1, -1, -1)
    assert torch.equal(backend.local_correlation(spread, fb, 2, flow), backend.local_correlation(
        spread.contiguous(), fb, 2, flow))  # fmt: skip


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("with_flow", [False, True])
def test_gradcheck(backend, with_flow, normalize):
    fa, fb = torch.randn(2, 3, 3, 4).double().requires_grad_(), torch.randn(2, 3, 4, 3).double().requires_grad_()
    # Away from the pixel centres, where the bilinear surface has kinks.
    flow = (torch.randint(-2, 3, (2, 2, 3, 4)) + 0.2 + 0.6 * torch.rand(2, 2, 3, 4)).double().requires_grad_()
    inputs = (fa, fb, flow) if with_flow else (fa, fb)

    def call(fa, fb, flow=None):
        return backend.local_correlation(fa, fb, 1, flow, normalize)

    assert torch.autograd.gradcheck(call, inputs)


def test_gradgradcheck_without_flow():
    fa, fb = torch.randn(1, 2, 3, 2).double().requires_grad_(), torch.randn(1, 2, 2, 3).double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a, b: cosegflow.local_correlation(a, b, 1, normalize=True), (fa, fb))


def test_outside_is_zero_in_every_sense(backend):
    """Non-finite flow: value 0 and gradient 0, with features and incoming gradients that are not finite."""
    fa = torch.full((1, 3, 4, 4), float("inf"))
    fb = torch.full((1, 3, 4, 4), float("nan"))
    flow = torch.full((1, 2, 4, 4), float("nan"))
    grad = torch.full((1, 9, 4, 4), float("nan"))
    for result in run(backend.local_correlation, fa, fb, 1, flow, grad):
        assert torch.equal(result, torch.zeros_like(result))


def test_only_the_window_counts(backend):
    """Features and gradients that are not finite reach what their windows touch, and nothing else."""
    fa, fb = torch.randn(1, 5, 9, 20), torch.randn(1, 5, 8, 22)
    grad = torch.randn(1, 9, 9, 20)
    fa[0, :, 4, 6], fb[0, 2, 3, 11], grad[0, 4, 0, 0] = float("nan"), float("inf"), float("nan")
    exact = [t.double() for t in (fa, fb, grad)]
    for flow in (None, torch.full((1, 2, 9, 20), 0.25)):
        flow64 = None if flow is None else flow.double()
        expected = run(reference.local_correlation, *exact[:2], 1, flow64, exact[2])
        actual = run(backend.local_correlation, fa, fb, 1, flow, grad)
        for name, a, e in zip(("out", "grad fa", "grad fb", "grad flow"), actual, expected, strict=False):
            assert torch.equal(torch.isfinite(a), torch.isfinite(e)), name
            finite = torch.isfinite(e)
            assert_close(a[finite], e[finite], 1e-5, name)


def test_padding_times_infinity(backend):
    """Zeros outside of b are zeros whatever the feature of a."""
    fa, fb = torch.full((1, 2, 3, 3), float("inf")), torch.ones(1, 2, 3, 3)
    out = backend.local_correlation(fa, fb, 1)
    assert torch.equal(out[0, 0, 0], torch.zeros(3)) and torch.equal(out[0, 0, :, 0], torch.zeros(3))
    assert bool(torch.isinf(out[0, 4]).all())


def test_zero_feature(backend):
    fa, fb = torch.randn(1, 4, 3, 3).double(), torch.randn(1, 4, 3, 3).double()
    fa[0, :, 1, 1] = fb[0, :, 0, 0] = 0
    grad = torch.randn(1, 9, 3, 3).double()
    actual = run(backend.local_correlation, fa, fb, 1, None, grad, True)
    for a, e in zip(actual, run(reference.local_correlation, fa, fb, 1, None, grad, True), strict=True):
        scale = e.abs().clamp(min=1)
        assert_close(a / scale, e / scale, 1e-9)


def test_empty_batch(backend):
    assert backend.local_correlation(torch.zeros(0, 8, 3, 4), torch.zeros(0, 8, 5, 6), 2).shape == (0, 25, 3, 4)
    out = backend.local_correlation(torch.zeros(0, 8, 3, 4), torch.zeros(0, 8, 5, 6), 0, torch.zeros(0, 2, 3, 4))
    assert out.shape == (0, 1, 3, 4)


@pytest.mark.parametrize("flow", [None, "torn", "one place", "a corner"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic(deterministic, flow):
    """hostsim: the same bits in any order of blocks and threads; the fast kernels have no other path."""
    fa, fb = torch.randn(2, 9, 26, 25), torch.randn(2, 9, 5, 7)
    flow = None if flow is None else FLOWS[flow](26, 25).expand(2, -1, -1, -1)
    check_orders(fa, fb, 2, flow, torch.randn(2, 25, 26, 25), True, False, deterministic)


@pytest.mark.parametrize("with_flow", [False, True])
def test_threads_do_not_change_the_cpu_result(with_flow):
    fa, fb, grad = torch.randn(1, 48, 30, 33), torch.randn(1, 48, 30, 33), torch.randn(1, 81, 30, 33)
    flow = torch.randn(1, 2, 30, 33) * 3 if with_flow else None
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(backends.Torch("cpu").local_correlation, fa, fb, 4, flow, grad, True))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(r, first) for r, first in zip(result, results[0], strict=True))


def test_autocast():
    fa, fb = torch.randn(1, 16, 4, 5), torch.randn(1, 16, 4, 5)
    flow = torch.rand(1, 2, 4, 5).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = cosegflow.local_correlation(fa, fb, 1, flow)
        mapped = torch.func.vmap(lambda a, b, f: cosegflow.local_correlation(a, b, 1, f))(
            fa[None], fb[None], flow[None]
        )
    assert out.dtype == torch.bfloat16 and mapped.dtype == torch.bfloat16
    exact = reference.local_correlation(fa.bfloat16().double(), fb.bfloat16().double(), 1, flow.double())
    assert_close(out, exact, EPS[torch.bfloat16], "the flow is not rounded")
    out.float().sum().backward()
    assert flow.grad is not None and flow.grad.dtype == torch.float32


def test_compile_without_flow():
    torch._dynamo.reset()
    fa, fb = torch.randn(1, 4, 5, 6, requires_grad=True), torch.randn(1, 4, 5, 6)
    compiled = torch.compile(lambda a, b: cosegflow.local_correlation(a, b, 2).square().sum(), fullgraph=True,
                             dynamic=True, backend="aot_eager")  # fmt: skip
    (actual,) = torch.autograd.grad(compiled(fa, fb), fa)
    (expected,) = torch.autograd.grad(cosegflow.local_correlation(fa, fb, 2).square().sum(), fa)
    assert torch.equal(actual, expected)


def test_numpy_radius():
    fa = torch.randn(1, 2, 3, 3)
    assert torch.equal(cosegflow.local_correlation(fa, fa, np.int64(1)), cosegflow.local_correlation(fa, fa, 1))


FEATURES = torch.zeros(1, 3, 4, 5)


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        ((FEATURES, torch.zeros(4, 5), 1), {}, ValueError, r"fb must have shape \(B, C, H, W\), got \(4, 5\)"),
        ((FEATURES, torch.zeros(1, 2, 4, 5), 1), {}, ValueError, r"same batch size and number of channels"),
        ((FEATURES, FEATURES, -1), {}, ValueError, r"radius must be in 0 .. 16383, got -1"),
        ((FEATURES, FEATURES, 20000), {}, ValueError, r"radius must be in 0 .. 16383, got 20000"),
        ((FEATURES, FEATURES, 1.0), {}, TypeError, r"radius must be an integer, got float"),
        ((FEATURES, FEATURES, True), {}, TypeError, r"radius must be an integer, got bool"),
        ((FEATURES, FEATURES, torch.tensor(1)), {}, TypeError, r"radius must be an integer, got Tensor"),
        ((FEATURES, FEATURES, 1, torch.zeros(1, 2, 4, 4)), {}, ValueError, r"flow must have shape \(1, 2, 4, 5\)"),
        ((FEATURES, FEATURES, 1, torch.zeros(1, 2, 4, 5).int()), {}, TypeError, r"flow must be float16"),
        ((FEATURES, FEATURES, 1, [0.0]), {}, TypeError, r"flow must be a tensor, got list"),
        ((FEATURES, FEATURES, 1), {"normalize": 1}, TypeError, r"normalize must be True or False, got int"),
        ((FEATURES.long(), FEATURES.long(), 1), {}, TypeError, r"fa must be float16.* got torch.int64"),
    ],
)
def test_wrong_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        cosegflow.local_correlation(*arguments, **options)

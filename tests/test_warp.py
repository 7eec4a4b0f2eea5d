"""warp on every backend, against reference.warp in float64."""

import math

import pytest
import torch
from errors import EPS, assert_close

import cosegflow
from cosegflow import reference

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# (B, C, H, W, Ho, Wo)
SHAPES = [(2, 3, 7, 5, 4, 6), (1, 1, 1, 1, 1, 1), (1, 17, 13, 11, 13, 11), (3, 2, 1, 9, 5, 1), (2, 33, 2, 3, 17, 19)]


def difficult_flow(batch: int, height: int, width: int) -> torch.Tensor:
    """Inside, outside, on pixel centres, on the border, non-finite, and enormous."""
    flow = torch.randn(batch, 2, height, width, dtype=torch.float64) * 3
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.0, 1.0, -1.0, 0.5])
    flat = flow.flatten()
    where = torch.randperm(flat.numel())[: flat.numel() // 3]
    flat[where] = special[torch.randint(len(special), (len(where),))].double()
    return flat.reshape(flow.shape)


def on_the_grid_of(dtype: torch.dtype, flow: torch.Tensor) -> torch.Tensor:
    """Flows whose sums with pixel coordinates are exact in float32, so that no tap flips between precisions."""
    return flow if dtype == torch.float64 else (flow * 256).round() / 256


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("simple", [False, True], ids=["fast", "simple"])
def test_values_and_gradients(backend, simple, shape, mode, padding, dtype):
    if simple and backend.name == "cpu":
        pytest.skip("the CPU has one kernel")
    batch, channels, height, width, ho, wo = shape
    x = torch.randn(batch, channels, height, width).to(dtype).requires_grad_()
    flow = on_the_grid_of(dtype, difficult_flow(batch, ho, wo)).to(reference.accumulate_dtype(dtype)).requires_grad_()
    x64, flow64 = x.detach().double().requires_grad_(), flow.detach().double().requires_grad_()

    out, valid = backend.warp(x, flow, mode, padding, False, simple)
    expected, expected_valid = reference.warp(x64, flow64, mode, padding)
    assert out.dtype == dtype
    assert_close(out, expected, 4 * EPS[dtype], "out")
    assert torch.equal(valid, expected_valid)

    grad = torch.randn(expected.shape).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    accumulate_eps = EPS[reference.accumulate_dtype(dtype)]
    assert x.grad.dtype == dtype
    assert_close(x.grad, x64.grad, 4 * EPS[dtype] + 40 * accumulate_eps, "grad x")
    if mode == "bilinear":
        assert_close(flow.grad, flow64.grad, 100 * accumulate_eps, "grad flow")
    else:
        assert torch.equal(flow.grad, torch.zeros_like(flow.grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(backend, dtype):
    base = torch.randn(2, 8, 6, 10).to(dtype)
    flow = difficult_flow(2, 5, 7).float()
    expected = backend.warp(base, flow)[0]
    spaced = torch.zeros(2, 16, 6, 20, dtype=dtype)[:, ::2, :, ::2]
    spaced.copy_(base)
    for x in (base.contiguous(memory_format=torch.channels_last), spaced):
        assert torch.equal(backend.warp(x, flow)[0], expected)
    strided_flow = torch.stack((flow, flow), dim=-1)[..., 0]
    assert torch.equal(backend.warp(base, strided_flow)[0], expected)
    one = base[:1]
    assert torch.equal(backend.warp(one.expand(2, -1, -1, -1), flow)[0], backend.warp(one.repeat(2, 1, 1, 1), flow)[0])


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_gradcheck(backend, padding):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    # Away from the pixel centres, where the bilinear surface has kinks.
    flow = (torch.randint(-3, 4, (2, 2, 3, 4)).double() + 0.2 + 0.6 * torch.rand(2, 2, 3, 4).double()).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, f: backend.warp(x, f, "bilinear", padding)[0], (x, flow))


def test_gradgradcheck():
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    flow = (torch.randint(-2, 3, (1, 2, 3, 4)).double() + 0.3 + 0.4 * torch.rand(1, 2, 3, 4).double()).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, f: cosegflow.warp(x, f), (x, flow))


def test_outside_is_zero_in_every_sense(backend):
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    flow = torch.full((1, 2, 4, 4), float("nan"), requires_grad=True)
    for padding in ("zeros", "border"):
        x.grad = flow.grad = None
        out, valid = backend.warp(x, flow, "bilinear", padding)
        out.backward(torch.full_like(out, float("inf")))
        assert torch.equal(out, torch.zeros_like(out)) and not valid.any()
        assert torch.equal(x.grad, torch.zeros_like(x)) and torch.equal(flow.grad, torch.zeros_like(flow))


@pytest.mark.parametrize("channels", [3, 8, 16])
def test_a_flow_that_moves_nothing_has_no_gradient(backend, channels):
    """0, not 0 times what x or the incoming gradient holds: rounded to the nearest pixel, or held at the border."""
    x = torch.full((1, channels, 6, 7), float("inf"))
    for layout in (torch.contiguous_format, torch.channels_last):
        image = x.contiguous(memory_format=layout)
        flow = torch.randn(1, 2, 6, 7, requires_grad=True)
        backend.warp(image, flow, "nearest", "zeros")[0].backward(torch.full_like(x, float("nan")))
        assert torch.equal(flow.grad, torch.zeros_like(flow))
        flow = torch.tensor([20.0, 0.25]).reshape(1, 2, 1, 1).expand(1, 2, 6, 7).clone().requires_grad_()
        backend.warp(image, flow, "bilinear", "border")[0].backward(torch.ones_like(x))
        assert torch.equal(flow.grad[:, 0], torch.zeros(1, 6, 7))


def test_identity_and_shift(backend):
    x = torch.randn(1, 3, 5, 6)
    assert torch.equal(backend.warp(x, torch.zeros(1, 2, 5, 6))[0], x)
    shift = torch.zeros(1, 2, 5, 6)
    shift[:, 0] = 1  # one pixel to the right: out[..., j] = x[..., j + 1]
    out, valid = backend.warp(x, shift)
    assert torch.equal(out[..., :-1], x[..., 1:]) and torch.equal(out[..., -1], torch.zeros(1, 3, 5))
    assert valid[..., :-1].all() and not valid[..., -1].any()


def test_empty_batch(backend):
    out, valid = backend.warp(torch.zeros(0, 3, 4, 5), torch.zeros(0, 2, 6, 7))
    assert out.shape == (0, 3, 6, 7) and valid.shape == (0, 6, 7)


# What lands where: all pixels in the cell of one point; the whole image shown large; wherever chance has it.
def landing_flow(kind: str, height: int, width: int, ho: int, wo: int) -> torch.Tensor:
    down, across = torch.meshgrid(torch.arange(ho).float(), torch.arange(wo).float(), indexing="ij")
    if kind == "one":
        return torch.stack((width / 2 + 0.25 - across, height / 3 + 0.5 - down))[None]
    if kind == "upsampled":
        return torch.stack((across * ((width - 1) / (wo - 1) - 1), down * ((height - 1) / (ho - 1) - 1)))[None]
    return torch.randn(1, 2, ho, wo) * (width / 2)


@pytest.mark.parametrize("kind", ["one", "upsampled", "random"])
@pytest.mark.parametrize("layout", ["planes", "channels"])
def test_crowded_pixels(backend, kind, layout):
    """Cells of any number of pixels, in both layouts, with channels that are no power of two."""
    x, grad = torch.randn(1, 24, 6, 5), torch.randn(1, 24, 30, 50)
    if layout == "channels":
        x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    flow = on_the_grid_of(torch.float32, landing_flow(kind, 6, 5, 30, 50)).requires_grad_()
    leaves = [x.requires_grad_(), flow]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    out, expected = backend.warp(*leaves)[0], reference.warp(*exact)[0]
    assert_close(out, expected, 1e-6, "out")
    got, want = torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, exact, grad.double())
    assert_close(got[0], want[0], 1e-5, "grad x")
    assert_close(got[1], want[1], 1e-5, "grad flow")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 16, 72])
def test_layouts_of_gradients(backend, dtype, channels):
    """x and the incoming gradient, each in any layout."""
    shape, out_shape = (2, channels, 9, 11), (2, channels, 7, 34)
    values, grad = torch.randn(shape).to(dtype), torch.randn(out_shape).to(dtype)
    flow = on_the_grid_of(dtype, difficult_flow(2, 7, 34)).float()
    results = []
    for last_x, last_grad in ((False, False), (True, False), (False, True), (True, True)):
        x, g = (
            t.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
            for t, last in ((values, last_x), (grad, last_grad))
        )
        leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_(), flow.clone().requires_grad_()]
        results.append(torch.autograd.grad(backend.warp(*leaves)[0], leaves, g))
    for got in results[1:]:
        assert_close(got[0], results[0][0], EPS[dtype], "grad x")
        assert_close(got[1], results[0][1], 1e-5, "grad flow")


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("reach", [2.0, 30.0])
def test_halves_in_eights(backend, reach, padding):
    """Planes of halves that can be read four at a time: neighbours land near each other, or all over the image."""
    x = torch.randn(1, 24, 40, 64).bfloat16()
    flow = torch.randn(1, 2, 35, 70) * reach
    flow[..., ::9, ::7] = math.nan
    flow = on_the_grid_of(torch.bfloat16, flow)
    out, valid = backend.warp(x, flow, "bilinear", padding)
    expected, expected_valid = reference.warp(x.double(), flow.double(), "bilinear", padding)
    assert_close(out, expected, 4 * EPS[torch.bfloat16], "out")
    assert torch.equal(valid, expected_valid)


def test_sums_too_wide_for_a_window(backend):
    """Few channels: neighbours that land all over a large image, and a few far away from the others."""
    x, grad = torch.randn(1, 4, 70, 90, dtype=torch.float64), torch.randn(1, 4, 34, 33, dtype=torch.float64)
    flow = torch.randn(1, 2, 34, 33, dtype=torch.float64) * 30
    leaves = [x.requires_grad_(), flow.requires_grad_()]
    got = torch.autograd.grad(backend.warp(*leaves)[0], leaves, grad)
    want = torch.autograd.grad(reference.warp(*leaves)[0], leaves, grad)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, 1e-12)


@pytest.mark.parametrize("kind", ["one", "upsampled", "random"])
@pytest.mark.parametrize("channels, asked", [(3, True), (20, False)])
def test_deterministic_gradient(channels, asked, kind):
    """hostsim: the same bits in any thread order, of few channels where `use_deterministic_algorithms` asks for it."""
    import backends

    module, backend = backends.hostsim_module(), backends.Hostsim()
    x = torch.randn(1, channels, 8, 8)
    flow = landing_flow(kind, 8, 8, 16, 40)
    grad = torch.randn(1, channels, 16, 40)
    results = []
    try:
        for order, seed in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
            module.set_order(order, seed)
            leaf = x.clone().requires_grad_()
            backend.warp(leaf, flow, deterministic=asked)[0].backward(grad)
            results.append(leaf.grad)
    finally:
        module.set_order("forward", 0)
    assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((torch.zeros(3, 4, 5), torch.zeros(1, 2, 4, 5)), {}, r"x must have shape \(B, C, H, W\), got \(3, 4, 5\)"),
        ((torch.zeros(1, 3, 4, 5), torch.zeros(1, 3, 4, 5)), {}, r"flow must have shape \(1, 2, Ho, Wo\)"),
        ((torch.zeros(2, 3, 4, 5), torch.zeros(1, 2, 4, 5)), {}, r"flow must have shape \(2, 2, Ho, Wo\)"),
        ((torch.zeros(1, 3, 0, 5), torch.zeros(1, 2, 4, 5)), {}, r"x must have at least one channel, row and column"),
        ((torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5)), {"mode": "cubic"}, r"mode must be .* got 'cubic'"),
        ((torch.zeros(1, 3, 4, 5), torch.zeros(1, 2, 4, 5)), {"padding": "wrap"}, r"padding must be .* got 'wrap'"),
    ],
)
def test_wrong_values(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        cosegflow.warp(*arguments, **options)


def test_wrong_types():
    with pytest.raises(TypeError, match=r"x must be float16.* got torch.int64"):
        cosegflow.warp(torch.zeros(1, 3, 4, 5, dtype=torch.long), torch.zeros(1, 2, 4, 5))
    with pytest.raises(TypeError, match=r"flow must be a tensor, got list"):
        cosegflow.warp(torch.zeros(1, 3, 4, 5), [0.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"flow must be on the device of x, meta, got cpu"):
        cosegflow.warp(torch.zeros(1, 3, 4, 5, device="meta"), torch.zeros(1, 2, 4, 5))

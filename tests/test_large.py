"""Offsets beyond 2^31 elements.

Faked: tensors of a few values whose strides reach over 4 GB of address space that is never touched; every far_backend.
Real (marked slow): more than 2^31 elements in memory, on the CPU and on a GPU.
"""

import pytest
import torch
from errors import assert_close

import cosegflow
from cosegflow import reference

FAR = (1 << 30) + 24
"""Three of anything at this stride end beyond 2^31."""


def spread(tensor: torch.Tensor, dim: int) -> torch.Tensor:
    """The same values with a stride of `FAR` in one dimension of size 3; the others are contiguous."""
    assert tensor.shape[dim] == 3 and (3 - 1) * FAR > 2**31
    strides = list(torch.empty([1 if d == dim else n for d, n in enumerate(tensor.shape)]).stride())
    strides[dim] = FAR
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def half(*shape: int) -> torch.Tensor:
    return torch.randn(shape).half()


@pytest.fixture
def far_backend(backend):
    if backend.name == "cuda":
        pytest.skip("a copy to a GPU packs the strides; the real sizes below are for it")
    return backend


def agree(got: object, want: object, tolerance: float) -> None:
    """The first tensor of each."""
    got, want = (t if isinstance(t, torch.Tensor) else t[0] for t in (got, want))
    assert_close(got.double(), want.double(), tolerance)


@pytest.mark.parametrize("dim", range(4))
def test_warp(far_backend, dim):
    x, flow = half(3, 3, 3, 3), torch.randn(3, 2, 4, 5)
    agree(far_backend.warp(spread(x, dim), flow), reference.warp(x.double(), flow.double()), 2e-3)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_warp_backward(far_backend, dim):
    x, flow, grad = half(3, 3, 3, 3), torch.randn(3, 2, 4, 5).requires_grad_(), half(3, 3, 4, 5)
    leaves, exact = (spread(x, dim).requires_grad_(), flow), (x.double().requires_grad_(), flow)
    want = torch.autograd.grad(reference.warp(exact[0], flow.double())[0], exact, grad.double())
    for got, wanted in zip(torch.autograd.grad(far_backend.warp(*leaves)[0], leaves, grad), want, strict=True):
        agree(got, wanted, 2e-3)


@pytest.mark.parametrize("dim", [0, 2, 3])
def test_warp_flow(far_backend, dim):
    x, flow = half(3, 2, 4, 5), torch.randn(3, 2, 3, 3)
    agree(far_backend.warp(x, spread(flow, dim)), reference.warp(x.double(), flow.double()), 2e-3)


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("which", [0, 1])
def test_correlation(far_backend, dim, which):
    pair = [half(3, 3, 3, 3), half(3, 3, 3, 3)]
    want = reference.correlation(*(f.double() for f in pair))
    pair[which] = spread(pair[which], dim)
    agree(far_backend.correlation(*pair), want, 4e-3)


@pytest.mark.parametrize("dim", range(5))
def test_soft_argmax(far_backend, dim):
    corr, beta = half(3, 3, 3, 3, 3), torch.tensor(5.0)
    want = reference.soft_argmax(corr.double(), None, beta)
    agree(far_backend.soft_argmax(spread(corr, dim), None, beta), want, 1e-4)


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("which", ["fa", "fb", "mask_a", "mask_b"])
def test_match(far_backend, dim, which):
    inputs = {"fa": half(3, 3, 3, 3), "fb": half(3, 3, 3, 3), "mask_a": half(3, 3, 3), "mask_b": half(3, 3, 3)}
    if dim >= inputs[which].dim():
        pytest.skip("masks have three dimensions")
    beta = torch.tensor(5.0)
    want = reference.match(*(t.double() for t in inputs.values()), beta.double())
    inputs[which] = spread(inputs[which], dim)
    agree(far_backend.match(*inputs.values(), beta), want, 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_volume_of_more_than_2_31_elements(device):
    """One score per pair, C = 1: 4.3 GB in float16; needs about 10 GB."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    side = 216  # 216^4 = 2.18e9 > 2^31
    fa, fb = (torch.rand(1, 1, side, side, device=device).half() + 0.5 for _ in range(2))
    volume = cosegflow.correlation(fa, fb)
    assert volume.numel() > 2**31
    last = (fa[0, 0, -1, -1].float() * fb[0, 0].float()).half()
    assert torch.equal(volume[0, -1, -1], last)
    flow = cosegflow.soft_argmax(volume, beta=8.0).flow
    del volume
    fused = cosegflow.match(fa, fb, beta=8.0, normalize=False).flow
    assert_close(fused[..., -3:, :].cpu(), flow[..., -3:, :].cpu(), 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_image_of_more_than_2_31_elements(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    height, width = 2**20, 2064
    x = torch.zeros(1, 1, height, width, dtype=torch.float16, device=device)
    assert x.numel() > 2**31
    x[0, 0, -2:, -4:] = torch.arange(8, device=device).reshape(2, 4).half()
    flow = torch.zeros(1, 2, 2, 4, device=device)
    flow[:, 0], flow[:, 1] = width - 4, height - 2  # float32 holds these exactly
    out = cosegflow.warp(x, flow)
    assert torch.equal(out[0, 0].cpu(), torch.arange(8).reshape(2, 4).half())

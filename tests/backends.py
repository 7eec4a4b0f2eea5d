"""The backends that every test of an operation runs on: `cpu`, `cuda` where there is one, and `hostsim`.

A backend has the operators of `torch.ops.cosegflow`, differentiable, on tensors of the CPU: `cuda` moves them, and
`hostsim` hands NumPy arrays to the CUDA sources that g++ compiled. So a test is written once.
"""

import importlib
import importlib.util
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cosegflow.ops._log import is_set
from cosegflow.reference import accumulate_dtype

ROOT = Path(__file__).resolve().parents[1]


@lru_cache
def hostsim_module() -> Any:
    """The compiled `cosegflow_hostsim`: that of COSEGFLOW_HOSTSIM_MODULE (a path), or built now."""
    sys.path.insert(0, str(ROOT / "csrc" / "hostsim"))
    try:
        build = importlib.import_module("build")
    finally:
        sys.path.pop(0)
    path = os.environ.get("COSEGFLOW_HOSTSIM_MODULE")
    return build.import_module(path if path else build.build("plain"))


def to_numpy(tensor: Tensor | None) -> np.ndarray | None:
    """The same memory and strides as NumPy; bfloat16 as uint16."""
    if tensor is None:
        return None
    tensor = tensor.detach()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def to_torch(array: np.ndarray | None, dtype: torch.dtype | None = None) -> Tensor | None:
    """A tensor of an array that a binding returned; uint16 is bfloat16."""
    if array is None:
        return None
    tensor = torch.from_numpy(array)
    if tensor.dtype == torch.uint16:
        tensor = tensor.view(torch.bfloat16)
    return tensor if dtype is None else tensor.to(dtype)


def beta_per_image(beta: Tensor, batch: int) -> np.ndarray:
    """(B,) with stride 0 where one value serves all images."""
    return beta.detach().reshape(-1).expand(batch).numpy()


def which_kernels(precision: int, portable: bool) -> dict[str, Any]:
    """The keyword arguments of hostsim that choose kernels: those that are not the default."""
    return {**({"precision": precision} if precision else {}), **({"portable": True} if portable else {})}


class _Warp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, flow, mode, padding, deterministic, simple):
        ctx.save_for_backward(x, flow)
        ctx.options = (mode, padding), (deterministic, simple)
        out, valid = hostsim_module().warp(to_numpy(x), to_numpy(flow), mode, padding, simple)
        valid = to_torch(valid)
        ctx.mark_non_differentiable(valid)
        return to_torch(out), valid

    @staticmethod
    def backward(ctx, grad_out, _):
        x, flow = ctx.saved_tensors
        how, which = ctx.options
        need = ctx.needs_input_grad[:2]
        grads = hostsim_module().warp_backward(to_numpy(grad_out), to_numpy(x), to_numpy(flow), *how, *need, *which)
        return to_torch(grads[0], x.dtype), to_torch(grads[1]), *(None,) * 4


class _Correlation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fa, fb, normalize, relu, simple, kernels):
        corr = hostsim_module().correlation(to_numpy(fa), to_numpy(fb), normalize, relu, simple, **kernels)
        corr = to_torch(corr)
        ctx.save_for_backward(fa, fb, corr)
        ctx.options, ctx.kernels = (normalize, relu, simple), kernels
        return corr

    @staticmethod
    def backward(ctx, grad):
        fa, fb, corr = ctx.saved_tensors
        arrays = [to_numpy(t) for t in (grad.contiguous(), fa, fb, corr)]
        need = tuple(ctx.needs_input_grad[:2])
        portable = ctx.kernels.get("portable", False)
        grads = hostsim_module().correlation_backward(*arrays, *ctx.options, need, portable=portable)
        return (*(to_torch(g, fa.dtype) for g in grads), *(None,) * 4)


class _SoftArgmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, corr, mask_b, beta, simple, sigma, return_index):
        ctx.set_materialize_grads(False)
        per_image = beta_per_image(beta, corr.shape[0])
        corr = corr.contiguous()
        outputs = hostsim_module().soft_argmax(to_numpy(corr), to_numpy(mask_b), per_image, simple, sigma, return_index)
        flow, lse, confidence, index, score = (to_torch(o) for o in outputs)
        ctx.save_for_backward(corr, mask_b, beta, flow, lse, index)
        ctx.simple, ctx.sigma = simple, sigma
        ctx.mark_non_differentiable(confidence, index, score)
        return flow, lse, confidence, index, score

    @staticmethod
    def backward(ctx, grad_flow, grad_lse, *_):
        corr, mask_b, beta, flow, lse, index = ctx.saved_tensors
        need = tuple(ctx.needs_input_grad[:3])
        grads = hostsim_module().soft_argmax_backward(
            to_numpy(corr), to_numpy(mask_b), beta_per_image(beta, corr.shape[0]), to_numpy(flow), to_numpy(lse),
            to_numpy(grad_flow), to_numpy(grad_lse), ctx.simple, need, to_numpy(index), ctx.sigma,
        )  # fmt: skip
        grad_corr, grad_mask_b, grad_beta = (to_torch(g) for g in grads)
        return (
            grad_corr,
            grad_mask_b if grad_mask_b is None else grad_mask_b.to(mask_b.dtype),
            grad_beta if grad_beta is None or beta.dim() == 1 else grad_beta.sum(),
            *(None,) * 3,
        )


class _Match(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fa, fb, mask_a, mask_b, beta, normalize, simple, chunk_bytes, sigma, return_index, kernels):
        ctx.set_materialize_grads(False)
        arrays = [to_numpy(t) for t in (fa, fb, mask_a, mask_b)]
        beta_values = beta_per_image(beta, fa.shape[0])
        outputs = hostsim_module().match(*arrays, beta_values, normalize, simple, sigma, return_index, **kernels)
        flow, lse, confidence, index, score = (to_torch(o) for o in outputs)
        ctx.save_for_backward(fa, fb, mask_a, mask_b, beta, flow, lse, index)
        ctx.options = (normalize, simple, chunk_bytes, sigma, kernels.get("portable", False))
        ctx.mark_non_differentiable(confidence, index, score)
        return flow, lse, confidence, index, score

    @staticmethod
    def backward(ctx, grad_flow, grad_lse, *_):
        fa, fb, mask_a, mask_b, beta, flow, lse, index = ctx.saved_tensors
        normalize, simple, chunk_bytes, sigma, portable = ctx.options
        need = tuple(ctx.needs_input_grad[i] for i in (0, 1, 3, 4))
        grads = hostsim_module().match_backward(
            *(to_numpy(t) for t in (fa, fb, mask_a, mask_b)), beta_per_image(beta, fa.shape[0]),
            *(to_numpy(t) for t in (flow, lse, grad_flow, grad_lse)), normalize, simple, need, chunk_bytes,
            to_numpy(index), sigma, portable,
        )  # fmt: skip
        grad_fa, grad_fb, grad_mask_b, grad_beta = (to_torch(g) for g in grads)
        if grad_mask_b is not None:
            grad_mask_b = grad_mask_b.to(mask_b.dtype)
        if grad_beta is not None and beta.dim() == 0:
            grad_beta = grad_beta.sum()
        return grad_fa, grad_fb, None, grad_mask_b, grad_beta, *(None,) * 6


class _LocalCorrelation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fa, fb, flow, radius, normalize, simple, deterministic):
        ctx.save_for_backward(fa, fb, flow)
        ctx.options, ctx.simple = (radius, normalize, deterministic), simple
        arrays = [to_numpy(t) for t in (fa, fb, flow)]
        return to_torch(hostsim_module().local_correlation(*arrays, radius, normalize, simple))

    @staticmethod
    def backward(ctx, grad):
        arrays = [to_numpy(t) for t in (grad, *ctx.saved_tensors)]
        need = tuple(ctx.needs_input_grad[:3])
        grads = hostsim_module().local_correlation_backward(*arrays, *ctx.options, need, ctx.simple)
        return (*(to_torch(g) for g in grads), None, None, None, None)


class Hostsim:
    """The CUDA sources under the simulator.

    `simple` chooses the plainly right kernels, `portable` the fast ones that every architecture has.
    """

    name = "hostsim"

    def warp(self, x, flow, mode="bilinear", padding="zeros", deterministic=False, simple=False):
        return _Warp.apply(x, flow.to(accumulate_dtype(x.dtype)), mode, padding, deterministic, simple)

    def correlation(self, fa, fb, normalize=False, relu=False, simple=False, precision=0, portable=False):
        return _Correlation.apply(fa, fb, normalize, relu, simple, which_kernels(precision, portable))

    def soft_argmax(self, corr, mask_b, beta, simple=False):
        return _SoftArgmax.apply(corr, mask_b, beta, simple, 0.0, False)[:3]

    def soft_argmax_indexed(self, corr, mask_b, beta, sigma=0.0, simple=False):
        return _SoftArgmax.apply(corr, mask_b, beta, simple, sigma, True)

    def match(
        self, fa, fb, mask_a, mask_b, beta, normalize=True, simple=False, chunk_bytes=0, precision=0, portable=False
    ):
        kernels = which_kernels(precision, portable)
        return _Match.apply(fa, fb, mask_a, mask_b, beta, normalize, simple, chunk_bytes, 0.0, False, kernels)[:3]

    def match_indexed(
        self, fa, fb, mask_a, mask_b, beta, normalize=True, sigma=0.0, simple=False, chunk_bytes=0, precision=0,
        portable=False,
    ):  # fmt: skip
        kernels = which_kernels(precision, portable)
        return _Match.apply(fa, fb, mask_a, mask_b, beta, normalize, simple, chunk_bytes, sigma, True, kernels)

    def match_both(
        self, fa, fb, mask_a, mask_b, beta, normalize=True, simple=False, chunk_bytes=0, precision=0, portable=False
    ):
        from backends_match_both import MatchBoth

        kernels = which_kernels(precision, portable)
        return MatchBoth.apply(fa, fb, mask_a, mask_b, beta, normalize, simple, chunk_bytes, kernels)

    def cycle_error(self, flow_ab, flow_ba, deterministic=False, simple=False):
        from backends_cycle_error import CycleErrorFunction

        return CycleErrorFunction.apply(flow_ab, flow_ba, deterministic, simple)

    def local_correlation(self, fa, fb, radius, flow=None, normalize=False, simple=False, deterministic=False):
        flow = None if flow is None else flow.to(accumulate_dtype(fa.dtype))
        return _LocalCorrelation.apply(fa, fb, flow, radius, normalize, simple, deterministic)


class Torch:
    """torch.ops.cosegflow on a device; takes and returns tensors of the CPU.

    COSEGFLOW_PORTABLE=1, which the public functions heed, holds for these operators too.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.portable = is_set("COSEGFLOW_PORTABLE")

    def _run(self, operator: Any, *args: Any) -> Any:
        moved = [a.to(self.name) if isinstance(a, Tensor) else a for a in args]
        result = operator(*moved)
        return result.cpu() if isinstance(result, Tensor) else tuple(r.cpu() for r in result)

    def warp(self, x, flow, mode="bilinear", padding="zeros", deterministic=False, simple=False):
        flow = flow.to(accumulate_dtype(x.dtype))
        return self._run(torch.ops.cosegflow.warp, x, flow, mode, padding, simple)

    def correlation(self, fa, fb, normalize=False, relu=False, simple=False, precision=0, portable=False):
        arguments = (fa, fb, normalize, relu, simple)
        return self._run(torch.ops.cosegflow.correlation, *arguments, precision, portable or self.portable)

    def soft_argmax(self, corr, mask_b, beta, simple=False):
        return self._run(torch.ops.cosegflow.soft_argmax, corr, mask_b, beta, simple)[:3]

    def soft_argmax_indexed(self, corr, mask_b, beta, sigma=0.0, simple=False):
        return self._run(torch.ops.cosegflow.soft_argmax, corr, mask_b, beta, simple, sigma, True)

    def match(
        self, fa, fb, mask_a, mask_b, beta, normalize=True, simple=False, chunk_bytes=0, precision=0, portable=False
    ):
        arguments = (fa, fb, mask_a, mask_b, beta, normalize, simple, 0.0, False)
        return self._run(torch.ops.cosegflow.match, *arguments, precision, portable or self.portable)[:3]

    def match_indexed(
        self, fa, fb, mask_a, mask_b, beta, normalize=True, sigma=0.0, simple=False, chunk_bytes=0, precision=0,
        portable=False,
    ):  # fmt: skip
        arguments = (fa, fb, mask_a, mask_b, beta, normalize, simple, sigma, True)
        return self._run(torch.ops.cosegflow.match, *arguments, precision, portable or self.portable)

    def match_both(
        self, fa, fb, mask_a, mask_b, beta, normalize=True, simple=False, chunk_bytes=0, precision=0, portable=False
    ):
        arguments = (fa, fb, mask_a, mask_b, beta, normalize, simple)
        return self._run(torch.ops.cosegflow.match_both, *arguments, precision, portable or self.portable)

    def cycle_error(self, flow_ab, flow_ba, deterministic=False, simple=False):
        return self._run(torch.ops.cosegflow.cycle_error, flow_ab, flow_ba, simple)

    def local_correlation(self, fa, fb, radius, flow=None, normalize=False, simple=False, deterministic=False):
        flow = None if flow is None else flow.to(accumulate_dtype(fa.dtype))
        return self._run(torch.ops.cosegflow.local_correlation, fa, fb, flow, radius, normalize, simple)


def get(name: str) -> Any:
    """The backend of this name; skips the test with the reason where it cannot run."""
    if name == "hostsim":
        return Hostsim()
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: hostsim runs the same kernels")
    return Torch(name)


NAMES = ("cpu", "hostsim", "cuda")
KERNELS = ("fast", "portable", "simple")


def options_of(kernels: str, backend: Any, dtype: torch.dtype) -> dict[str, bool]:
    """The options that make a backend take these kernels; skips the test where they are the fast ones anyway."""
    if kernels != "fast" and backend.name == "cpu":
        pytest.skip("the CPU has one kernel")
    if kernels == "portable" and dtype not in (torch.float16, torch.bfloat16):
        pytest.skip("the fast kernels are the portable ones")
    return {} if kernels == "fast" else {kernels: True}

"""The works with a 4D volume in memory: correlation and soft_argmax."""

import torch

from cosegflow import reference

from ..case import Case, squares, with_dtypes
from . import features
from .base import Cost, Exact, Inputs, Work, add, cotangent, dtype_of, itemsize


def whole(output: torch.Tensor, leaves: Inputs, want_gradients: bool, dtype: torch.dtype) -> Exact:
    """The truth from one evaluation in float64; `dtype`: of the contestants' output, so of its cotangent."""
    if not want_gradients:
        return Exact(output.detach(), {})
    names = [k for k, v in leaves.items() if v.requires_grad]
    direction = cotangent(torch.empty_like(output, dtype=dtype)).double()
    found = torch.autograd.grad(output, [leaves[k] for k in names], direction)
    return Exact(output.detach(), dict(zip(names, found, strict=True)))


def in_float64(inputs: Inputs) -> Inputs:
    """Copies, with their own gradients."""
    return {k: v.detach().double().requires_grad_(v.requires_grad) for k, v in inputs.items()}


def exact_correlation(case: Case, inputs: Inputs, want_gradients: bool) -> Exact:
    """The normalised volume."""
    leaves = in_float64(inputs)
    with torch.set_grad_enabled(want_gradients):
        output = reference.correlation(leaves["fa"], leaves["fb"], normalize=True)
    return whole(output, leaves, want_gradients, dtype_of(case))


def volume_bytes(case: Case) -> float:
    """Of one 4D volume."""
    (ha, wa), (hb, wb) = case.a, case.b
    return float(case.batch * ha * wa * hb * wb * itemsize(case))


def cost_correlation(case: Case, direction: str) -> Cost:
    """One product forward, two backward; the volume is written, its gradient read."""
    (ha, wa), (hb, wb) = case.a, case.b
    flops = 2.0 * case.batch * case.channels * ha * wa * hb * wb
    features_bytes = case.batch * case.channels * (ha * wa + hb * wb) * itemsize(case)
    volume = volume_bytes(case)
    return add(Cost(features_bytes + volume, flops, 0.0), Cost(2 * features_bytes + volume, 2 * flops, 0.0), direction)


CORRELATION = Work(
    name="correlation",
    summary="the normalised 4D volume",
    inputs=features.pair,
    exact=exact_correlation,
    cost=cost_correlation,
    uses=frozenset({"dtype", "layout"}),
    cases={
        "quick": squares((64, 20)),
        "cpu": squares((256, 40), (64, 40)),
        "gpu": (
            *with_dtypes(squares((256, 64), (1024, 64), batch=4), "bfloat16"),
            *with_dtypes(squares((256, 64)), "float32"),
        ),
        "sweep": squares(*((256, n) for n in (16, 24, 32, 48, 64))),
    },
)


def volume(case: Case, device: torch.device, seed: int) -> Inputs:
    """A volume of scores in [-1, 1], most of them small, and a mask of targets where there is a background."""
    generator = torch.Generator().manual_seed(seed)
    corr = torch.randn((case.batch, *case.a, *case.b), generator=generator).mul_(0.15).clamp_(-1, 1)
    inputs = {"corr": corr.to(device, dtype_of(case)).requires_grad_()}
    if case.foreground < 1:
        inputs["mask_b"] = features.mask(case, case.b, generator).to(device)
    return inputs


def exact_soft_argmax(case: Case, inputs: Inputs, want_gradients: bool) -> Exact:
    """The flow."""
    leaves = in_float64(inputs)
    with torch.set_grad_enabled(want_gradients):
        beta = leaves["corr"].new_tensor(case.beta)
        output = reference.soft_argmax(leaves["corr"], leaves.get("mask_b"), beta).flow
    return whole(output, leaves, want_gradients, reference.accumulate_dtype(dtype_of(case)))


def cost_soft_argmax(case: Case, direction: str) -> Cost:
    """The volume read forward; read, and its gradient written, backward."""
    (ha, wa), _ = case.a, case.b
    volume = volume_bytes(case)
    outputs = case.batch * ha * wa * 16.0
    exps = case.foreground * volume / itemsize(case)
    forward = Cost(case.foreground * volume + outputs, 0.0, exps)
    return add(forward, Cost((1 + case.foreground) * volume + outputs, 0.0, 0.0), direction)


SOFT_ARGMAX = Work(
    name="soft_argmax",
    summary="mask-aware soft argmax of a volume",
    inputs=volume,
    exact=exact_soft_argmax,
    cost=cost_soft_argmax,
    uses=frozenset({"dtype", "foreground", "beta"}),
    cases={
        "quick": squares((1, 20)),
        "cpu": (*squares((1, 48)), *squares((1, 40), foreground=0.3)),
        "gpu": (
            *with_dtypes(squares((1, 64), batch=4), "bfloat16", "float32"),
            *with_dtypes(squares((1, 64), batch=4, foreground=0.3), "bfloat16"),
        ),
        "sweep": squares(*((1, n) for n in (16, 24, 32, 48, 64))),
    },
)

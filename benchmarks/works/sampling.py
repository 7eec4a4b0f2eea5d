"""The memory-bound works: warp, local_correlation, its lookup along a flow, and cycle_error."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cosegflow import reference

from ..case import Case, squares, with_dtypes
from . import features
from .base import Cost, Exact, Inputs, Work, add, dtype_of, itemsize
from .volume import in_float64, whole


def warp_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """x (B, C, Hb, Wb) and flow (B, 2, Ha, Wa)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((case.batch, case.channels, *case.b), generator=generator)
    return {"x": features.place(x, case, device), "flow": features.flow(case, case.a, device, seed + 1000)}


def exact_warp(case: Case, inputs: Inputs, want_gradients: bool) -> Exact:
    """Bilinear, zeros outside (B, C, Ha, Wa)."""
    leaves = in_float64(inputs)
    with torch.set_grad_enabled(want_gradients):
        output = reference.warp(leaves["x"], leaves["flow"])[0]
    return whole(output, leaves, want_gradients, dtype_of(case))


def cost_warp(case: Case, direction: str) -> Cost:
    """Image and flow read, image written; backward reads those and a gradient, and writes two gradients."""
    (ha, wa), (hb, wb) = case.a, case.b
    image = float(case.batch * case.channels * hb * wb * itemsize(case))
    out = float(case.batch * case.channels * ha * wa * itemsize(case))
    flow = float(case.batch * 2 * ha * wa * 4)
    return add(Cost(image + flow + out, 0.0, 0.0), Cost(2 * image + 2 * flow + out, 0.0, 0.0), direction)


WARP = Work(
    name="warp",
    summary="bilinear sampling of x at p + flow(p)",
    inputs=warp_inputs,
    exact=exact_warp,
    cost=cost_warp,
    uses=frozenset({"dtype", "layout", "flow"}),
    cases={
        "quick": squares((3, 128)),
        "cpu": (*squares((3, 512), (64, 128), (256, 64)), *squares((64, 128), layout="channels_last")),
        "gpu": (
            *with_dtypes(squares((64, 256), batch=8), "float32", "bfloat16"),
            *with_dtypes(squares((64, 256), batch=8, layout="channels_last"), "float32", "bfloat16"),
            *squares((64, 256), batch=8, flow="random"),
            *squares((3, 1024), (256, 128), batch=8),
        ),
        "sweep": (*squares(*((64, n) for n in (32, 64, 128, 256, 512))), *squares(*((c, 128) for c in (3, 16, 256)))),
    },
)


def local_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """A pair without masks."""
    return {k: v for k, v in features.pair(case, device, seed).items() if k in ("fa", "fb")}


def local_correlation(fa: Tensor, fb: Tensor, radius: int) -> Tensor:
    """(B, (2r+1)^2, Ha, Wa): <fa(p), fb(p + d)>, d row by row, zeros outside; by one shift after the other."""
    height, width = fa.shape[2:]
    right, below = max(0, width - fb.shape[3]), max(0, height - fb.shape[2])
    padded = F.pad(fb, (radius, radius + right, radius, radius + below))
    shifts = [(y, x) for y in range(2 * radius + 1) for x in range(2 * radius + 1)]
    return torch.stack([(fa * padded[:, :, y : y + height, x : x + width]).sum(1) for y, x in shifts], 1)


def exact_local(case: Case, inputs: Inputs, want_gradients: bool) -> Exact:
    """The windows."""
    leaves = in_float64(inputs)
    with torch.set_grad_enabled(want_gradients):
        output = local_correlation(leaves["fa"], leaves["fb"], case.radius)
    return whole(output, leaves, want_gradients, dtype_of(case))


def cost_local(case: Case, direction: str) -> Cost:
    """A dot product per displacement forward, two multiply-adds per channel backward."""
    (ha, wa), (hb, wb) = case.a, case.b
    windows = case.batch * (2 * case.radius + 1) ** 2 * ha * wa
    features_bytes = float(case.batch * case.channels * (ha * wa + hb * wb) * itemsize(case))
    output, flops = float(windows * itemsize(case)), 2.0 * case.channels * windows
    return add(Cost(features_bytes + output, flops, 0.0), Cost(2 * features_bytes + output, 2 * flops, 0.0), direction)


LOCAL_CORRELATION = Work(
    name="local_correlation",
    summary="correlation with a window of (2r+1)^2 displacements",
    inputs=local_inputs,
    exact=exact_local,
    cost=cost_local,
    uses=frozenset({"dtype", "layout", "radius"}),
    cases={
        "quick": squares((32, 24)),
        "cpu": squares((128, 64)),
        "gpu": tuple(
            Case(batch=8, channels=128, a=(64, 128), b=(64, 128), dtype=dtype) for dtype in ("float32", "float16")
        ),
        "sweep": squares(*((128, n) for n in (16, 32, 64, 128))),
    },
)


def lookup_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """A pair without masks, and the flow along which b is looked up."""
    return local_inputs(case, device, seed) | {"flow": features.flow(case, case.a, device, seed + 1000)}


def exact_lookup(case: Case, inputs: Inputs, want_gradients: bool) -> Exact:
    """The windows around p + flow(p), bilinear."""
    leaves = in_float64(inputs)
    with torch.set_grad_enabled(want_gradients):
        output = reference.local_correlation(leaves["fa"], leaves["fb"], case.radius, leaves["flow"])
    return whole(output, leaves, want_gradients, dtype_of(case))


def cost_lookup(case: Case, direction: str) -> Cost:
    """(2r+2)^2 products a pixel forward, for the flow's gradient the same again, and two multiply-adds for each."""
    (ha, wa), (hb, wb) = case.a, case.b
    pixels = case.batch * ha * wa
    features_bytes = float(case.batch * case.channels * (ha * wa + hb * wb) * itemsize(case))
    output, flow = float(pixels * (2 * case.radius + 1) ** 2 * itemsize(case)), 8.0 * pixels
    flops = 2.0 * case.channels * pixels * (2 * case.radius + 2) ** 2
    forward = Cost(features_bytes + flow + output, flops, 0.0)
    return add(forward, Cost(2 * features_bytes + 2 * flow + output, 3 * flops, 0.0), direction)


LOOKUP = Work(
    name="lookup",
    summary="local_correlation along a flow: RAFT's lookup at one level",
    inputs=lookup_inputs,
    exact=exact_lookup,
    cost=cost_lookup,
    uses=frozenset({"dtype", "layout", "flow", "radius"}),
    cases={
        "quick": squares((32, 16)),
        "cpu": squares((128, 40)),
        "gpu": (
            *(Case(channels=256, a=(55, 128), b=(55, 128), dtype=dtype) for dtype in ("float32", "float16")),
            Case(channels=256, a=(55, 128), b=(55, 128), flow="random"),
        ),
        "sweep": squares(*((128, n) for n in (16, 32, 48, 64))),
    },
)


def cycle_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """Two flows, roughly each other's inverse."""
    flow_ab = features.flow(case, case.a, device, seed)
    noise = features.flow(case, case.b, device, seed + 1000).detach()
    back = F.interpolate(-flow_ab.detach(), size=case.b, mode="bilinear", align_corners=False) + 0.3 * noise
    return {"flow_ab": flow_ab, "flow_ba": back.requires_grad_()}


def exact_cycle(case: Case, inputs: Inputs, want_gradients: bool) -> Exact:
    """Error (B, Ha, Wa)."""
    leaves = in_float64(inputs)
    with torch.set_grad_enabled(want_gradients):
        back, valid = reference.warp(leaves["flow_ba"], leaves["flow_ab"])
        square = (leaves["flow_ab"] + back).square().sum(1)
        output = torch.where(valid & (square > 0), torch.where(square > 0, square, 1.0).sqrt(), 0.0)
    return whole(output, leaves, want_gradients, torch.float32)


def cost_cycle(case: Case, direction: str) -> Cost:
    """Two flows read, errors and their validity written; two gradients written."""
    (ha, wa), (hb, wb) = case.a, case.b
    flows, output = 8.0 * case.batch * (ha * wa + hb * wb), 5.0 * case.batch * ha * wa
    return add(Cost(flows + output, 0.0, 0.0), Cost(2 * flows + output, 0.0, 0.0), direction)


CYCLE_ERROR = Work(
    name="cycle_error",
    summary="length of flow_ab(p) + flow_ba(p + flow_ab(p))",
    inputs=cycle_inputs,
    exact=exact_cycle,
    cost=cost_cycle,
    uses=frozenset({"flow"}),
    cases={
        "quick": squares((2, 128)),
        "cpu": squares((2, 256)),
        "gpu": squares((2, 512), batch=8),
        "sweep": squares(*((2, n) for n in (64, 128, 256, 512))),
    },
)

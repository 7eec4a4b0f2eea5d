"""The fused operations: match, match_both and transfer."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from cosegflow import reference

from ..case import Case, squares, with_dtypes
from . import features, streamed
from .base import Cost, Exact, Inputs, Work, add, cotangent, dtype_of, itemsize


def _flow(case: Case, inputs: Inputs, first_row: int) -> Tensor:
    """Flow of some rows of a."""
    beta = inputs["fa"].new_tensor(case.beta)
    gate, weight = inputs.get("mask_a"), inputs.get("mask_b")
    flow = reference.match(inputs["fa"], inputs["fb"], gate, weight, beta).flow
    if first_row == 0:
        return flow
    ok = 1.0 if gate is None else (gate > 0).unsqueeze(1).double()  # flow is 0, not -row, where a is gated off
    return flow - flow.new_tensor([0.0, first_row]).reshape(1, 2, 1, 1) * ok


def exact_match(case: Case, inputs: Inputs, want_gradients: bool, direction: Tensor | None = None) -> Exact:
    """The flow (B, 2, Ha, Wa)."""
    dtype = reference.accumulate_dtype(dtype_of(case))
    by_row = ("fa", "mask_a")
    return streamed.exact(case, inputs, want_gradients, partial(_flow, case), by_row, dtype, direction)


def pairs_of(case: Case) -> float:
    """Scores that are needed: |foreground of a| x |foreground of b|, over the batch."""
    (ha, wa), (hb, wb) = case.a, case.b
    return case.batch * case.foreground**2 * ha * wa * hb * wb


def cost(case: Case, direction: str) -> Cost:
    """One product and one exp per pair forward, two products backward."""
    (ha, wa), (hb, wb) = case.a, case.b
    pairs = pairs_of(case)
    features_bytes = case.batch * case.foreground * case.channels * (ha * wa + hb * wb) * itemsize(case)
    outputs = case.batch * ha * wa * 16.0
    forward = Cost(features_bytes + outputs, 2 * case.channels * pairs, pairs)
    backward = Cost(2 * features_bytes + outputs, 4 * case.channels * pairs, 0.0)
    return add(forward, backward, direction)


HALF = ("bfloat16", "float16")
MASKED = squares((256, 64), foreground=0.3)
GPU = (
    *with_dtypes(squares((256, 64), (1024, 64), (128, 64), (768, 64), batch=8), "bfloat16"),
    *with_dtypes(squares((256, 64), batch=8, foreground=0.3), "bfloat16"),
    *with_dtypes(squares((256, 64), (1024, 32)), "float32"),
    *with_dtypes(squares((256, 15), (1024, 15), (256, 32)), "bfloat16"),
    *with_dtypes(squares((256, 64), batch=8, layout="channels_last"), "bfloat16"),
    *with_dtypes(squares((256, 64), batch=8), "float16"),
    *with_dtypes(squares((256, 128)), "bfloat16"),
    *with_dtypes(squares(*((64, n) for n in (64, 128, 192, 256, 384)), batch=8), "bfloat16"),  # who survives
)
SWEEP = (
    *squares(*((256, n) for n in (16, 24, 32, 48, 64, 96, 128))),
    *squares(*((c, 64) for c in (64, 128, 512, 768, 1024, 1280))),
    *squares((64, 256)),
)

MATCH = Work(
    name="match",
    summary="soft argmax of the correlation of two feature maps, without the volume",
    inputs=features.pair,
    exact=exact_match,
    cost=cost,
    uses=frozenset({"dtype", "layout", "foreground", "beta"}),
    cases={
        "quick": squares((64, 24)),
        "cpu": (
            *squares((64, 64), (256, 64)),
            *squares((768, 60), (1024, 32)),
            *squares((1024, 15), batch=8),
            *MASKED,
            *with_dtypes(squares((256, 32)), *HALF),
            *with_dtypes(squares((768, 60)), "bfloat16"),
            *squares((16, 128), (64, 256)),  # one volume of the last has 17 GB
        ),
        "gpu": GPU,
        "sweep": SWEEP,
    },
)


OTHER = {"fa": "fb", "fb": "fa", "mask_a": "mask_b", "mask_b": "mask_a"}


def exact_both(case: Case, inputs: Inputs, want_gradients: bool) -> Exact:
    """The two flows, each flattened, one after the other: (B, 2 Na + 2 Nb)."""
    (ha, wa), (hb, wb) = case.a, case.b
    cut = 2 * ha * wa
    dtype = reference.accumulate_dtype(dtype_of(case))
    direction = cotangent(torch.empty(case.batch, cut + 2 * hb * wb, dtype=dtype, device=inputs["fa"].device))
    there_direction = direction[:, :cut].reshape(case.batch, 2, ha, wa)
    back_direction = direction[:, cut:].reshape(case.batch, 2, hb, wb)
    there = exact_match(case, inputs, want_gradients, there_direction)
    turned = replace(case, a=case.b, b=case.a)
    back = exact_match(turned, {OTHER[k]: v for k, v in inputs.items()}, want_gradients, back_direction)
    if there.rows is not None:
        raise NotImplementedError("no truth at this size")
    gradients = {k: v + back.gradients[OTHER[k]] for k, v in there.gradients.items()}
    return Exact(torch.cat((there.output.flatten(1), back.output.flatten(1)), 1), gradients)


def cost_both(case: Case, direction: str) -> Cost:
    """One product serves both directions, each pair has two exps; two products backward."""
    one = cost(case, direction)
    return Cost(one.bytes, one.flops, 2 * one.exps)


MATCH_BOTH = Work(
    name="match_both",
    summary="match a to b and b to a from one product",
    inputs=features.pair,
    exact=exact_both,
    cost=cost_both,
    uses=frozenset({"dtype", "layout", "foreground", "beta"}),
    cases={
        "quick": squares((64, 24)),
        "cpu": (*squares((256, 64)), *MASKED),
        "gpu": with_dtypes(squares((256, 64), (1024, 64), batch=8), "bfloat16"),
        "sweep": squares(*((256, n) for n in (16, 32, 64, 96))),
    },
)

VALUES = 8
"""Channels of what `transfer` carries over."""


def transfer_inputs(case: Case, device: torch.device, seed: int) -> Inputs:
    """A pair, and values (B, 8, Hb, Wb)."""
    values = torch.randn((case.batch, VALUES, *case.b), generator=torch.Generator().manual_seed(seed + 1000))
    return {**features.pair(case, device, seed), "values": features.place(values, case, device)}


def _transferred(case: Case, inputs: Inputs, first_row: int) -> Tensor:
    """sum_j p_ij values_j for some rows of a, in plain torch."""
    scores = reference.correlation(inputs["fa"], inputs["fb"], normalize=True).flatten(3).flatten(1, 2)
    logits = case.beta * scores
    if "mask_b" in inputs:
        logits = logits.masked_fill(~(inputs["mask_b"].flatten(1).unsqueeze(1) > 0), -torch.inf)
    out = torch.einsum("bij,bvj->bvi", logits.softmax(-1), inputs["values"].flatten(2))
    out = out.reshape(*out.shape[:2], *inputs["fa"].shape[2:])
    return torch.where(inputs["mask_a"].unsqueeze(1) > 0, out, 0.0) if "mask_a" in inputs else out


def exact_transfer(case: Case, inputs: Inputs, want_gradients: bool) -> Exact:
    """The values seen from a (B, 8, Ha, Wa)."""
    by_row = ("fa", "mask_a")
    return streamed.exact(case, inputs, want_gradients, partial(_transferred, case), by_row, dtype_of(case))


def cost_transfer(case: Case, direction: str) -> Cost:
    """The products of `match`, and one with the values forward, two backward."""
    pairs = pairs_of(case)
    (ha, wa), (hb, wb) = case.a, case.b
    moved = case.batch * VALUES * (ha * wa + hb * wb) * itemsize(case)
    match_forward, match_backward = cost(case, "forward"), cost(case, "backward")
    forward = Cost(match_forward.bytes + moved, match_forward.flops + 2 * VALUES * pairs, pairs)
    backward = Cost(match_backward.bytes + 2 * moved, match_backward.flops + 4 * VALUES * pairs, 0.0)
    return add(forward, backward, direction)


TRANSFER = Work(
    name="transfer",
    summary=f"soft transfer of {VALUES} channels along the matches",
    inputs=transfer_inputs,
    exact=exact_transfer,
    cost=cost_transfer,
    uses=frozenset({"dtype", "layout", "foreground", "beta"}),
    cases={
        "quick": squares((64, 24)),
        "cpu": squares((64, 64), (256, 64)),
        "gpu": with_dtypes(squares((256, 64), batch=8), "bfloat16"),
        "sweep": squares(*((256, n) for n in (16, 32, 64, 96))),
    },
)

"""Calls for the property tests.

hypothesis draws sizes, layouts, dtypes, masks and options; values come from a generator with a drawn seed. The draws
are the same in every run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

import cosegflow
from cosegflow import reference

FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALF = (torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last", "permuted", "spaced", "expanded")
MASKS = ("none", "soft", "holes", "bool", "zero", "wild")
WILD = torch.tensor([math.nan, -1.0, 0.0, -math.inf, math.inf, 3.0, 1.0])
SIDES = (1, 2, 3, 5, 7, 11)


def examples(count: int) -> settings:
    """`count` draws; COSEGFLOW_EXAMPLES multiplies it."""
    count *= int(os.environ.get("COSEGFLOW_EXAMPLES", "1"))
    checks = list(HealthCheck)
    return settings(max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=checks)


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same values in other strides; `expanded` repeats the first column, and `spaced` starts at an offset."""
    if layout == "expanded":
        return t[..., :1].expand(t.shape)
    if layout == "spaced":
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1] + 1), math.nan).to(t.dtype)
        wide[..., 1::2] = t
        return wide[..., 1::2]
    if layout == "permuted":
        order = tuple(reversed(range(t.dim())))
        return t.permute(order).contiguous().permute(order)
    if layout == "channels_last" and t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    return t.contiguous()


class Source:
    """Draws, and tensors made from them."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.random = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
        self.dtype = draw(st.sampled_from(FLOATING))

    def one(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def sides(self, count: int) -> list[int]:
        return [self.one(*SIDES) for _ in range(count)]

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.random, dtype=torch.float64).to(dtype or self.dtype)
        return laid_out(values, self.one(*LAYOUTS))

    def flow(self, batch: int, height: int, width: int, dtype: torch.dtype) -> Tensor:
        """Inside and outside, on pixels and between, at times not finite; sums with coordinates are exact."""
        values = torch.randn((batch, 2, height, width), generator=self.random, dtype=torch.float64) * 3
        values = (values * 16).round() / 16
        if self.draw(st.booleans()):
            values[torch.rand(values.shape, generator=self.random) < 0.1] = self.one(math.nan, math.inf, -1e30, 1e30)
        return laid_out(values.to(dtype), self.one(*LAYOUTS))

    def mask(self, batch: int, height: int, width: int, kinds: tuple[str, ...] = MASKS) -> Tensor | None:
        kind = self.one(*kinds)
        if kind == "none":
            return None
        shape = (batch, height, width)
        weights = torch.rand(shape, generator=self.random) * 0.9 + 0.1
        hole = torch.rand(shape, generator=self.random) < 0.4
        if kind == "bool":
            return laid_out(~hole, self.one(*LAYOUTS))
        if kind == "zero":
            weights = torch.zeros(shape)
        if kind == "holes":
            weights = torch.where(hole, self.one(0.0, -1.0), weights)
        if kind == "wild":
            weights = torch.where(hole, WILD[torch.randint(len(WILD), shape, generator=self.random)], weights)
        weights = laid_out(weights.to(self.one(*FLOATING)), self.one(*LAYOUTS))
        return weights.unsqueeze(1) if self.draw(st.booleans()) else weights

    def beta(self, batch: int) -> Tensor:
        """A number, or one per image, also 0 and negative."""
        dtype = reference.accumulate_dtype(self.dtype)
        if self.draw(st.booleans()):
            return torch.tensor(self.one(0.0, 1.0, -2.0, 20.0), dtype=dtype)
        return torch.tensor([self.one(0.0, 1.0, -3.0, 10.0) for _ in range(batch)], dtype=dtype)


@dataclass
class Call:
    """A public function and its definition on the same tensors; outputs are tuples, `grads` of them differentiable."""

    actual: Callable[..., tuple[Tensor, ...]]
    oracle: Callable[..., tuple[Tensor, ...]]
    tensors: dict[str, Tensor | None]
    grads: int
    constant: tuple[str, ...] = ()  # no gradient
    dtype: torch.dtype = torch.float32
    logit: float = 0.0  # about the size of lse: the backward's exp(logit - lse) has its rounding


def pair(s: Source) -> dict[str, Tensor | None]:
    batch, channels = s.one(1, 2, 3, 0), s.one(1, 3, 8, 17)
    ha, wa, hb, wb = s.sides(4)
    return {"fa": s.normal(batch, channels, ha, wa), "fb": s.normal(batch, channels, hb, wb)}


def flat(mask: Tensor | None) -> Tensor | None:
    return mask.squeeze(1) if mask is not None and mask.dim() == 4 else mask


def masks_of(s: Source, tensors: dict[str, Tensor | None]) -> None:
    fa, fb = tensors["fa"], tensors["fb"]
    tensors["mask_a"] = s.mask(fa.shape[0], *fa.shape[2:])
    tensors["mask_b"] = s.mask(fb.shape[0], *fb.shape[2:])


def logit_of(tensors: dict[str, Tensor | None], largest_score: float) -> float:
    """About the largest |lse|: beta times a score, and the log of the largest weight that a mask may have."""
    beta = tensors["beta"].abs().max().item() if tensors["beta"].numel() else 0.0
    double = any(t is not None and t.dtype == torch.float64 for k, t in tensors.items() if k.startswith("mask"))
    return beta * largest_score + (710.0 if double else 90.0)


def largest_score(tensors: dict[str, Tensor | None], normalize: bool) -> float:
    return 1.0 if normalize else 4.0 * tensors["fa"].shape[1]


@st.composite
def match_calls(draw: Any) -> Call:
    s = Source(draw)
    tensors = pair(s)
    masks_of(s, tensors)
    tensors["beta"] = s.beta(tensors["fa"].shape[0])
    normalize = draw(st.booleans())

    def actual(fa, fb, mask_a, mask_b, beta):
        return cosegflow.match(fa, fb, mask_a, mask_b, beta=beta, normalize=normalize)

    def oracle(fa, fb, mask_a, mask_b, beta):
        return reference.match(fa, fb, flat(mask_a), flat(mask_b), beta, normalize)

    return Call(actual, oracle, tensors, 2, ("mask_a",), s.dtype, logit_of(tensors, largest_score(tensors, normalize)))


@st.composite
def match_both_calls(draw: Any) -> Call:
    s = Source(draw)
    tensors = pair(s)
    masks_of(s, tensors)
    tensors["beta"] = s.beta(tensors["fa"].shape[0])
    normalize = draw(st.booleans())

    def ordered(ab, ba):
        return (*ab[:2], *ba[:2], ab[2], ba[2])

    def actual(fa, fb, mask_a, mask_b, beta):
        return ordered(*cosegflow.match_both(fa, fb, mask_a, mask_b, beta=beta, normalize=normalize))

    def oracle(fa, fb, mask_a, mask_b, beta):
        return ordered(*reference.match_both(fa, fb, flat(mask_a), flat(mask_b), beta, normalize))

    return Call(actual, oracle, tensors, 4, (), s.dtype, 2 * logit_of(tensors, largest_score(tensors, normalize)))


@st.composite
def transfer_calls(draw: Any) -> Call:
    s = Source(draw)
    tensors = pair(s)
    fb = tensors["fb"]
    tensors["values"] = s.normal(fb.shape[0], s.one(1, 2, 19), *fb.shape[2:], dtype=s.dtype)
    masks_of(s, tensors)
    tensors["beta"] = s.beta(fb.shape[0])
    normalize = draw(st.booleans())

    def actual(fa, fb, values, mask_a, mask_b, beta):
        return (cosegflow.transfer(fa, fb, values, mask_a, mask_b, beta=beta, normalize=normalize),)

    def oracle(fa, fb, values, mask_a, mask_b, beta):
        return (reference.transfer(fa, fb, values, flat(mask_a), flat(mask_b), beta, normalize),)

    return Call(actual, oracle, tensors, 1, ("mask_a",), s.dtype, logit_of(tensors, largest_score(tensors, normalize)))


@st.composite
def soft_argmax_calls(draw: Any) -> Call:
    s = Source(draw)
    batch, (ha, wa, hb, wb) = s.one(1, 2, 3, 0), s.sides(4)
    tensors = {"corr": s.normal(batch, ha, wa, hb, wb), "mask_b": s.mask(batch, hb, wb), "beta": s.beta(batch)}

    def actual(corr, mask_b, beta):
        return cosegflow.soft_argmax(corr, mask_b, beta=beta)

    def oracle(corr, mask_b, beta):
        return reference.soft_argmax(corr, flat(mask_b), beta)

    return Call(actual, oracle, tensors, 2, (), s.dtype, logit_of(tensors, 5.0))


@st.composite
def correlation_calls(draw: Any) -> Call:
    s = Source(draw)
    tensors = pair(s)
    normalize, relu = draw(st.booleans()), draw(st.booleans())

    def actual(fa, fb):
        return (cosegflow.correlation(fa, fb, normalize=normalize, relu=relu),)

    def oracle(fa, fb):
        return (reference.correlation(fa, fb, normalize, relu),)

    return Call(actual, oracle, tensors, 1, (), s.dtype)


@st.composite
def local_correlation_calls(draw: Any) -> Call:
    s = Source(draw)
    tensors = pair(s)
    fa = tensors["fa"]
    normalize, radius = draw(st.booleans()), s.one(0, 1, 2, 4)
    acc = reference.accumulate_dtype(s.dtype)
    tensors["flow"] = s.flow(fa.shape[0], *fa.shape[2:], acc) if draw(st.booleans()) else None

    def actual(fa, fb, flow):
        return (cosegflow.local_correlation(fa, fb, radius, flow, normalize=normalize),)

    def oracle(fa, fb, flow):
        return (reference.local_correlation(fa, fb, radius, flow, normalize),)

    return Call(actual, oracle, tensors, 1, (), s.dtype)


@st.composite
def warp_calls(draw: Any) -> Call:
    s = Source(draw)
    batch, (h, w, ho, wo) = s.one(1, 2, 3, 0), s.sides(4)
    mode, padding = s.one("bilinear", "nearest"), s.one("zeros", "border")
    flow = s.flow(batch, ho, wo, reference.accumulate_dtype(s.dtype))
    tensors = {"x": s.normal(batch, s.one(1, 3, 17), h, w), "flow": flow}

    def actual(x, flow):
        return cosegflow.warp(x, flow, mode=mode, padding=padding, return_valid=True)

    def oracle(x, flow):
        return reference.warp(x, flow, mode, padding)

    return Call(actual, oracle, tensors, 1, ("flow",) if mode == "nearest" else (), s.dtype)


@st.composite
def cycle_error_calls(draw: Any) -> Call:
    s = Source(draw)
    batch, (ha, wa, hb, wb) = s.one(1, 2, 3, 0), s.sides(4)
    ab, ba = s.flow(batch, ha, wa, s.dtype), s.flow(batch, hb, wb, s.dtype)
    return Call(cosegflow.cycle_error, reference.cycle_error, {"flow_ab": ab, "flow_ba": ba}, 1, (), s.dtype)


CALLS = {
    "match": match_calls(),
    "match_both": match_both_calls(),
    "transfer": transfer_calls(),
    "soft_argmax": soft_argmax_calls(),
    "correlation": correlation_calls(),
    "local_correlation": local_correlation_calls(),
    "warp": warp_calls(),
    "cycle_error": cycle_error_calls(),
}


@st.composite
def sources(draw: Any) -> Source:
    return Source(draw)

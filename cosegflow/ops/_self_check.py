"""The small fixed problems on which a fast CUDA path is compared with the simple kernels of its operation.

A path is a kind of kernels: "portable" ones run on every architecture from sm_80 on; "hopper" is sm_90's own. Each is
checked with every dtype and every precision of float32 that it takes (`CASES`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from cosegflow._operators import operators
from cosegflow.ops._autocast import without_autocast
from cosegflow.reference import accumulate_dtype

PORTABLE, HOPPER = "portable", "hopper"
Size = tuple[int, ...]


class Kernels(NamedTuple):
    """What an operator is asked for."""

    simple: bool = False
    portable: bool = False
    precision: int = 0


def _wave(shape: tuple[int, ...], speed: float, like: Tensor) -> Tensor:
    """Fixed values in [-1, 1]; torch's random state is left alone."""
    count = 1
    for size in shape:
        count *= size
    return torch.sin(torch.arange(count, device=like.device, dtype=torch.float64) * speed).reshape(shape)


def _noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Fixed values in [-1, 1] without a period: no two pixels have nearly the same features, as with a wave."""
    bits = torch.arange(math.prod(shape), device=like.device, dtype=torch.int64)
    for factor in (2654435761, 2246822519):  # multiplied and mixed modulo 2^32
        bits = bits * factor & 0xFFFFFFFF
        bits = bits ^ bits >> 15
    return (bits.double() / 2**31 - 1).reshape(shape)


def _finite(lse: Tensor) -> Tensor:
    """0 for the -inf of a source without targets; a NaN stays."""
    return torch.where(torch.isneginf(lse), 0.0, lse)


# A backward forms its products as float32 does, whatever the precision of the forward. Gradients are compared after a
# forward that does so too: after one of bfloat16 products (precision 2) they differ by up to a seventh in these sizes.


def _match(ops: Any, like: Tensor, kernels: Kernels, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    acc = accumulate_dtype(like.dtype)
    mask_a, mask_b = _wave((b, ha, wa), 2.1, like) > -0.5, _wave((b, hb, wb), 1.7, like).clamp(min=0).to(acc)
    beta = torch.full((), 12.0, device=like.device, dtype=acc)
    simple, options = kernels.simple, (kernels.precision, kernels.portable)
    flow, lse, confidence, _, _ = ops.match(fa, fb, mask_a, mask_b, beta, True, simple, 0.0, False, *options)
    saved = (flow, lse)
    if kernels.precision:
        saved = ops.match(fa, fb, mask_a, mask_b, beta, True, simple, 0.0, False, 0, kernels.portable)[:2]
    grads = ops.match_backward(
        _wave((b, 2, ha, wa), 0.9, like).to(acc), _wave((b, ha, wa), 1.1, like).to(acc), fa, fb, mask_a, mask_b, beta,
        *saved, True, simple, True, True, True, True, portable=kernels.portable,
    )  # fmt: skip
    # Two nearly equal targets may swap places between the kernels, so the most probable one shows by its score. That
    # takes targets that are only in or out: unequal weights could give nearly equal logits to unequal scores.
    indexed = ops.match(fa, fb, mask_a, mask_b > 0, beta, True, simple, 0.0, True, *options)
    score = torch.where(indexed[3] >= 0, indexed[4], 0.0)
    dense = ops.match(fa, fb, None, None, beta, True, simple, 0.0, False, *options)
    results = [flow, _finite(lse), confidence, *grads, indexed[0], score, *dense[:3]]
    if c >= 64 and kernels.precision < 2:
        # A window lies around the most probable target, so that has to be beyond doubt: each source has its like in b.
        noise = _noise((b, c, ha, wa), like).to(like.dtype)
        windowed = ops.match(noise, noise.flip(3), None, None, beta, True, simple, 2.0, True, *options)
        results += [*windowed[:3], windowed[3].to(acc), windowed[4]]
    return results


def _match_both(ops: Any, like: Tensor, kernels: Kernels, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    acc = accumulate_dtype(like.dtype)
    mask_a = _wave((b, ha, wa), 2.1, like).clamp(min=0).to(acc)
    mask_b = _wave((b, hb, wb), 1.7, like).clamp(min=0).to(acc)
    beta = torch.full((), 12.0, device=like.device, dtype=acc)
    simple, options = kernels.simple, (kernels.precision, kernels.portable)
    outputs = ops.match_both(fa, fb, mask_a, mask_b, beta, True, simple, *options)
    incoming = [_wave(tuple(outputs[i].shape), 0.9 + 0.1 * i, like).to(acc) for i in (0, 1, 3, 4)]
    precise = outputs
    if kernels.precision:
        precise = ops.match_both(fa, fb, mask_a, mask_b, beta, True, simple, 0, kernels.portable)
    saved = [precise[i] for i in (0, 1, 3, 4)]
    grads = ops.match_both_backward(
        *incoming, fa, fb, mask_a, mask_b, beta, *saved, True, simple, True, True, True, True, True,
        portable=kernels.portable,
    )  # fmt: skip
    return [*(_finite(o) for o in outputs), *grads]


def _transfer(ops: Any, like: Tensor, kernels: Kernels, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    acc = accumulate_dtype(like.dtype)
    values = _wave((b, 11, hb, wb), 0.37, like).to(like.dtype)
    mask_a, mask_b = _wave((b, ha, wa), 2.1, like) > -0.5, _wave((b, hb, wb), 1.7, like).clamp(min=0).to(acc)
    beta = torch.full((), 12.0, device=like.device, dtype=acc)
    simple, options = kernels.simple, (kernels.precision, kernels.portable)
    out, lse = ops.transfer(fa, fb, values, mask_a, mask_b, beta, True, simple, *options)
    saved = (out, lse)
    if kernels.precision:
        saved = ops.transfer(fa, fb, values, mask_a, mask_b, beta, True, simple, 0, kernels.portable)
    grads = ops.transfer_backward(
        _wave((b, 11, ha, wa), 0.9, like).to(acc), fa, fb, values, mask_a, mask_b, beta, *saved, True, simple, True,
        True, True, True, True, portable=kernels.portable,
    )  # fmt: skip
    return [out, _finite(lse), *grads]


def _soft_argmax(ops: Any, like: Tensor, kernels: Kernels, size: Size) -> list[Tensor]:
    b, ha, wa, hb, wb = size
    corr = _wave(size, 0.7, like).to(like.dtype)
    acc = accumulate_dtype(like.dtype)
    mask_b = _wave((b, hb, wb), 1.7, like).clamp(min=0).to(acc)
    beta = torch.full((), 5.0, device=like.device, dtype=acc)
    simple = kernels.simple
    flow, lse, confidence, _, _ = ops.soft_argmax(corr, mask_b, beta, simple)
    grads = ops.soft_argmax_backward(
        _wave((b, 2, ha, wa), 0.9, like).to(acc), _wave((b, ha, wa), 1.1, like).to(acc), corr, mask_b, beta, flow, lse,
        simple, True, True, True,
    )  # fmt: skip
    # Both kernels round a logit alike, so they agree on the most probable target, around which the window lies.
    window, window_lse, _, index, score = ops.soft_argmax(corr, mask_b, beta, simple, 3.0, True)
    window_grads = ops.soft_argmax_backward(
        _wave((b, 2, ha, wa), 0.9, like).to(acc), _wave((b, ha, wa), 1.1, like).to(acc), corr, mask_b, beta, window,
        window_lse, simple, True, True, True, index, 3.0,
    )  # fmt: skip
    return [flow, lse, confidence, *grads, window, window_lse, index.to(acc), score, *window_grads]


def _correlation(ops: Any, like: Tensor, kernels: Kernels, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    simple = kernels.simple
    corr = ops.correlation(fa, fb, True, True, simple, kernels.precision, kernels.portable)
    grad = _wave(tuple(corr.shape), 0.9, like).to(like.dtype)
    gate = torch.ones_like(corr)  # a score of about 0 may pass or not: the two kernels get the same gate
    # With and without a gate: Hopper's products read what the gate leaves, or the gradient as it is given.
    gated = ops.correlation_backward(
        grad, fa, fb, gate, True, True, simple, True, True, portable=kernels.portable,
    )  # fmt: skip
    plain = ops.correlation_backward(
        grad, fa, fb, None, True, False, simple, True, True, portable=kernels.portable,
    )  # fmt: skip
    return [corr, *gated, *plain]


def _local_correlation(ops: Any, like: Tensor, kernels: Kernels, size: Size) -> list[Tensor]:
    b, c, ha, wa, hb, wb, radius = size
    fa, fb = _wave((b, c, ha, wa), 0.7, like).to(like.dtype), _wave((b, c, hb, wb), 1.3, like).to(like.dtype)
    acc = accumulate_dtype(like.dtype)
    results = []
    for flow in (None, _wave((b, 2, ha, wa), 0.3, like).to(acc) * 3):
        out = ops.local_correlation(fa, fb, flow, radius, True, kernels.simple)
        grad = _wave(tuple(out.shape), 0.9, like).to(like.dtype)
        need = (True, True, flow is not None)
        grads = ops.local_correlation_backward(grad, fa, fb, flow, radius, True, False, *need, kernels.simple)
        results += [out, *grads[: sum(need)]]
    return results


def _warp(ops: Any, like: Tensor, kernels: Kernels, size: Size) -> list[Tensor]:
    b, c, h, w, ho, wo = size
    acc = accumulate_dtype(like.dtype)
    flow = _wave((b, 2, ho, wo), 0.013, like).to(acc) * 6
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = _wave((b, c, h, w), 0.7, like).to(like.dtype).contiguous(memory_format=layout)
        grad = _wave((b, c, ho, wo), 0.9, like).to(like.dtype).contiguous(memory_format=layout)
        for mode, padding in (("bilinear", "zeros"), ("bilinear", "border"), ("nearest", "zeros")):
            results += ops.warp(x, flow, mode, padding, kernels.simple)
            for deterministic in (False, True):
                options = (mode, padding, True, True, deterministic, kernels.simple)
                results += ops.warp_backward(grad, x, flow, *options)
    return results


def _cycle_error(ops: Any, like: Tensor, kernels: Kernels, size: Size) -> list[Tensor]:
    b, ha, wa, hb, wb = size
    acc = accumulate_dtype(like.dtype)
    flow_ab = (_wave((b, 2, ha, wa), 0.013, like) * 5).to(like.dtype)
    flow_ba = (_wave((b, 2, hb, wb), 0.017, like) * 5).to(like.dtype)
    grad = _wave((b, ha, wa), 0.9, like).to(acc)
    results = [*ops.cycle_error(flow_ab, flow_ba, kernels.simple)]
    for deterministic in (False, True):
        results += ops.cycle_error_backward(grad, flow_ab, flow_ba, True, True, deterministic, kernels.simple)
    return results


# What is computed, and on which sizes: the first with odd tails, the others so that pipelines wrap, a block walks over
# several tiles, and rows are aligned and not, read by a warp and by a block.
PROBLEMS: dict[str, tuple[Callable[[Any, Tensor, Kernels, Size], list[Tensor]], tuple[Size, ...]]] = {
    "match": (_match, ((2, 72, 9, 17, 11, 13), (1, 136, 3, 5, 64, 80), (1, 3, 20, 20, 5, 7))),
    "match_both": (_match_both, ((2, 72, 9, 17, 11, 13), (1, 136, 64, 80, 3, 5), (1, 3, 20, 20, 5, 7))),
    "transfer": (_transfer, ((2, 72, 9, 17, 11, 13), (1, 136, 3, 5, 64, 80), (1, 3, 20, 20, 5, 7))),
    "soft_argmax": (_soft_argmax, ((2, 3, 5, 16, 17), (1, 2, 3, 33, 32), (1, 2, 3, 31, 35), (2, 3, 5, 13, 21))),
    "correlation": (_correlation, ((2, 72, 9, 17, 11, 13), (1, 40, 32, 32, 128, 128), (1, 4, 9, 17, 8, 16))),
    "local_correlation": (
        _local_correlation,
        (
            (2, 19, 9, 37, 7, 41, 4),
            (1, 8, 5, 33, 5, 33, 5),
            (1, 3, 4, 9, 5, 7, 1),
            (2, 40, 18, 64, 17, 68, 4),
            (1, 264, 9, 36, 10, 33, 4),
        ),
    ),
    "warp": (_warp, ((2, 3, 17, 21, 19, 13), (2, 24, 20, 36, 21, 40), (1, 70, 9, 13, 70, 90))),
    "cycle_error": (_cycle_error, ((2, 9, 37, 7, 41), (1, 70, 66, 33, 35))),
}


WITH_PRECISION = ("match", "match_both", "transfer", "correlation")
"""These operators take `precision` and `portable`, and have kernels of their own for Hopper."""
# More for those: several of their tiles, the last ones not full, and more channels than the pipeline holds; row tiles
# that blocks share, and blocks that walk over several, on a GPU of 132 multiprocessors.
MORE_SIZES: dict[tuple[str, str], tuple[Size, ...]] = {
    (op, HOPPER): ((2, 330, 24, 37, 20, 33), (2, 136, 60, 70, 50, 60), (40, 24, 30, 31, 10, 12))
    for op in WITH_PRECISION
}
# Without packing: images that are multiples of 8 pixels.
MORE_SIZES["correlation", HOPPER] += ((2, 330, 24, 36, 20, 34),)

HALVES = ((torch.float16, 0), (torch.bfloat16, 0))
# What each path takes: dtype and precision (ops/_precision.py).
CASES: dict[tuple[str, str], tuple[tuple[torch.dtype, int], ...]] = {
    **{
        (op, PORTABLE): (
            *HALVES, (torch.float32, 0), (torch.float64, 0),
            *(((torch.float32, 1), (torch.float32, 2)) if op in WITH_PRECISION else ()),
        )
        for op in PROBLEMS
    },
    **{(op, HOPPER): (*HALVES, (torch.float32, 1), (torch.float32, 2)) for op in WITH_PRECISION},
}  # fmt: skip

# The largest |fast - simple| / (1 + max |simple|) that still is agreement, by dtype and precision.
TOLERANCES = {
    (torch.float16, 0): 1e-2,
    (torch.bfloat16, 0): 5e-2,
    (torch.float32, 0): 1e-3,
    (torch.float32, 1): 1e-3,
    (torch.float32, 2): 2e-2,
    (torch.float64, 0): 1e-9,
}
PRECISIONS = ("highest", "high", "medium")


def own_path(op: str, architecture: str, dtype: torch.dtype, precision: int) -> str | None:
    """The path that only `architecture` (such as "sm_90") has for this; None where it has none."""
    takes = CASES.get((op, HOPPER), ()) if architecture == "sm_90" else ()
    return HOPPER if (dtype, precision) in takes else None


def case_name(dtype: torch.dtype, precision: int) -> str:
    """Such as "float32" or "float32 high"."""
    return str(dtype).removeprefix("torch.") + (f" {PRECISIONS[precision]}" if precision else "")


def sizes_of(op: str, path: str, small: bool = False) -> tuple[Size, ...]:
    """The problems' sizes; `small`: without those that only a GPU computes in no time."""
    sizes = (*PROBLEMS[op][1], *MORE_SIZES.get((op, path), ()))
    return tuple(s for s in sizes if not small or math.prod(s) < 100_000_000)


def difference(
    op: str, path: str, like: Tensor, precision: int = 0, ops: Any = operators, sizes: tuple[Size, ...] | None = None
) -> float:
    """The largest |fast - simple| / (1 + max |simple|) over the small problems, NaN where a kernel gives one; waits."""
    problem, tolerance = PROBLEMS[op][0], TOLERANCES[like.dtype, precision]
    fast_kernels = Kernels(portable=path == PORTABLE, precision=precision)
    simple_kernels = Kernels(simple=True, precision=precision)  # which asks as much, and takes no notice of it
    largest = 0.0
    for size in sizes or sizes_of(op, path):
        # A tracer's modes would make these tensors fake, and autocast would change what is compared.
        with torch.no_grad(), _disable_current_modes(), torch._C.DisableTorchFunction(), without_autocast(like):
            pairs = zip(problem(ops, like, fast_kernels, size), problem(ops, like, simple_kernels, size), strict=True)
            for fast, simple in list(pairs):
                fast, simple = fast.double(), simple.double()
                found = float((fast - simple).abs().max() / (1 + simple.abs().max()))
                if not found <= tolerance:
                    return found  # one is enough, and max() would lose a NaN
                largest = max(largest, found)
    return largest


def agrees(
    op: str, path: str, like: Tensor, precision: int = 0, ops: Any = operators, sizes: tuple[Size, ...] | None = None
) -> bool:
    """Whether a path and the simple kernels give the same on the small problems; waits for the device."""
    return difference(op, path, like, precision, ops, sizes) <= TOLERANCES[like.dtype, precision]

"""For formats that know no operator of ours, such as ONNX: each operator in torch's own.

    program = torch.export.export(model, inputs).run_decompositions(cosegflow.export.decompositions())
    torch.onnx.export(program, dynamo=True).save("model.onnx")

The decompositions are those of `cosegflow.reference`: equal in value, but they store the volume of all pairs.
docs/export.md tells what can be exported without them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cosegflow import _library, reference
from cosegflow.types import IndexedMatches

# Arguments that choose among kernels (simple, precision, portable) mean nothing here.


def _as_outputs(found: IndexedMatches, want_index: bool) -> tuple[Tensor, ...]:
    """The operators give an empty index and score unless they are asked for."""
    return tuple(found) if want_index else (*found[:3], found.index.new_empty(0), found.score.new_empty(0))


def _warp(x: Tensor, flow: Tensor, mode: str = "bilinear", padding: str = "zeros", *_: Any) -> tuple[Tensor, Tensor]:
    return reference.warp(x, flow, mode, padding)


def _cycle_error(flow_ab: Tensor, flow_ba: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    error, valid = reference.cycle_error(flow_ab, flow_ba)
    return error, valid


def _hypot(x: Tensor, y: Tensor) -> Tensor:
    """sqrt(x^2 + y^2) without overflow, inf where x or y is, even beside a NaN; ONNX has no hypot."""
    x, y = x.abs(), y.abs()
    largest = torch.maximum(x, y)
    unit = torch.where(largest > 0, largest, 1.0)
    finite = largest * torch.sqrt((x / unit) ** 2 + (y / unit) ** 2)
    return torch.where((x == torch.inf) | (y == torch.inf), torch.inf, finite)


def _correlation(fa: Tensor, fb: Tensor, normalize: bool = False, relu: bool = False, *_: Any) -> Tensor:
    return reference.correlation(fa, fb, normalize, relu)


def _soft_argmax(
    corr: Tensor,
    mask_b: Tensor | None,
    beta: Tensor,
    simple: bool = False,
    kernel_sigma: float = 0.0,
    return_index: bool = False,
) -> tuple[Tensor, ...]:
    found = reference.soft_argmax_indexed(corr, mask_b, beta, kernel_sigma)
    return _as_outputs(found, return_index or kernel_sigma > 0)


def _match(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    normalize: bool = True,
    simple: bool = False,
    kernel_sigma: float = 0.0,
    return_index: bool = False,
    *_: Any,
) -> tuple[Tensor, ...]:
    found = reference.match_indexed(fa, fb, mask_a, mask_b, beta, normalize, kernel_sigma)
    return _as_outputs(found, return_index or kernel_sigma > 0)


def _match_both(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    normalize: bool = True,
    *_: Any,
) -> tuple[Tensor, ...]:
    ab, ba = reference.match_both(fa, fb, mask_a, mask_b, beta, normalize)
    return (*ab, *ba)


def _transfer(
    fa: Tensor,
    fb: Tensor,
    values: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    normalize: bool = True,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    values = values.to(reference.accumulate_dtype(fa.dtype))
    out = reference.transfer(fa, fb, values, mask_a, mask_b, beta, normalize)
    return out, reference.match(fa, fb, mask_a, mask_b, beta, normalize).lse  # an lse that nobody reads is left out


def _local_correlation(
    fa: Tensor, fb: Tensor, flow: Tensor | None, radius: int, normalize: bool = False, *_: Any
) -> Tensor:
    """Reads windows of the volume: a few nodes at any radius, where the reference's loop has some hundreds."""
    (ha, wa), (hb, wb) = fa.shape[2:], fb.shape[2:]
    acc = reference.accumulate_dtype(fa.dtype)
    volume = reference.correlation(fa.to(acc), fb.to(acc), normalize).flatten(3).flatten(1, 2)  # (B, Na, Nb)
    at = reference.pixel_grid(ha, wa, volume).unsqueeze(0)
    last = radius
    if flow is not None:
        flow = flow.to(acc)
        finite = torch.isfinite(flow).all(1, keepdim=True)
        at = at + torch.where(finite, flow, 0.0)
        last = radius + 1
    at = at.expand(fa.shape[0], 2, ha, wa).flatten(2).unsqueeze(-1)  # (B, 2, Na, 1)
    x, y = at[:, 0].clamp(-radius - 2, wb + radius + 1), at[:, 1].clamp(-radius - 2, hb + radius + 1)
    offsets = torch.arange(-radius, last + 1, dtype=acc, device=fa.device)
    columns, rows = x.floor() + offsets, (y.floor() + offsets).unsqueeze(-1)  # (B, Na, K), (B, Na, K, 1)
    columns = columns.unsqueeze(-2)
    inside = (columns >= 0) & (columns < wb) & (rows >= 0) & (rows < hb)
    if flow is not None:
        inside = inside & finite.reshape(-1, ha * wa, 1, 1)
    flat = torch.where(inside, rows * wb + columns, 0.0).long().flatten(2)
    taps = torch.where(inside.flatten(2), volume.gather(2, flat), 0.0).reshape(inside.shape)
    if flow is not None:  # all points of a window have the same fractions
        wx, wy = (x - x.floor()).unsqueeze(-1), (y - y.floor()).unsqueeze(-1)
        taps = taps[..., :-1] * (1 - wx) + taps[..., 1:] * wx
        taps = taps[..., :-1, :] * (1 - wy) + taps[..., 1:, :] * wy
    return taps.flatten(2).transpose(1, 2).unflatten(2, (ha, wa)).to(fa.dtype)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """A table for `torch.export.ExportedProgram.run_decompositions`: our operators as functions of torch's own.

    What comes out needs neither cosegflow nor its kernels. It stores the volume of all pairs, (B, Ha*Wa, Hb*Wb), which
    the kernels of `match`, `match_both`, `transfer` and `local_correlation` do not. The table has no operators of
    backward passes; it has `torch.hypot`, which `cycle_error` needs and ONNX lacks.

    Raises:
        RuntimeError: the compiled kernels could not be loaded, so there are no operators to replace.
    """
    _library.require(torch.device("cpu"))
    functions: dict[str, Callable[..., Any]] = {
        "warp": _warp,
        "cycle_error": _cycle_error,
        "correlation": _correlation,
        "soft_argmax": _soft_argmax,
        "match": _match,
        "match_both": _match_both,
        "transfer": _transfer,
        "local_correlation": _local_correlation,
    }
    ours = {getattr(torch.ops.cosegflow, name).default: function for name, function in functions.items()}
    return {**ours, torch.ops.aten.hypot.default: _hypot}

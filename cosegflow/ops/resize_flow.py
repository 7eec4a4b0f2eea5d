"""resize_flow: a flow between two grids, for grids of other sizes over the same images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cosegflow import reference
from cosegflow.ops import _checks


def _as_size(name: str, size: Sequence[int]) -> tuple[int, int]:
    if not isinstance(size, Sequence) or not all(isinstance(n, (int, torch.SymInt)) for n in size):
        raise TypeError(f"{name} must be two numbers (H, W), got {size!r}")
    if len(size) != 2 or not all(n >= 1 for n in size):
        raise ValueError(f"{name} must be (H, W), both at least 1, got {tuple(size)}")
    return size[0], size[1]


def _flow_of_equal_content(size_a: tuple[int, int], size_b: tuple[int, int], like: Tensor) -> Tensor:
    """(2, Ha, Wa): the flow between two images of the same content: (x + 0.5) Wb / Wa - 0.5 - x, and so for y."""
    x, y = reference.pixel_grid(*size_a, like)
    return torch.stack(((x + 0.5) * (size_b[1] / size_a[1] - 1), (y + 0.5) * (size_b[0] / size_a[0] - 1)))


def resize_flow(
    flow: Tensor, size_a: Sequence[int], size_b: Sequence[int], *, from_size_b: Sequence[int] | None = None
) -> Tensor:
    """A flow from features to images: given between grids of one pair of sizes, wanted between grids of another.

    Pixel centres are integers, so the same place has coordinates x' = (x + 0.5) s - 0.5 on a grid of s times the size
    (``align_corners=False``). Flow is b's pixel minus a's pixel: where a and b are resized by different factors, it is
    the positions of both ends that are converted, and identical content is not zero flow. What is interpolated is the
    flow less that of identical content, so that flows that are affine in the position stay exact between the outermost
    pixel centres, and identical content stays so up to the edges; beyond the outermost centres (half a pixel of the
    old grid) the difference from identical content is continued as a constant. Nothing is averaged: before shrinking a
    flow by much, smooth it. Any transform of torch applies.

    Args:
        flow: (B, 2, H, W), float16, bfloat16, float32 or float64, in pixels of the grids it is on.
        size_a: (Ha, Wa), the size of a's new grid.
        size_b: (Hb, Wb), the size of b's new grid.
        from_size_b: the size of the grid that ``flow`` points into; that of ``flow`` itself unless given.

    Returns:
        (B, 2, Ha, Wa), float32 (float64 for float64), in pixels of the new grids.

    Raises:
        TypeError: a dtype that is not floating, or a size that is no pair.
        ValueError: a wrong shape, or a size below 1.
    """
    _checks.require_features("flow", flow, "(B, 2, H, W)")
    if flow.shape[1] != 2:
        raise _checks.wrong_flow("flow", flow, "(B, 2, H, W)")
    new_a, new_b = _as_size("size_a", size_a), _as_size("size_b", size_b)
    old_a = (flow.shape[2], flow.shape[3])
    old_b = old_a if from_size_b is None else _as_size("from_size_b", from_size_b)
    flow = flow.to(reference.accumulate_dtype(flow.dtype))
    rest = flow - _flow_of_equal_content(old_a, old_b, flow)
    if new_a != old_a:
        rest = F.interpolate(rest, size=new_a, mode="bilinear", align_corners=False)
    # Numbers, not a tensor of them: that would be a copy from the host, which no CUDA graph can capture.
    rest = torch.stack((rest[:, 0] * (new_b[1] / old_b[1]), rest[:, 1] * (new_b[0] / old_b[0])), 1)
    return rest + _flow_of_equal_content(new_a, new_b, flow)

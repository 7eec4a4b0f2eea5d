"""Robust, locally affine smoothing of a flow: what the matches around a position agree on.

Objects move as a whole: nearby matches of one object are nearly one affine map, and wrong matches agree with nothing.
Around each position an affine map is fitted to the flow by weighted least squares, weights a Gaussian of the distance
(moving least squares: Lancaster and Salkauskas 1981) times the weight given; then again with matches down-weighted by
how far they lie off the last fit (iteratively reweighted least squares, Geman-McClure weights). Ours. Of the weights
the mask matters most: without it the background beside an object takes part in the object's fit.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from cosegflow.reference import accumulate_dtype

SIGMA = 16.0
"""Standard deviation of the window, in pixels of the photograph."""
OUTLIER = 10.0
"""A match so many pixels off the fit counts a quarter."""
ITERATIONS = 4
RIDGE = 0.02
"""Added to the window's second moments, in SIGMA^2: where few matches remain, the fit is nearly constant."""
LEAST = 1e-4
"""Weight that every match keeps, so that each fit has matches."""


def _blur(x: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) under a Gaussian cut off at 3 sigma, zeros outside."""
    radius = max(1, int(3 * sigma + 0.5))
    taps = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-taps.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(x, kernel.unsqueeze(3), padding=(radius, 0), groups=x.shape[1])
    return F.conv2d(x, kernel.unsqueeze(2), padding=(0, radius), groups=x.shape[1])


def locally_affine(flow: Tensor, weight: Tensor, sigma: float, ridge: float = RIDGE) -> Tensor:
    """Each position's value of the affine map that fits the flow around it best; (B, 2, H, W).

    Reproduces an affine flow up to `ridge`.

    Args:
        flow: (B, 2, H, W), cells, finite.
        weight: (B, H, W) > 0.
        sigma: standard deviation of the window, cells.
        ridge: added to the variance of the positions, in sigma^2.
    """
    height, width = flow.shape[-2:]
    # Positions in units of sigma, from the middle: the moments stay of order 1.
    y = ((torch.arange(height, device=flow.device, dtype=flow.dtype) - (height - 1) / 2) / sigma)[:, None]
    x = ((torch.arange(width, device=flow.device, dtype=flow.dtype) - (width - 1) / 2) / sigma)[None]
    y, x = y.expand_as(weight), x.expand_as(weight)
    ones = torch.ones_like(weight)
    basis = torch.stack((ones, x, y, x * x, x * y, y * y), 1)
    moments = [basis, *(basis[:, :3] * flow[:, i : i + 1] for i in (0, 1))]
    m = _blur(weight.unsqueeze(1) * torch.cat(moments, 1), sigma)
    m = m / m[:, :1].clamp(min=torch.finfo(flow.dtype).tiny)
    mean_x, mean_y = m[:, 1], m[:, 2]
    xx, xy, yy = m[:, 3] - mean_x**2 + ridge, m[:, 4] - mean_x * mean_y, m[:, 5] - mean_y**2 + ridge
    determinant = xx * yy - xy**2
    values = []
    for first in (6, 9):
        mean, with_x, with_y = m[:, first], m[:, first + 1], m[:, first + 2]
        cx, cy = with_x - mean_x * mean, with_y - mean_y * mean
        slope_x, slope_y = (yy * cx - xy * cy) / determinant, (xx * cy - xy * cx) / determinant
        values.append(mean + slope_x * (x - mean_x) + slope_y * (y - mean_y))
    return torch.stack(values, 1)


def robust_flow(flow: Tensor, weight: Tensor, cell: float) -> Tensor:
    """The smoothed flow; gradients flow to `flow` through the last fit, whose weights are constants.

    Args:
        flow: (B, 2, H, W), cells.
        weight: (B, H, W) in [0, 1]: how far each match is trusted.
        cell: pixels of the photograph in a cell.

    Returns:
        (B, 2, H, W), cells.
    """
    sigma, outlier = SIGMA / cell, OUTLIER / cell
    with torch.autocast(flow.device.type, enabled=False):  # half would lose the moments in rounding
        flow, weight = flow.to(accumulate_dtype(flow.dtype)), weight.to(accumulate_dtype(flow.dtype))
        with torch.no_grad():
            start = robust = weight + LEAST
            for _ in range(ITERATIONS):
                off = (flow - locally_affine(flow, robust, sigma)).square().sum(1) / outlier**2
                robust = start / (1 + off) ** 2
        return locally_affine(flow, robust, sigma)

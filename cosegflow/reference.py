"""Every operation in a few lines of plain PyTorch: the definition, and the oracle of the tests.

Nothing here is fast and everything here is differentiable, twice, forward and reverse, on any device. The functions
take what the public functions take after their checks: tensors, masks of shape (B, H, W) or None, beta as a tensor.

Positions that a mask excludes are *selected* away (``torch.where``), never multiplied by 0, because 0 * NaN is NaN;
each ``where`` also guards the branch it does not take, because its gradient would otherwise be 0 * inf.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from cosegflow.types import CycleError, IndexedMatches, Matches

NORM_EPS = 1e-12

Size = Sequence[int]
"""Height, width."""


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of coordinates and log-sum-exp for inputs of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pixel_grid(height: int, width: int, like: Tensor) -> Tensor:
    """(2, height, width): the x and the y of each pixel, in the dtype and on the device of `like`."""
    ys = torch.arange(height, dtype=like.dtype, device=like.device)
    xs = torch.arange(width, dtype=like.dtype, device=like.device)
    return torch.stack((xs.expand(height, width), ys[:, None].expand(height, width)))


def mask_weights(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights in `dtype`: NaN and negative count as 0, +inf as the largest finite value."""
    if mask.dtype == torch.bool:
        return mask.to(dtype)
    largest = min(torch.finfo(mask.dtype).max, torch.finfo(dtype).max)
    return torch.nan_to_num(mask, nan=0.0, posinf=largest, neginf=0.0).clamp(min=0.0, max=largest).to(dtype)


def correlation(fa: Tensor, fb: Tensor, normalize: bool = False, relu: bool = False) -> Tensor:
    """(B, Ha, Wa, Hb, Wb): corr[b,i,j,k,l] = <fa[b,:,i,j], fb[b,:,k,l]>, accumulated in float32 or float64."""
    acc = accumulate_dtype(fa.dtype)
    a, b = fa.to(acc), fb.to(acc)
    if normalize:
        a, b = F.normalize(a, dim=1, eps=NORM_EPS), F.normalize(b, dim=1, eps=NORM_EPS)
    corr = torch.einsum("bcij,bckl->bijkl", a, b)
    return (corr.relu() if relu else corr).to(fa.dtype)


def _expected_positions(
    scores: Tensor, allowed: Tensor, log_weight: Tensor, beta: Tensor, size_b: Size
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Soft argmax over the last dimension of scores (B, Na, Nb): expected (x, y) (B, Na, 2), lse, confidence, ok."""
    scores = torch.where(allowed, scores, 0.0)
    logits = beta.reshape(-1, 1, 1) * scores + log_weight
    row_ok = allowed.any(-1)
    peak = torch.where(row_ok, logits.masked_fill(~allowed, -torch.inf).amax(-1), 0.0).detach().unsqueeze(-1)
    weight = torch.where(allowed, torch.exp(torch.where(allowed, logits - peak, 0.0)), 0.0)
    total = torch.where(row_ok, weight.sum(-1), 1.0)
    p = weight / total.unsqueeze(-1)
    positions = pixel_grid(size_b[0], size_b[1], scores).flatten(1).T  # (Nb, 2)
    lse = torch.where(row_ok, peak.squeeze(-1) + total.log(), -torch.inf)
    return p @ positions, lse, p.amax(-1).detach(), row_ok


def _most_probable(scores: Tensor, logits: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Index (-1: none) and score (-inf) of the largest logit over the last dimension; NaN is passed over."""
    candidates = torch.where(allowed & ~torch.isnan(logits), logits, -torch.inf).detach()
    none = torch.isneginf(candidates.amax(-1))
    index = candidates.argmax(-1)  # the first of equal ones
    score = scores.detach().gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return torch.where(none, -1, index), torch.where(none, -torch.inf, score)


def _windowed(scores: Tensor, index: Tensor, sigma: float, size_b: Size) -> Tensor:
    """k_ij max(s_ij, 0) with a Gaussian k of standard deviation `sigma` pixels around the targets `index` (B, Na)."""
    positions = pixel_grid(size_b[0], size_b[1], scores).flatten(1).T  # (Nb, 2)
    centers = positions[index.clamp(min=0)]  # (B, Na, 2)
    distance = (positions - centers.unsqueeze(-2)).square().sum(-1)
    rate = min(0.5 / sigma / sigma, torch.finfo(scores.dtype).max)
    return torch.exp(-rate * distance) * scores.relu()


def _to_matches(
    scores: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    size_a: Size,
    size_b: Size,
    kernel_sigma: float = 0.0,
) -> IndexedMatches:
    (ha, wa), (hb, wb) = size_a, size_b
    batch = scores.shape[0]
    if mask_b is None:
        allowed = torch.ones_like(scores, dtype=torch.bool)
        log_weight = torch.zeros_like(scores[:, :1])
    else:
        weights = mask_weights(mask_b, torch.float64 if mask_b.dtype == torch.float64 else scores.dtype)
        weights = weights.reshape(batch, 1, hb * wb)
        allowed = (weights > 0).expand_as(scores)
        log_weight = torch.where(weights > 0, weights, 1.0).log().to(scores.dtype)
    if mask_a is not None:
        allowed = allowed & (mask_a.reshape(batch, ha * wa, 1) > 0)
    scores = torch.where(allowed, scores, 0.0)
    index, score = _most_probable(scores, beta.reshape(-1, 1, 1) * scores + log_weight, allowed)
    if kernel_sigma > 0:
        scores = _windowed(scores, index, kernel_sigma, size_b)
    expected, lse, confidence, row_ok = _expected_positions(scores, allowed, log_weight, beta, (hb, wb))
    flow = expected.transpose(1, 2).reshape(batch, 2, ha, wa) - pixel_grid(ha, wa, scores)
    flow = torch.where(row_ok.reshape(batch, 1, ha, wa), flow, 0.0)
    lse, confidence, index, score = (t.reshape(batch, ha, wa) for t in (lse, confidence, index, score))
    return IndexedMatches(flow, lse, confidence, index, score)


def soft_argmax_indexed(corr: Tensor, mask_b: Tensor | None, beta: Tensor, kernel_sigma: float = 0.0) -> IndexedMatches:
    """Mask-aware soft argmax of a volume (B, Ha, Wa, Hb, Wb); excluded entries of the volume are never read."""
    batch, ha, wa, hb, wb = corr.shape
    scores = corr.to(accumulate_dtype(corr.dtype)).reshape(batch, ha * wa, hb * wb)
    return _to_matches(scores, None, mask_b, beta.to(scores.dtype), (ha, wa), (hb, wb), kernel_sigma)


def soft_argmax(corr: Tensor, mask_b: Tensor | None, beta: Tensor, kernel_sigma: float = 0.0) -> Matches:
    """`soft_argmax_indexed` without index and score."""
    return Matches(*soft_argmax_indexed(corr, mask_b, beta, kernel_sigma)[:3])


def match_indexed(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    normalize: bool = True,
    kernel_sigma: float = 0.0,
) -> IndexedMatches:
    """p_ij = m_j exp(beta s_ij) / sum_k m_k exp(beta s_ik); flow_i = sum_j p_ij q_j - p_i.

    With a kernel_sigma, k_ij max(s_ij, 0) stands for s_ij, k being a Gaussian around the j with the largest plain p_ij.
    """
    acc = accumulate_dtype(fa.dtype)
    a, b = fa.to(acc), fb.to(acc)
    if mask_a is not None:
        a = torch.where(mask_a.unsqueeze(1) > 0, a, 0.0)
    if mask_b is not None:
        b = torch.where(mask_b.unsqueeze(1) > 0, b, 0.0)
    scores = correlation(a, b, normalize=normalize).flatten(3).flatten(1, 2)
    return _to_matches(scores, mask_a, mask_b, beta.to(acc), fa.shape[2:], fb.shape[2:], kernel_sigma)


def match(
    fa: Tensor,
    fb: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    normalize: bool = True,
    kernel_sigma: float = 0.0,
) -> Matches:
    """`match_indexed` without index and score."""
    return Matches(*match_indexed(fa, fb, mask_a, mask_b, beta, normalize, kernel_sigma)[:3])


def match_both(
    fa: Tensor, fb: Tensor, mask_a: Tensor | None, mask_b: Tensor | None, beta: Tensor, normalize: bool = True
) -> tuple[Matches, Matches]:
    """`match` from a to b and from b to a."""
    return match(fa, fb, mask_a, mask_b, beta, normalize), match(fb, fa, mask_b, mask_a, beta, normalize)


def transfer(
    fa: Tensor,
    fb: Tensor,
    values: Tensor,
    mask_a: Tensor | None,
    mask_b: Tensor | None,
    beta: Tensor,
    normalize: bool = True,
) -> Tensor:
    """out[b,v,i] = sum_j p_ij values[b,v,j] with the p of match; values of excluded targets are never read."""
    acc = accumulate_dtype(torch.promote_types(fa.dtype, values.dtype))
    a, b, v = fa.to(acc), fb.to(acc), values.to(acc)
    allowed = torch.ones((), dtype=torch.bool, device=fa.device)
    log_weight = torch.zeros((), dtype=acc, device=fa.device)
    if mask_b is not None:
        chosen = (mask_b > 0).unsqueeze(1)
        b, v = torch.where(chosen, b, 0.0), torch.where(chosen, v, 0.0)
        weights = mask_weights(mask_b, torch.float64 if mask_b.dtype == torch.float64 else acc).flatten(1).unsqueeze(1)
        allowed = weights > 0
        log_weight = torch.where(allowed, weights, 1.0).log().to(acc)
    if mask_a is not None:
        a = torch.where(mask_a.unsqueeze(1) > 0, a, 0.0)
        allowed = allowed & (mask_a.flatten(1).unsqueeze(2) > 0)
    scores = correlation(a, b, normalize=normalize).flatten(3).flatten(1, 2)  # (B, Na, Nb)
    logits = beta.to(acc).reshape(-1, 1, 1) * scores + log_weight
    allowed = allowed.expand_as(logits)
    row_ok = allowed.any(-1, keepdim=True)
    p = torch.where(allowed, torch.where(allowed | ~row_ok, logits, -torch.inf).softmax(-1), 0.0)
    out = torch.where(row_ok, p @ v.flatten(2).transpose(1, 2), 0.0)  # (B, Na, V)
    return out.transpose(1, 2).unflatten(2, fa.shape[2:]).to(values.dtype)


def warp(x: Tensor, flow: Tensor, mode: str = "bilinear", padding: str = "zeros") -> tuple[Tensor, Tensor]:
    """(out, valid): out[b,c,i,j] = x[b,c] at (j + flow_x, i + flow_y); valid: that point lies in the image."""
    batch, channels, height, width = x.shape
    ho, wo = flow.shape[2:]
    acc = accumulate_dtype(x.dtype)
    flow = flow.to(acc)
    finite = torch.isfinite(flow).all(1)
    at = pixel_grid(ho, wo, flow) + torch.where(finite.unsqueeze(1), flow, 0.0)
    px, py = at[:, 0], at[:, 1]
    valid = finite & (px >= 0) & (px <= width - 1) & (py >= 0) & (py <= height - 1)
    # Far outside nothing depends on the distance; the clamp keeps the integer conversion defined.
    px, py = px.clamp(-4, width + 3), py.clamp(-4, height + 3)
    if padding == "border":
        px, py = px.clamp(0, width - 1), py.clamp(0, height - 1)
    values = x.to(acc).flatten(2)

    def tap(ix: Tensor, iy: Tensor) -> Tensor:
        if padding == "border":
            ix, iy = ix.clamp(0, width - 1), iy.clamp(0, height - 1)
        inside = finite & (ix >= 0) & (ix <= width - 1) & (iy >= 0) & (iy <= height - 1)
        flat = torch.where(inside, iy * width + ix, 0.0).long().reshape(batch, 1, ho * wo)
        picked = values.gather(2, flat.expand(batch, channels, ho * wo)).reshape(batch, channels, ho, wo)
        return torch.where(inside.unsqueeze(1), picked, 0.0)

    if mode == "nearest":
        out = tap(px.detach().round(), py.detach().round())
    else:
        x0, y0 = px.detach().floor(), py.detach().floor()
        wx, wy = (px - x0).unsqueeze(1), (py - y0).unsqueeze(1)
        top = tap(x0, y0) * (1 - wx) + tap(x0 + 1, y0) * wx
        bottom = tap(x0, y0 + 1) * (1 - wx) + tap(x0 + 1, y0 + 1) * wx
        out = torch.where(finite.unsqueeze(1), top * (1 - wy) + bottom * wy, 0.0)
    return out.to(x.dtype), valid


def cycle_error(flow_ab: Tensor, flow_ba: Tensor) -> CycleError:
    """error(p) = |flow_ab(p) + flow_ba(p + flow_ab(p))|; 0 where p + flow_ab(p) is outside or a flow is not finite."""
    acc = accumulate_dtype(flow_ab.dtype)
    ab, ba = flow_ab.to(acc), flow_ba.to(acc)
    # Border padding: on the last column and row the tap beyond has weight 0 and enters no derivative either.
    sampled, inside = warp(ba.detach(), ab.detach(), padding="border")
    valid = inside & torch.isfinite(sampled).all(1)
    ab = torch.where(valid.unsqueeze(1), ab, torch.nan)  # reads nothing, so that nothing not finite gets a gradient
    total = torch.where(valid.unsqueeze(1), ab + warp(ba, ab, padding="border")[0], 0.0)
    moved = (total != 0).any(1)
    x, y = torch.where(moved.unsqueeze(1), total, 1.0).unbind(1)  # the length has no derivative at 0
    return CycleError(torch.where(moved, torch.hypot(x, y), 0.0), valid)


def local_correlation(
    fa: Tensor, fb: Tensor, radius: int, flow: Tensor | None = None, normalize: bool = False
) -> Tensor:
    """(B, (2r+1)^2, Ha, Wa): <fa(p), fb(p + flow(p) + d)>, d row by row from (-r, -r) to (r, r), 0 outside of fb."""
    batch, channels, ha, wa = fa.shape
    hb, wb = fb.shape[2:]
    acc = accumulate_dtype(fa.dtype)
    a, b = fa.to(acc), fb.to(acc)
    if normalize:
        a, b = F.normalize(a, dim=1, eps=NORM_EPS), F.normalize(b, dim=1, eps=NORM_EPS)
    targets = b.flatten(2)
    grid = pixel_grid(ha, wa, a).unsqueeze(0)

    def product(ix: Tensor, iy: Tensor) -> Tensor:
        """(B, Ha, Wa): the inner products with the pixels (ix, iy), 0 outside."""
        inside = ((ix >= 0) & (ix < wb) & (iy >= 0) & (iy < hb)).unsqueeze(1)
        x, y = (torch.where(inside, i.unsqueeze(1), 0.0).long() for i in (ix, iy))
        flat = (y * wb + x).flatten(2)
        picked = targets.gather(2, flat.expand(batch, channels, ha * wa)).reshape(a.shape)
        return (torch.where(inside, a, 0.0) * torch.where(inside, picked, 0.0)).sum(1)

    if flow is None:
        offsets = range(-radius, radius + 1)
        at = grid.expand(batch, 2, ha, wa)
        planes = [product(at[:, 0] + dx, at[:, 1] + dy) for dy in offsets for dx in offsets]
        return torch.stack(planes, 1).to(fa.dtype)
    # All points of a window have the same fractions, and interpolating features interpolates their products.
    flow = flow.to(acc)
    finite = torch.isfinite(flow).all(1)
    at = grid + torch.where(finite.unsqueeze(1), flow, 0.0)
    px, py = at[:, 0].clamp(-radius - 2, wb + radius + 1), at[:, 1].clamp(-radius - 2, hb + radius + 1)
    x0, y0 = px.detach().floor(), py.detach().floor()
    wx, wy = px - x0, py - y0
    offsets = range(-radius, radius + 2)
    x0 = torch.where(finite, x0, -radius - 2.0)
    rows = []
    for dy in offsets:
        products = [product(x0 + dx, y0 + dy) for dx in offsets]
        rows.append([left * (1 - wx) + right * wx for left, right in pairwise(products)])
    pairs = [pair for above, below in pairwise(rows) for pair in zip(above, below, strict=True)]
    planes = [top * (1 - wy) + bottom * wy for top, bottom in pairs]
    return torch.where(finite.unsqueeze(1), torch.stack(planes, 1), 0.0).to(fa.dtype)

"""The losses of joint training, one function each, after Chen et al., TPAMI 2020, unless said otherwise.

Conventions: flow (B, 2, H, W) in pixels, mask (B, H, W) in [0, 1], one grid for both; results are 0-dim, float32 for
half inputs. No annotation enters. Every loss is the mean over the batch of a value per image (pair, triplet), so that
it does not depend on how images are grouped into batches. Every function is finite, with finite gradients, for empty
and for full masks and for flow that leaves the image or is not finite: such pixels are left out of the image's average,
and an average over nothing is 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import cosegflow
from cosegflow.reference import accumulate_dtype

LOG_EPS = 1e-6
COUNT_EPS = 1e-5


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half to float32."""
    return tuple(t.to(accumulate_dtype(t.dtype)) for t in tensors)


def _average(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over the batch of each image's sum(weight values) / sum(weight), 0 where its weights vanish.

    Both (B, H, W). Values of weight 0 are selected away (0 * inf is NaN); where their own derivative is not finite the
    caller has to select before.
    """
    kept = torch.where(weight > 0, values, torch.zeros_like(values))
    sums, counts = (weight * kept).flatten(1).sum(1), weight.flatten(1).sum(1)
    return (sums / counts.clamp(min=COUNT_EPS)).mean()


def soft_inlier_score(features_a: Tensor, features_b: Tensor, flow_ab: Tensor) -> Tensor:
    """s_AB(p): how well position p of a fits the place in b where the matching puts it; (B, H, W) in [0, 1].

    The paper's soft inlier count, s_AB = sum_p M(p) sum_k m_k(p) S(k, p) (section 2, foreground-guided matching), with
    m_k the one-hot map of cell k of the photograph that is warped, warped by T, zero outside. Here that is b, and
    m_k(p) is the bilinear weight of k at T(p) = p + flow(p). The weights act linearly on b's features, so that the sum
    over k is one inner product: s_AB(p) = max(0, <f_A(p), f_B(p + flow(p))>), f_B sampled bilinearly, zero outside.
    S is the ReLU of the cosine; we take the ReLU after sampling, which equals the paper's wherever the four neighbours
    have non-negative similarity. The paper divides each m_k by its sum over p, and so counts a cell of b once however
    many p it serves; we leave that out: it needs the volume, and every p of the foreground should count once.

    Args:
        features_a: (B, C, Ha, Wa), unit length over C.
        features_b: (B, C, Hb, Wb), unit length over C.
        flow_ab: (B, 2, Ha, Wa). Gradients reach all three.
    """
    products = features_a * cosegflow.warp(features_b, flow_ab)
    return products.sum(1, dtype=accumulate_dtype(products.dtype)).relu()


def foreground_guided_matching(score: Tensor, mask: Tensor) -> Tensor:
    """L_match = -1/(B N) sum_k M(k) s(k), one direction; average it over both (section 2, foreground-guided matching).

    Args:
        score: (B, H, W), `soft_inlier_score`.
        mask: (B, H, W), the predicted foreground. Gradients reach both: the matching improves where the mask is, and
            the mask grows where the matching is good.
    """
    score, mask = _wide(score, mask)
    return -(mask * score).mean()


def cycle_consistency(flow_ab: Tensor, flow_ba: Tensor, weight: Tensor | None = None, unit: float = 1.0) -> Tensor:
    """L_cyc = 1/(B N) sum_p ||p - T_BA(T_AB(p))||^2, one direction (section 2, cycle consistency).

    For flows T_AB(p) = p + flow_ab(p), so the difference is flow_ab(p) + flow_ba(p + flow_ab(p)).

    Args:
        flow_ab: (B, 2, Ha, Wa).
        flow_ba: (B, 2, Hb, Wb).
        weight: (B, Ha, Wa) >= 0: the average is over the foreground; None: over all pixels that stay in b.
        unit: lengths are measured in this many pixels (the grid's longer side makes the loss independent of the grid).
    """
    error, valid = cosegflow.cycle_error(flow_ab, flow_ba)
    squared = (error / unit).square()
    inside = valid.to(squared.dtype)
    return _average(squared, inside if weight is None else inside * weight)


def transitivity(
    flow_ab: Tensor, flow_bc: Tensor, flow_ca: Tensor, weight: Tensor | None = None, unit: float = 1.0
) -> Tensor:
    """L_trans = 1/(B N) sum_p ||p - T_CA(T_BC(T_AB(p)))||^2, one order of a triplet (section 2, transitivity).

    Average it over the six orders ABC, BCA, CAB, ACB, CBA and BAC. With T(p) = p + flow(p), q = T_AB(p) and r = T_BC(q)
    the difference is flow_ab(p) + flow_bc(q) + flow_ca(r). Pixels that leave an image on the way do not count.

    Args:
        flow_ab: (B, 2, Ha, Wa).
        flow_bc: (B, 2, Hb, Wb).
        flow_ca: (B, 2, Hc, Wc). Gradients reach all three.
        weight: (B, Ha, Wa) >= 0: the average is over the foreground; None: over all pixels that stay.
        unit: as in `cycle_consistency`.
    """
    with torch.no_grad():
        onward, inside_b = cosegflow.warp(flow_bc, flow_ab, return_valid=True)
        back, inside_c = cosegflow.warp(flow_ca, flow_ab + onward, return_valid=True)
        valid = inside_b & inside_c & torch.isfinite(onward).all(1) & torch.isfinite(back).all(1)
    # A flow that is NaN reads nothing, so that nothing that is not finite gets a gradient of 0 * inf.
    to_b = torch.where(valid.unsqueeze(1), flow_ab, torch.nan)
    to_c = torch.where(valid.unsqueeze(1), flow_ab + cosegflow.warp(flow_bc, to_b), torch.nan)
    residual = torch.where(valid.unsqueeze(1), to_c + cosegflow.warp(flow_ca, to_c), 0.0)
    squared = (residual / unit).square().sum(1)
    inside = valid.to(squared.dtype)
    return _average(squared, inside if weight is None else inside * weight)


def task_consistency(mask_a: Tensor, mask_b: Tensor, flow_ab: Tensor, weight: Tensor | None = None) -> Tensor:
    """L_task = BCE(M_A, w(M_B)) + BCE(1 - M_A, 1 - w(M_B)), one direction (section 2, cross-network consistency).

    w warps b's mask into a by the matching; BCE(x, y) = -(y log x + (1 - y) log(1 - x)), averaged over the pixels that
    stay in b, logarithms of at least 1e-6. (The two terms are equal for this BCE; both are kept, as printed.) Gradients
    reach both masks and the flow.

    Args:
        mask_a: (B, Ha, Wa) in [0, 1].
        mask_b: (B, Hb, Wb) in [0, 1].
        flow_ab: (B, 2, Ha, Wa).
        weight: (B, Ha, Wa) >= 0, which pixels count; None: all.
    """
    mask_a, mask_b = _wide(mask_a, mask_b)
    warped, valid = cosegflow.warp(mask_b.unsqueeze(1), flow_ab, return_valid=True)
    target = warped.squeeze(1)

    def bce(x: Tensor, y: Tensor) -> Tensor:
        return -(y * x.clamp(min=LOG_EPS).log() + (1 - y) * (1 - x).clamp(min=LOG_EPS).log())

    values = bce(mask_a, target) + bce(1 - mask_a, 1 - target)
    inside = valid.to(values.dtype)
    return _average(values, inside if weight is None else inside * weight)


def perceptual_contrast(
    object_a: Tensor, object_b: Tensor, ground_a: Tensor, ground_b: Tensor, margin: float = 2.0
) -> Tensor:
    """L_contrast = d+ + d- (section 2, perceptual contrast).

    d+ = ||F(I_A^o) - F(I_B^o)||^2 / c,
    d- = max(0, m - (||F(I_A^o) - F(I_A^b)||^2 + ||F(I_B^o) - F(I_B^b)||^2) / (2 c)),
    averaged over the batch; I^o = M I and I^b = (1 - M) I (see `split_by_mask`), F a frozen ImageNet network.

    Args:
        object_a, object_b, ground_a, ground_b: (B, c), F of the four masked images.
        margin: m.
    """
    object_a, object_b, ground_a, ground_b = _wide(object_a, object_b, ground_a, ground_b)
    channels = object_a.shape[1]
    alike = (object_a - object_b).square().sum(1) / channels
    apart = ((object_a - ground_a).square().sum(1) + (object_b - ground_b).square().sum(1)) / (2 * channels)
    return (alike + (margin - apart).relu()).mean()


def split_by_mask(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """I^o = M I and I^b = (1 - M) I, with I counted from mid-grey, the zero of the network's input.

    Args:
        image: (B, 3, H, W) in [0, 1].
        mask: (B, H, W) in [0, 1].
    """
    grey = image - 0.5
    mask = mask.unsqueeze(1)
    return mask * grey + 0.5, (1 - mask) * grey + 0.5


def flow_smoothness(flow: Tensor, weight: Tensor | None = None, unit: float = 1.0) -> Tensor:
    """L_smooth: mean over the foreground of |dF/dx|_1 + |dF/dy|_1 (SFNet, CVPR 2019, equation of its smoothness term).

    Central differences, over inner pixels; zero for a translation.

    Args:
        flow: (B, 2, H, W).
        weight: (B, H, W) >= 0: the foreground; None: everywhere.
        unit: as in `cycle_consistency`.
    """
    if min(flow.shape[-2:]) < 3:
        return torch.where(torch.isfinite(flow), flow, 0.0).sum() * 0.0
    dx = (flow[..., 1:-1, 2:] - flow[..., 1:-1, :-2]) / 2
    dy = (flow[..., 2:, 1:-1] - flow[..., :-2, 1:-1]) / 2
    steps = torch.cat((dx, dy), 1)
    finite = torch.isfinite(steps).all(1)
    size = torch.where(finite.unsqueeze(1), steps, 0.0).abs().sum(1) / unit
    inner = finite.to(size.dtype)
    return _average(size, inner if weight is None else inner * weight[:, 1:-1, 1:-1])


def background_rejection(score: Tensor, mask: Tensor) -> Tensor:
    """Ours, against collapse: 1/(B N) sum_k (1 - M(k)) s(k); what is called background should not match.

    Without it, `foreground_guided_matching` is best served by features that are all alike. Arguments as there.
    """
    score, mask = _wide(score, mask)
    return ((1 - mask) * score).mean()


def foreground_price(score: Tensor, other_score: Tensor, mask: Tensor, fraction: float = 0.65) -> Tensor:
    """Ours, against collapse: 1/(B N) sum_k M(k) t, each foreground pixel costs t, so that M = 1 does not pay.

    t is `match_level`, between the badly and the well matched pixels of the pair, one per pair, without gradient.
    Together with `foreground_guided_matching` it is -mean(M (s - t)): the mask pays where the match is better than t.

    Args:
        score: (B, H, W), `soft_inlier_score` of the image that the mask is of.
        other_score: (B, H', W'), that of the other image; t is found over both.
        mask: (B, H, W).
        fraction: see `match_level`.
    """
    score, other_score, mask = _wide(score, other_score, mask)
    both = torch.cat((score.flatten(1), other_score.flatten(1)), 1).detach()
    return (mask * match_level(both, fraction).reshape(-1, 1, 1)).mean()


def equivariance(
    features_warped: Tensor, features: Tensor, flow: Tensor, beta: float, weight: Tensor | None = None
) -> Tensor:
    """Descriptors follow a known warp: -log of the probability of the true match, mean over positions that stay inside.

    The photograph is warped by a known random map, its own teacher; this is the paper's synthetic pre-training stage
    (section 2, stages), run beside the weak losses. No annotation: the map is ours, not the data's. With
    q = p + flow(p), -log p(q | p) = lse(p) - beta <f'(p), f(q)>, f sampled bilinearly and brought back to unit length.

    Args:
        features_warped: (B, C, H, W), unit length, of the warped photograph.
        features: (B, C, H', W'), unit length, of the photograph itself.
        flow: (B, 2, H, W), cells: what the warped photograph shows at p is at p + flow(p) in the photograph.
        beta: inverse temperature.
        weight: (B, H, W) >= 0; None: all.
    """
    lse = cosegflow.match(features_warped, features, beta=beta, normalize=False).lse
    target, valid = cosegflow.warp(features, flow, return_valid=True)
    products = features_warped * F.normalize(target, dim=1)
    surprise = lse - beta * products.sum(1, dtype=lse.dtype)
    inside = valid.to(surprise.dtype)
    return _average(surprise, inside if weight is None else inside * weight)


def known_flow(flow: Tensor, truth: Tensor, weight: Tensor, size: tuple[int, int], softness: float = 0.5) -> Tensor:
    """The flow that the matching gives between a photograph and its own known warp, against that warp.

    Mean over the weighted positions whose match stays inside of sqrt(|F - F*|^2 + e^2) - e, in cells; linear far away,
    so that a few gross errors do not rule. Self-supervision, as `equivariance`; it acts on what is read off in the end,
    the expected position.

    Args:
        flow: (B, 2, H, W), cells.
        truth: (B, 2, H, W), cells.
        weight: (B, H, W) >= 0.
        size: (H', W') of the grid that the flow points into.
        softness: e.
    """
    height, width = truth.shape[-2:]
    x = truth[:, 0] + torch.arange(width, dtype=truth.dtype, device=truth.device)
    y = truth[:, 1] + torch.arange(height, dtype=truth.dtype, device=truth.device)[:, None]
    inside = (x >= 0) & (x <= size[1] - 1) & (y >= 0) & (y <= size[0] - 1) & torch.isfinite(flow).all(1)
    difference = torch.where(inside.unsqueeze(1), flow - truth, 0.0)
    error = (difference.square().sum(1) + softness**2).sqrt() - softness
    return _average(error, weight * inside.to(weight.dtype))


def mask_supervision(logits: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of mask logits (B, H, W) against masks (B, H, W) in [0, 1], averaged over pixels and images.

    The masks are found without training, pasted, or, under exact supervision, annotated. weight (B,): of each image.
    """
    logits, truth = _wide(logits, truth)
    values = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").flatten(1).mean(1)
    return (values if weight is None else weight * values).mean()


def area_prior(mask: Tensor, least: float = 0.05, most: float = 0.6) -> Tensor:
    """Ours, against collapse: mean over images of (max(0, least - a) / least)^2 + (max(0, a - most) / (1 - most))^2.

    a is the mask's mean: an image shows an object that is neither nothing nor everything; 0 in between.
    """
    area = mask.flatten(1).mean(1, dtype=accumulate_dtype(mask.dtype))
    return (((least - area).relu() / least).square() + ((area - most).relu() / (1 - most)).square()).mean()


def mask_edges(mask: Tensor, image: Tensor, sharpness: float = 10.0) -> Tensor:
    """Ours: total variation of the mask, cheap along edges of the photograph.

    Mean over neighbouring pixels of |M(p) - M(q)| exp(-sharpness |I(p) - I(q)|), |.| of colours averaged over channels.

    Args:
        mask: (B, H, W).
        image: (B, 3, H, W) in [0, 1].
    """
    mask, image = _wide(mask, image)
    total = mask.sum() * 0.0
    for axis in (1, 2):
        size = mask.shape[axis]
        if size < 2:
            continue
        step = (mask.narrow(axis, 1, size - 1) - mask.narrow(axis, 0, size - 1)).abs()
        edge = (image.narrow(axis + 1, 1, size - 1) - image.narrow(axis + 1, 0, size - 1)).abs().mean(1)
        total = total + (step * (-sharpness * edge).exp()).mean()
    return total


def match_level(values: Tensor, fraction: float = 0.65) -> Tensor:
    """The level above which a match counts as good: a fraction of the way from the bad to the best; (B,).

    The bad are the 10 % quantile of each row of (B, N), the best its 98 % quantile. (Otsu's threshold was tried and is
    too low: most pixels are background, and the background of one photograph half matches that of another.)
    """
    ends = torch.quantile(values, torch.tensor((0.1, 0.98), dtype=values.dtype, device=values.device), dim=1)
    return ends[0] + fraction * (ends[1] - ends[0])

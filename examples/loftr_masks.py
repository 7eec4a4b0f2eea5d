"""Padding masks without -1e9: LoFTR's dual softmax over a batch of images of different sizes.

    python examples/loftr_masks.py

Images of different sizes are padded to one size, and masks say which positions exist. LoFTR (Sun et al. 2021, arXiv
2104.00680, section 3.3) fills the scores of the padding with -1e9 and takes the product of two softmaxes, over the
rows and over the columns of the matrix of all pairs. Here the masks go to `match_both` and `match`, which leave the
padding out of the work instead: no matrix is stored, an image of padding alone gets confidence 0, and the features in
the padding may be anything, NaN included. Matches, confidences and gradients are compared with the plain way.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import cosegflow


class CoarseMatches(NamedTuple):
    """Of every position of image 0."""

    target: Tensor  # (B, H0, W0) int64: the flat position in image 1 with the largest confidence; -1: none
    confidence: Tensor  # (B, H0, W0), differentiable; 0: none
    mutual: Tensor  # (B, H0, W0) bool: it is also the other way round


def dual_softmax(f0: Tensor, f1: Tensor, mask0: Tensor, mask1: Tensor, temperature: float = 0.1) -> CoarseMatches:
    """The largest conf_ij = softmax_j(s)_ij softmax_i(s)_ij of each i, s = <f0_i, f1_j> / (C temperature).

    Features (B, C, H, W), masks (B, H, W) bool. conf_ij = exp(2 s_ij - r_i - c_j) with the two log-sum-exps r and c.
    Along a row it is largest where exp(2 s_ij - c_j) is: the most probable target of a `match` with doubled beta and
    weights exp(-c_j). So one call gives r and c, and one in each direction the targets.
    """
    beta = 1 / (f0.shape[1] * temperature)
    ab, ba = cosegflow.match_both(f0, f1, mask0, mask1, beta=beta, normalize=False)
    with torch.no_grad():
        w0, w1 = weights(ab.lse, mask0), weights(ba.lse, mask1)
        to1 = cosegflow.match(f0, f1, w0, w1, beta=2 * beta, normalize=False, return_index=True)
        to0 = cosegflow.match(f1, f0, w1, w0, beta=2 * beta, normalize=False, return_index=True)
    index = to1.index.flatten(1)
    exists = index >= 0
    there = index.clamp(min=0)  # any position; what is read there is not used where none exists
    back = to0.index.flatten(1).gather(1, there)
    mutual = exists & (back == torch.arange(index.shape[1], device=index.device))

    # The confidence again, of the chosen pairs alone, so that its gradient reaches the features.
    chosen = f1.flatten(2).gather(2, there[:, None].expand(-1, f1.shape[1], -1))
    valid = exists[:, None]
    s = beta * (torch.where(valid, f0.flatten(2), 0.0) * torch.where(valid, chosen, 0.0)).sum(1)
    logarithm = 2 * s - ab.lse.flatten(1) - ba.lse.flatten(1).gather(1, there)
    confidence = torch.where(exists, torch.where(exists, logarithm, 0.0).exp(), 0.0)
    return CoarseMatches(*(t.reshape(mask0.shape) for t in (index, confidence, mutual)))


def weights(lse: Tensor, mask: Tensor) -> Tensor:
    """exp(-lse), up to one factor an image; 0 where the mask is. float64, since lse may span hundreds."""
    exists = mask & lse.isfinite()
    lse = torch.where(exists, lse.double(), torch.inf)
    return torch.where(exists, (lse.amin((1, 2), keepdim=True) - lse).exp(), 0.0)


def plain_confidence(f0: Tensor, f1: Tensor, mask0: Tensor, mask1: Tensor, temperature: float = 0.1) -> Tensor:
    """(B, N0, N1), the usual way."""
    scores = torch.einsum("bcn,bcm->bnm", f0.flatten(2), f1.flatten(2)) / (f0.shape[1] * temperature)
    scores = scores.masked_fill(~(mask0.flatten(1)[:, :, None] & mask1.flatten(1)[:, None]), -1e9)
    return scores.softmax(1) * scores.softmax(2)


def check(what: str, error: float, limit: float) -> None:
    """Prints one line; ends the program where the error is above the limit or NaN."""
    print(f"{what}: largest difference {error:.1e} (limit {limit:.0e})")
    if not error <= limit:
        raise SystemExit(f"loftr_masks: {what} differs by {error:.3g}, more than {limit:.3g}")


def main() -> None:
    """Two pairs of different sizes, and one whose second image is all padding."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    batch, channels, height, width = 3, 32, 14, 18
    f0, noise = (torch.randn(batch, channels, height, width, generator=generator) for _ in range(2))
    f1 = torch.roll(f0, (1, 2), (2, 3)) + 0.7 * noise  # position (x, y) of image 0 is (x + 2, y + 1) of image 1
    mask0, mask1 = (torch.zeros(batch, height, width, dtype=torch.bool) for _ in range(2))
    for mask, sizes in ((mask0, ((14, 12), (9, 18), (10, 10))), (mask1, ((11, 18), (14, 13), (0, 0)))):
        for i, (h, w) in enumerate(sizes):
            mask[i, :h, :w] = True
    f0, f1, mask0, mask1 = (t.to(device) for t in (f0, f1, mask0, mask1))
    nan0, nan1 = (torch.where(m[:, None], f, torch.nan).requires_grad_() for f, m in ((f0, mask0), (f1, mask1)))
    zero0, zero1 = (torch.where(m[:, None], f, 0.0).requires_grad_() for f, m in ((f0, mask0), (f1, mask1)))

    found = dual_softmax(nan0, nan1, mask0, mask1)  # NaN in the padding
    matrix = plain_confidence(zero0, zero1, mask0, mask1)  # 0 in the padding: NaN there would spoil the gradients
    exists = mask0 & mask1.flatten(1).any(1)[:, None, None]
    best, index = matrix.max(2)
    best, index = best.reshape(mask0.shape), index.reshape(mask0.shape)
    plain_mutual = (matrix == matrix.amax(2, keepdim=True)) & (matrix == matrix.amax(1, keepdim=True))
    plain_mutual = plain_mutual.any(2).reshape(mask0.shape) & exists
    check("confidence of the best target", (found.confidence - best)[exists].abs().max().item(), 1e-4)
    for what, same in (
        ("best targets", torch.equal(found.target[exists], index[exists])),
        ("mutual nearest neighbours", torch.equal(found.mutual, plain_mutual)),
    ):
        if not same:
            raise SystemExit(f"loftr_masks: the {what} are not those of the plain way")
    print(f"best targets: equal; mutual nearest neighbours: equal, {int(found.mutual.sum())} of {int(exists.sum())}")
    grads = torch.autograd.grad(found.confidence.square().sum(), (nan0, nan1))
    plain = torch.autograd.grad(best[exists].square().sum(), (zero0, zero1))
    check("gradients", max((g - p).abs().max().item() for g, p in zip(grads, plain, strict=True)), 1e-4)

    nothing = found.confidence[2].abs().max().item() + (found.target[2] + 1).abs().max().item()
    print(f"an image of padding alone: confidence {found.confidence[2].max().item():g} here, "
          f"{best[2].max().item():.1e} with -1e9")  # fmt: skip
    check("confidence 0 and target -1 where all is masked", nothing, 0.0)


if __name__ == "__main__":
    main()

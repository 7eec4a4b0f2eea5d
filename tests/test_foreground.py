"""Foreground without training: Fisher's discriminant, the scale of the cues, and an object that is found."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("lightning", reason="the joint extra is not installed")

from cosegflow.joint.foreground import (
    ALONG_FLOW,
    SHARPNESS,
    SHRINKAGE,
    Foreground,
    common_foreground,
    discriminant,
    scores_along,
)
from cosegflow.joint.standardise import standardise

pytestmark = pytest.mark.usefixtures("one_thread")

Pair = tuple[Tensor, Tensor]


def fisher(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The projections (N,) of x (N, C) by Fisher's formula, sample by sample, in float64.

    With weights between 0 and 1 each sample has a mean of its own between those of the classes.
    """
    one = sum(w * v for w, v in zip(weight, x, strict=True)) / weight.sum()
    zero = sum((1 - w) * v for w, v in zip(weight, x, strict=True)) / (1 - weight).sum()
    covariance = np.zeros((x.shape[1], x.shape[1]))
    for w, v in zip(weight, x, strict=True):
        off = v - (w * one + (1 - w) * zero)
        covariance += np.outer(off, off) / len(x)
    covariance += np.eye(len(covariance)) * (SHRINKAGE * np.trace(covariance) / len(covariance) + 1e-8)
    return x @ (np.linalg.inv(covariance) @ (one - zero))


@pytest.mark.parametrize("soft", [False, True])
def test_the_discriminant_is_fishers(soft: bool):
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64)
    b = torch.randn(2, 5, 7, 3, generator=generator, dtype=torch.float64)
    mix = torch.randn(5, 5, generator=generator, dtype=torch.float64)  # correlated channels
    a, b = (torch.einsum("cd,bdhw->bchw", mix, x) for x in (a, b))
    weights = [torch.rand(2, *x.shape[-2:], generator=generator, dtype=torch.float64) for x in (a, b)]
    if not soft:
        weights = [(w > 0.6).double() for w in weights]
    found = discriminant(a, b, weights[0], weights[1])
    assert found[0].shape == (2, 4, 6) and found[1].shape == (2, 7, 3)
    narrow = discriminant(a.float(), b.float(), weights[0].float(), weights[1].float())
    for i in range(2):
        x = torch.cat((a[i].flatten(1), b[i].flatten(1)), 1).T.numpy()
        expected = fisher(x, torch.cat((weights[0][i].flatten(), weights[1][i].flatten())).numpy())
        got = torch.cat((found[0][i].flatten(), found[1][i].flatten())).numpy()
        np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
        got = torch.cat((narrow[0][i].flatten(), narrow[1][i].flatten())).numpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_discriminant_sees_through_correlated_channels():
    """Classes that differ along a direction of small variance: the channel that differs tells them worse by itself."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(1, 20, 20)
    weight[:, 5:15, 5:15] = 1.0
    common = torch.randn(1, 20, 20, generator=generator)
    noise = torch.randn(1, 2, 20, 20, generator=generator) * 0.1
    x = torch.stack((common + weight, common), 1) + noise  # the difference of the channels is the class
    projected, _ = discriminant(x, x, weight, weight)

    def ranked(values: Tensor) -> float:
        """The share of pairs of an inner and an outer position in the right order."""
        inside = values[weight > 0][:, None] > values[weight == 0]
        return float(inside.float().mean())

    assert ranked(projected) > 0.98 and ranked(x[:, 0]) < 0.85


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_discriminant_of_one_class_is_finite(value: float):
    a, b = torch.randn(1, 6, 5, 5), torch.randn(1, 6, 4, 4)
    found = discriminant(a, b, torch.full((1, 5, 5), value), torch.full((1, 4, 4), value))
    assert all(bool(torch.isfinite(x).all()) for x in found)
    same = torch.ones(1, 6, 5, 5)
    assert bool(torch.isfinite(discriminant(same, same, torch.rand(1, 5, 5), torch.rand(1, 5, 5))[0]).all())


def test_standardise():
    a, b = torch.randn(2, 3, 5) * 4 + 7, torch.randn(2, 6, 2) - 3
    found = standardise(a, b)
    for i in range(2):
        both = torch.cat((found[0][i].flatten(), found[1][i].flatten()))
        assert abs(float(both.mean())) <= 1e-5 and abs(float(both.std()) - 1) <= 1e-5
    assert float(((a[0] - a[0, 0, 0]) / (found[0][0] - found[0][0, 0, 0])).nanmean()) > 0  # the order is kept
    flat = standardise(torch.full((1, 2, 2), 5.0), torch.full((1, 3, 3), 5.0))
    assert float(flat[0].abs().max()) == 0 and float(flat[1].abs().max()) == 0


SIZES = ((24, 32), (28, 20))
BOXES = ((6, 18, 8, 22), (4, 16, 5, 17))


def scene(count: int = 1, seed: int = 0, factor: int = 2) -> tuple[Pair, Pair, Pair, tuple[Tensor, Tensor]]:
    """semantic, fine, similarity, and the true masks of pairs that show an object of features of its own.

    The semantic features, `factor` times as coarse, are larger on the object; the grounds differ from each other.
    """
    generator = torch.Generator().manual_seed(seed)

    def unit(channels: int) -> Tensor:
        return F.normalize(torch.randn(count, channels, 1, 1, generator=generator), dim=1)

    what, how = unit(16), unit(12)
    semantic, fine, similarity, masks = [], [], [], []
    for (height, width), (top, bottom, left, right) in zip(SIZES, BOXES, strict=True):
        mask = torch.zeros(count, 1, height, width)
        mask[:, :, top:bottom, left:right] = 1.0
        coarse = F.avg_pool2d(mask, factor) if factor > 1 else mask
        noise = torch.randn(count, 16, *coarse.shape[-2:], generator=generator)
        semantic.append(coarse * what * 6 + (1 - coarse) * unit(16) * 2 + 0.3 * noise)
        noise = torch.randn(count, 12, height, width, generator=generator)
        fine.append(mask * how + (1 - mask) * unit(12) + 0.2 * noise)
        similarity.append(0.5 + 0.3 * mask[:, 0] + 0.1 * torch.randn(count, height, width, generator=generator))
        masks.append(mask[:, 0] > 0)
    return (semantic[0], semantic[1]), (fine[0], fine[1]), (similarity[0], similarity[1]), (masks[0], masks[1])


def overlap(found: Foreground, mask: Tensor) -> Tensor:
    """IoU (B,)."""
    seen = found.soft > 0.5
    return (seen & mask).flatten(1).sum(1) / (seen | mask).flatten(1).sum(1)


@pytest.mark.parametrize("matched", [0.0, 1.0, 3.0])
def test_the_common_object_is_found(matched: float):
    """With evidence that says nothing, as usual, and with much of it."""
    semantic, fine, similarity, masks = scene(4)
    found = common_foreground(semantic, fine, (matched * similarity[0], matched * similarity[1]), ALONG_FLOW)
    for side, mask, size in zip(found, masks, SIZES, strict=True):
        assert side.cues.shape == (4, 3, *size) and side.soft.shape == (4, *size)
        assert float(side.soft.min()) > 0 and float(side.soft.max()) < 1
        assert float(overlap(side, mask).min()) > 0.8


def test_the_matching_is_evidence_where_it_stands_out():
    """Semantic features that say nothing: the evidence tells the object, but only where its best is far from usual."""
    semantic, fine, similarity, masks = scene(4)
    blind = torch.randn_like(semantic[0]), torch.randn_like(semantic[1])

    def overlaps(evidence: Pair) -> Tensor:
        found = common_foreground(blind, fine, evidence, ALONG_FLOW)
        return torch.cat([overlap(side, mask) for side, mask in zip(found, masks, strict=True)])

    evidence = [s + 0.7 * m for s, m in zip(similarity, masks, strict=True)]
    assert float(overlaps((evidence[0], evidence[1])).min()) > 0.8
    assert float(overlaps((0.1 * evidence[0], 0.1 * evidence[1])).mean()) < 0.5


def test_scores_along_a_flow():
    """Cosines of what a shows and of what b shows where the flow leads, after the pair's mean is taken off."""
    a, b = torch.randn(2, 5, 6, 7) + 2, torch.randn(2, 5, 4, 9) - 1
    there, back = torch.zeros(2, 2, 6, 7), torch.zeros(2, 2, 4, 9)
    there[:, 0, 2, 3], there[:, 1, 2, 3] = 4.0, -1.0  # (x 3, y 2) to (7, 1)
    back[:, 0, 1, 7], back[:, 1, 1, 7] = -4.0, 1.0
    score, other = scores_along(a, b, there, back)
    assert score.shape == (2, 6, 7) and other.shape == (2, 4, 9) and score.dtype == torch.float32
    mean = (a.mean((2, 3)) + b.mean((2, 3))) / 2
    expected = F.cosine_similarity(a[:, :, 2, 3] - mean, b[:, :, 1, 7] - mean)
    torch.testing.assert_close(score[:, 2, 3], expected)
    torch.testing.assert_close(other[:, 1, 7], expected)
    same = scores_along(a, a, torch.zeros(2, 2, 6, 7), torch.zeros(2, 2, 6, 7))[0]
    torch.testing.assert_close(same, torch.ones_like(same))
    finer = scores_along(a, a, torch.zeros(2, 2, 12, 14), torch.zeros(2, 2, 6, 7))
    assert finer[0].shape == (2, 12, 14) and finer[1].shape == (2, 6, 7)
    a.requires_grad_()
    assert not scores_along(a, b, there, back)[0].requires_grad


def test_cues_are_standardised_over_the_pair():
    """On grids that are all alike exactly, from a coarser grid energy and prototype about.

    The discriminant is 0 where the foreground begins.
    """
    for factor in (1, 2):
        semantic, fine, similarity, masks = scene(2, factor=factor)
        found = common_foreground(semantic, fine, similarity, ALONG_FLOW)
        both = torch.cat([side.cues.flatten(2) for side in found], 2)
        tolerance = 1e-4 if factor == 1 else 0.15
        assert float(both.mean(2)[:, :2].abs().max()) <= tolerance
        assert float((both.std(2)[:, :2] - 1).abs().max()) <= tolerance
        assert float((both.std(2)[:, 2] - 1).abs().max()) <= 1e-4
        for side, mask in zip(found, masks, strict=True):
            torch.testing.assert_close(side.soft, torch.sigmoid(SHARPNESS * side.cues[:, 2]))
            assert float(side.cues[:, 2][mask].mean()) > 0 > float(side.cues[:, 2][~mask].mean())


def test_grids_of_the_matching_may_differ():
    """Stride 4: the similarity is twice as fine as the cues."""
    semantic, fine, similarity, masks = scene(2)
    grown = [F.interpolate(s[:, None], scale_factor=2.0, mode="nearest")[:, 0] for s in similarity]
    found = common_foreground(semantic, fine, (grown[0], grown[1]), ALONG_FLOW)
    assert all(float(overlap(side, mask).min()) > 0.8 for side, mask in zip(found, masks, strict=True))


def test_a_pair_alone_gives_what_it_gives_in_a_batch():
    semantic, fine, similarity, _ = scene(3)
    together = common_foreground(semantic, fine, similarity, ALONG_FLOW)
    for i in range(3):

        def one(pair: Pair, i: int = i) -> Pair:
            return pair[0][i : i + 1], pair[1][i : i + 1]

        alone = common_foreground(one(semantic), one(fine), one(similarity), ALONG_FLOW)
        for side, single in zip(together, alone, strict=True):
            torch.testing.assert_close(side.cues[i : i + 1], single.cues, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(side.soft[i : i + 1], single.soft, rtol=1e-4, atol=1e-4)


def test_exchanging_the_photographs_exchanges_the_cues():
    semantic, fine, similarity, _ = scene(2)
    found = common_foreground(semantic, fine, similarity, ALONG_FLOW)
    swapped = common_foreground(semantic[::-1], fine[::-1], similarity[::-1], ALONG_FLOW)
    for side, other in zip(found, swapped[::-1], strict=True):
        torch.testing.assert_close(side.cues, other.cues, rtol=1e-3, atol=1e-3)


def test_no_gradient():
    semantic, fine, similarity, _ = scene(1)
    for pair in (semantic, fine, similarity):
        for x in pair:
            x.requires_grad_()
    for side in common_foreground(semantic, fine, similarity, ALONG_FLOW):
        assert not side.cues.requires_grad and not side.soft.requires_grad


def test_flat_photographs_stay_finite():
    """Photographs of one colour, and a grid of one cell for the semantic features."""
    semantic = torch.ones(1, 4, 1, 1), torch.ones(1, 4, 1, 1)
    fine = torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    flat = torch.ones(1, 2, 2), torch.ones(1, 2, 2)
    for side in common_foreground(semantic, fine, flat, ALONG_FLOW):
        assert bool(torch.isfinite(side.cues).all()) and bool(torch.isfinite(side.soft).all())


def test_autocast_finds_the_same():
    semantic, fine, similarity, masks = scene(4)
    with torch.autocast("cpu", torch.bfloat16):
        found = common_foreground(semantic, fine, similarity, ALONG_FLOW)
    for side, expected, mask in zip(
        found, common_foreground(semantic, fine, similarity, ALONG_FLOW), masks, strict=True
    ):
        assert side.cues.dtype == side.soft.dtype == torch.float32
        torch.testing.assert_close(side.cues, expected.cues, rtol=0, atol=0.05)
        assert float(overlap(side, mask).min()) > 0.8


def test_a_batch_on_two_threads():
    """torch's batched LU fails there, so the discriminant must not use it."""
    torch.set_num_threads(2)  # the fixture sets back what it was
    a, b = torch.rand(4, 24, 8, 8), torch.rand(4, 24, 8, 8)
    weights = torch.rand(4, 8, 8), torch.rand(4, 8, 8)
    found = discriminant(a, b, *weights)
    for i in range(4):
        alone = discriminant(a[i : i + 1], b[i : i + 1], weights[0][i : i + 1], weights[1][i : i + 1])
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one[i], other[0], rtol=1e-3, atol=1e-4)

"""The losses: values computed by hand on tiny inputs, finite gradients in degenerate cases, the right direction."""

import math

import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")

from cosegflow.joint import losses


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=1)


def shift(x: float, y: float, height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.tensor((float(x), float(y))).reshape(1, 2, 1, 1).expand(batch, 2, height, width).clone()


def test_soft_inlier_score_is_the_papers_double_sum():
    """sum_(i,j) m_k(i,j) S(k,i,j), with m_k the bilinear weights at k + flow(k), written out as loops."""
    height, width = 3, 4
    fa, fb = unit(1, 5, height, width, seed=1).abs(), unit(1, 5, height, width, seed=2).abs()
    flow = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(3))
    expected = torch.zeros(height, width)
    for y in range(height):
        for x in range(width):
            px, py = x + float(flow[0, 0, y, x]), y + float(flow[0, 1, y, x])
            for j in range(height):
                for i in range(width):
                    weight = max(0.0, 1 - abs(px - i)) * max(0.0, 1 - abs(py - j))
                    expected[y, x] += weight * float((fa[0, :, y, x] * fb[0, :, j, i]).sum().relu())
    torch.testing.assert_close(losses.soft_inlier_score(fa, fb, flow)[0], expected, atol=1e-5, rtol=1e-5)


def test_foreground_guided_matching_by_hand():
    score = torch.tensor([[[0.5, 1.0], [0.0, 0.2]]])
    mask = torch.tensor([[[1.0, 0.5], [1.0, 0.0]]])
    assert float(losses.foreground_guided_matching(score, mask)) == pytest.approx(-(0.5 + 0.5) / 4)


def test_foreground_guided_matching_improves_with_the_flow():
    features = unit(1, 32, 6, 6)
    mask = torch.ones(1, 6, 6)
    right = losses.soft_inlier_score(features, features, shift(0, 0, 6, 6))
    wrong = losses.soft_inlier_score(features, features, shift(1, 0, 6, 6))
    assert losses.foreground_guided_matching(right, mask) < losses.foreground_guided_matching(wrong, mask)


def test_cycle_by_hand_and_over_the_foreground():
    ab, ba = shift(1, 0, 2, 3), shift(-1, 2, 2, 3)
    # the last column leaves b; everywhere else the residual is (0, 2)
    assert float(losses.cycle_consistency(ab, ba)) == pytest.approx(4.0)
    assert float(losses.cycle_consistency(ab, ba, unit=2.0)) == pytest.approx(1.0)
    ba[0, 1, 0, 1] = 0.0
    weight = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    assert float(losses.cycle_consistency(ab, ba, weight)) == pytest.approx(2.0)
    assert float(losses.cycle_consistency(ab, -ab)) == 0.0


def test_transitivity_by_hand():
    ab, bc, ca = shift(1, 0, 2, 4), shift(0, 1, 2, 4), shift(-1, 1, 2, 4)
    # p + (1, 0) + (0, 1) stays for the first three columns of the first row; the residual is (0, 2)
    assert float(losses.transitivity(ab, bc, ca)) == pytest.approx(4.0)
    assert float(losses.transitivity(ab, bc, ca, unit=2.0)) == pytest.approx(1.0)
    closing = shift(-1, -1, 2, 4)
    assert float(losses.transitivity(ab, bc, closing)) == 0.0
    closing[0, 0, 1, 1] += 3.0  # where the first pixel arrives in c
    assert float(losses.transitivity(ab, bc, closing)) == pytest.approx(9.0 / 3)
    weight = torch.zeros(1, 2, 4)
    weight[0, 0, 0], weight[0, 0, 2] = 1.0, 0.5
    assert float(losses.transitivity(ab, bc, closing, weight)) == pytest.approx(9.0 / 1.5)
    assert float(losses.transitivity(ab, bc, closing, torch.zeros(1, 2, 4))) == 0.0


def test_transitivity_of_affine_maps_and_different_grids():
    """T_CA is the inverse of T_BC after T_AB, on grids of three sizes; the loss sees a flow that is changed."""
    generator = torch.Generator().manual_seed(0)

    def affine(size: tuple[int, int], matrix: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        ys, xs = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
        at = torch.stack((xs, ys)).float()
        return (torch.einsum("ij,jhw->ihw", matrix, at) + offset[:, None, None] - at).unsqueeze(0)

    ab = torch.eye(2) + 0.1 * torch.randn(2, 2, generator=generator), torch.tensor((1.0, 0.5))
    bc = torch.eye(2) + 0.1 * torch.randn(2, 2, generator=generator), torch.tensor((0.5, 1.0))
    back = torch.linalg.inv(bc[0] @ ab[0])
    flows = [
        affine((9, 11), *ab), affine((12, 10), *bc), affine((11, 13), back, -back @ (bc[0] @ ab[1] + bc[1])),
    ]  # fmt: skip
    assert float(losses.transitivity(*flows)) <= 1e-8
    flows[2] = flows[2].requires_grad_()
    value = losses.transitivity(flows[0], flows[1], flows[2] + 0.5)
    assert float(value.detach()) == pytest.approx(0.5, rel=1e-4)
    value.backward()
    assert flows[2].grad is not None and float(flows[2].grad.sum()) == pytest.approx(2.0, rel=1e-4)


def test_losses_are_means_over_images():
    """One process with a batch of two gives what two with one image each give on average."""
    generator = torch.Generator().manual_seed(1)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(2, *shape, generator=generator)

    size = (6, 7)
    fa, fb = unit(2, 8, *size, seed=1), unit(2, 8, *size, seed=2)
    flows = [(rand(2, *size) - 0.5) * scale for scale in (4.0, 3.0, 2.0)]
    mask_a, mask_b, image = rand(*size), rand(*size), rand(3, *size)
    mask_a[0] = (mask_a[0] > 0.8).float()  # images whose weights differ much
    score = losses.soft_inlier_score(fa, fb, flows[0])
    pooled = [rand(5) for _ in range(4)]
    every = [
        (losses.foreground_guided_matching, (score, mask_a)),
        (losses.background_rejection, (score, mask_a)),
        (losses.foreground_price, (score, score.flip(0), mask_a)),
        (losses.cycle_consistency, (flows[0], flows[1], mask_a)),
        (losses.transitivity, (*flows, mask_a)),
        (losses.task_consistency, (mask_a, mask_b, flows[0], mask_b)),
        (losses.perceptual_contrast, pooled),
        (losses.flow_smoothness, (flows[0], mask_a)),
        (lambda *x: losses.equivariance(*x[:3], 20.0, x[3]), (fa, fb, flows[0], mask_a)),
        (lambda *x: losses.known_flow(*x, size), (flows[0], flows[1], mask_a)),
        (losses.area_prior, (mask_a,)),
        (losses.mask_edges, (mask_a, image)),
    ]
    for loss, arguments in every:
        together = loss(*arguments)
        alone = [loss(*(x[i : i + 1] for x in arguments)) for i in range(2)]
        torch.testing.assert_close(together, torch.stack(alone).mean(), msg=lambda m, f=loss: f"{f}: {m}")


def test_cycle_of_grids_of_different_sizes():
    value = losses.cycle_consistency(torch.zeros(2, 2, 4, 5), torch.zeros(2, 2, 7, 6))
    assert float(value) == 0.0


def test_task_consistency_by_hand_and_direction():
    mask_a, mask_b = torch.full((1, 1, 2), 0.8), torch.tensor([[[1.0, 0.0]]])
    zero = torch.zeros(1, 2, 1, 2)
    expected = 2 * (-(math.log(0.8)) - math.log(0.2)) / 2
    assert float(losses.task_consistency(mask_a, mask_b, zero)) == pytest.approx(expected, rel=1e-5)
    shifted = torch.tensor([[[0.0, 1.0, 1.0, 0.0]]])
    moved = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    right = losses.task_consistency(shifted, moved, shift(1, 0, 1, 4))
    wrong = losses.task_consistency(shifted, moved, shift(0, 0, 1, 4))
    assert right < wrong


def test_task_consistency_reaches_both_masks_and_the_flow():
    generator = torch.Generator().manual_seed(0)
    mask_a = torch.rand(1, 5, 5, generator=generator).requires_grad_()
    mask_b = torch.rand(1, 5, 5, generator=generator).requires_grad_()
    flow = (torch.rand(1, 2, 5, 5, generator=generator) * 0.5).requires_grad_()
    losses.task_consistency(mask_a, mask_b, flow).backward()
    for tensor in (mask_a, mask_b, flow):
        assert tensor.grad is not None
        assert bool(torch.isfinite(tensor.grad).all()) and float(tensor.grad.abs().sum()) > 0


def test_perceptual_contrast_by_hand():
    zero, one = torch.zeros(1, 4), torch.ones(1, 4)
    # d+ = |1 - 0|^2 / 4 * 4 = 1; apart = (|0 - 1|^2 + |1 - 1|^2) / (2 * 4) = 0.5; d- = 2 - 0.5
    assert float(losses.perceptual_contrast(zero, one, one, one)) == pytest.approx(1.0 + 1.5)
    assert float(losses.perceptual_contrast(zero, zero, 9 * one, 9 * one)) == 0.0
    alike = losses.perceptual_contrast(zero, zero, one, one)
    assert alike < losses.perceptual_contrast(zero, one, one, one)


def test_split_by_mask():
    image = torch.rand(1, 3, 4, 4)
    foreground, ground = losses.split_by_mask(image, torch.ones(1, 4, 4))
    torch.testing.assert_close(foreground, image)
    torch.testing.assert_close(ground, torch.full_like(image, 0.5))


def test_smoothness_by_hand():
    flow = torch.zeros(1, 2, 3, 3)
    flow[0, 0] = torch.arange(3.0) * 2  # dF/dx = 2
    flow[0, 1] = torch.arange(3.0)[:, None] * 3  # dF/dy = 3
    assert float(losses.flow_smoothness(flow)) == pytest.approx(5.0)
    assert float(losses.flow_smoothness(shift(3, 4, 5, 5))) == 0.0
    assert float(losses.flow_smoothness(shift(3, 4, 2, 1))) == 0.0


def test_equivariance_prefers_the_true_warp():
    features = unit(1, 32, 8, 8)
    moved = torch.roll(features, 1, dims=3)  # the moved image shows at x what the image shows at x - 1
    right = losses.equivariance(moved, features, shift(-1, 0, 8, 8), 20.0)
    assert right < losses.equivariance(moved, features, shift(1, 0, 8, 8), 20.0)
    assert float(right) >= 0


def test_terms_against_collapse():
    score = torch.tensor([[[0.9, 0.1, 0.1, 0.1]]])
    full, empty, true = torch.ones(1, 1, 4), torch.zeros(1, 1, 4), torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])

    def together(mask: torch.Tensor) -> float:
        matching = losses.foreground_guided_matching(score, mask)
        return float(matching + losses.foreground_price(score, score, mask))

    assert together(true) < together(empty) and together(true) < together(full)
    assert float(losses.foreground_guided_matching(score, full)) < float(losses.foreground_guided_matching(score, true))
    assert float(losses.background_rejection(score, full)) == 0.0
    assert float(losses.background_rejection(score, empty)) == pytest.approx(0.3)
    assert float(losses.area_prior(torch.full((2, 4, 4), 0.3))) == 0.0
    assert float(losses.area_prior(full)) == pytest.approx(1.0)
    assert float(losses.area_prior(empty)) == pytest.approx(1.0)


def test_mask_edges_are_cheap_along_edges_of_the_photograph():
    image = torch.zeros(1, 3, 4, 4)
    image[..., 2:] = 1.0
    along, across = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    along[..., 2:], across[:, 2:] = 1.0, 1.0
    assert float(losses.mask_edges(along, image)) < float(losses.mask_edges(across, image))
    assert float(losses.mask_edges(across, image)) == pytest.approx(4 / 12)
    assert float(losses.mask_edges(torch.ones(1, 1, 1), torch.zeros(1, 3, 1, 1))) == 0.0


def test_match_level():
    values = torch.cat((torch.zeros(1, 80), torch.ones(1, 20)), 1)
    assert float(losses.match_level(values, 0.65)) == pytest.approx(0.65)
    assert float(losses.match_level(torch.full((1, 9), 0.3))) == pytest.approx(0.3)


@pytest.mark.parametrize("mask_value", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("away", [0.0, 1.5, 1e4, 1e18, math.inf, math.nan])
def test_gradients_are_finite_in_the_degenerate_cases(mask_value: float, away: float):
    size = (5, 4)
    raw_a, raw_b = torch.randn(2, 6, *size, requires_grad=True), torch.randn(2, 6, *size, requires_grad=True)
    fa, fb = (torch.nn.functional.normalize(raw, dim=1) for raw in (raw_a, raw_b))
    flow = shift(away, -away, *size, 2).requires_grad_()
    mask_a = torch.full((2, *size), mask_value, requires_grad=True)
    mask_b = torch.full((2, *size), mask_value, requires_grad=True)
    image = torch.rand(2, 3, *size)
    still = torch.zeros(2, 2, *size, requires_grad=True)
    score = losses.soft_inlier_score(fa, fb, flow)
    values = [
        losses.foreground_guided_matching(score, mask_a),
        losses.background_rejection(score, mask_a),
        losses.foreground_price(score, score, mask_a),
        losses.cycle_consistency(flow, flow, mask_a),
        losses.cycle_consistency(flow, flow),
        losses.transitivity(flow, flow, flow, mask_a),
        losses.transitivity(still, flow, flow),
        losses.cycle_consistency(still, flow),
        losses.known_flow(flow, still, mask_a.detach(), size),
        losses.known_flow(still, flow.detach(), mask_a.detach(), size),
        losses.task_consistency(mask_a, mask_b, flow),
        losses.flow_smoothness(flow, mask_a),
        losses.equivariance(fa, fb, flow.detach(), 20.0, mask_a.detach()),
        losses.area_prior(mask_a),
        losses.mask_edges(mask_a, image),
    ]
    assert all(bool(torch.isfinite(value)) and value.dim() == 0 for value in values)
    torch.stack(values).sum().backward()
    for tensor in (raw_a, raw_b, flow, still, mask_a, mask_b):
        assert tensor.grad is None or bool(torch.isfinite(tensor.grad).all())


def test_half_gives_float32():
    half = torch.bfloat16
    features, mask = unit(1, 8, 4, 4).to(half), torch.rand(1, 4, 4).to(half)
    flow, image, pooled = torch.zeros(1, 2, 4, 4), torch.rand(1, 3, 4, 4).to(half), torch.rand(1, 5).to(half)
    score = losses.soft_inlier_score(features, features, flow)
    values = [
        losses.foreground_guided_matching(score, mask),
        losses.background_rejection(score, mask),
        losses.foreground_price(score, score, mask),
        losses.task_consistency(mask, mask, flow),
        losses.perceptual_contrast(pooled, pooled, pooled, pooled),
        losses.equivariance(features, features, flow, 20.0),
        losses.area_prior(mask),
        losses.mask_edges(mask, image),
    ]
    assert [v.dtype for v in (score, *values)] == [torch.float32] * 9


def test_contrast_gradient_reaches_the_mask_for_empty_and_full_masks():
    for start in (0.0, 1.0):
        mask = torch.full((2, 8, 8), start, requires_grad=True)
        image = torch.rand(2, 3, 8, 8)
        foreground, ground = losses.split_by_mask(image, mask)
        pooled = [part.mean((2, 3)) for part in (foreground, foreground.flip(0), ground, ground.flip(0))]
        losses.perceptual_contrast(*pooled).backward()
        assert mask.grad is not None and bool(torch.isfinite(mask.grad).all())

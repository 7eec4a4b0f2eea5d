"""The parametric matcher: transformations by hand, the correlation, the identity at the start, and that it learns."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="the joint extra is not installed")

from dataclasses import replace

import cosegflow
from cosegflow.joint import losses
from cosegflow.joint.matcher import gate_mask
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.module import JointModule, LossWeights, TrainConfig
from cosegflow.joint.parametric import ParametricMatcher, Regressor, correlation_volume
from cosegflow.joint.tps import IDENTITY, ThinPlate, apply_affine, grid_points, to_flow

PARAMETRIC = ModelConfig(backbone="tiny", image_size=64, matcher="parametric")


pytestmark = pytest.mark.usefixtures("one_thread")


def test_points_and_flow_by_hand():
    points = grid_points((2, 4), torch.zeros(()))
    assert points.tolist() == [[x, y] for y in (-0.5, 0.5) for x in (-0.75, -0.25, 0.25, 0.75)]
    zero = to_flow(points.unsqueeze(0), (2, 4), (2, 4))
    assert zero.shape == (1, 2, 2, 4) and float(zero.abs().max()) <= 1e-6
    # The same content at twice the resolution: x' = (x + 0.5) 2 - 0.5, as resize_flow has it.
    twice = to_flow(points.unsqueeze(0), (2, 4), (4, 8))
    expected = cosegflow.resize_flow(torch.zeros(1, 2, 2, 4), (2, 4), (4, 8), from_size_b=(2, 4))
    torch.testing.assert_close(twice, expected)


def test_affine_by_hand():
    parameters = torch.tensor([[2.0, 0.5, 0.1, -1.0, 3.0, 0.2]])
    moved = apply_affine(parameters, torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    torch.testing.assert_close(moved, torch.tensor([[[2 + 1 + 0.1, -1 + 6 + 0.2], [0.1, 0.2]]]))


def test_thin_plate_is_exact_at_its_control_points():
    plate = ThinPlate().eval()
    assert plate.parameters_count == 18
    targets = plate.identity() + 0.3 * torch.randn(2, 18)
    at_control = plate(targets, plate.control)
    torch.testing.assert_close(at_control, targets.unflatten(1, (2, 9)).transpose(1, 2), atol=2e-5, rtol=0)
    regular = plate.train()(targets, plate.control)
    assert float((regular - at_control).abs().max()) > 1e-3, "regularisation gives up exactness"


def test_thin_plate_is_the_spline_of_its_equations():
    """Against the linear system, solved here in float64: sum w = 0, sum w c = 0, T(c_i) + reg w_i = q_i."""
    plate = ThinPlate(3, regularisation=0.2)
    targets = plate.identity() + 0.3 * torch.randn(1, 18)
    control, q = plate.control.double(), targets.unflatten(1, (2, 9))[0].T.double()

    def radial(p: torch.Tensor) -> torch.Tensor:
        square = torch.cdist(p, control, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        return torch.where(square > 0, square * square.clamp(min=1e-300).log(), 0.0)

    plane = torch.cat((torch.ones(9, 1).double(), control), 1)
    for mode, regularisation in ((True, 0.2), (False, 0.0)):
        top = torch.cat((radial(control) + regularisation * torch.eye(9), plane), 1)
        system = torch.cat((top, torch.cat((plane.T, torch.zeros(3, 3)), 1)))
        solution = torch.linalg.solve(system, torch.cat((q, torch.zeros(3, 2).double())))
        points = torch.rand(20, 2).double() * 2 - 1
        expected = radial(points) @ solution[:9] + torch.cat((torch.ones(20, 1), points), 1) @ solution[9:]
        found = plate.train(mode)(targets, points.float())[0].double()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_thin_plate_of_an_affine_map_is_that_map():
    parameters = torch.tensor([[0.9, 0.2, 0.1, -0.1, 1.1, -0.2]])
    points = torch.rand(30, 2) * 2 - 1
    for mode in (True, False):
        plate = ThinPlate().train(mode)
        targets = apply_affine(parameters, plate.control).transpose(1, 2).flatten(1)
        torch.testing.assert_close(plate(targets, points), apply_affine(parameters, points), atol=1e-5, rtol=0)


def test_thin_plate_gradients_at_a_control_point():
    plate = ThinPlate()
    points = plate.control.clone().requires_grad_()
    targets = (plate.identity() + 0.1).unsqueeze(0).requires_grad_()
    plate(targets, points).square().sum().backward()
    for tensor in (points, targets):
        assert tensor.grad is not None and bool(torch.isfinite(tensor.grad).all())


def test_the_composition_is_spline_then_affine():
    matcher = ParametricMatcher(50.0).eval()
    affine = torch.tensor([[0.8, 0.1, 0.2, -0.1, 0.9, 0.0]])
    bend = matcher.plate.identity()[None] + 0.1 * torch.randn(1, 18)
    flow = matcher.flows(affine, bend, (5, 7), (6, 8))
    points = grid_points((5, 7), affine)
    expected = to_flow(apply_affine(affine, matcher.plate(bend, points)), (5, 7), (6, 8))
    torch.testing.assert_close(flow, expected)
    wrong = to_flow(matcher.plate(bend, apply_affine(affine, points)[0]), (5, 7), (6, 8))
    assert float((flow - wrong).abs().max()) > 1e-3


def test_half_precision_does_not_round_coordinates():
    matcher = ParametricMatcher(50.0).eval()
    affine, bend = torch.tensor([[1.01, 0.013, 0.2, -0.01, 0.97, 0.03]]), matcher.plate.identity()[None]
    plain = matcher.flows(affine, bend, (15, 15), (15, 15))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matcher.flows(affine, bend, (15, 15), (15, 15)), plain)
        assert Regressor(torch.tensor(IDENTITY))(torch.rand(1, 225, 15, 15)).dtype == torch.float32


def test_correlation_volume_by_loops():
    moving, fixed = torch.randn(1, 4, 2, 3), torch.randn(1, 4, 3, 2)
    weight_moving, weight_fixed = torch.rand(1, 2, 3), (torch.rand(1, 3, 2) > 0.3).float()
    found = correlation_volume(moving, fixed, weight_moving, weight_fixed)
    assert found.shape == (1, 6, 3, 2)
    a, b = F.normalize(moving, dim=1)[0], F.normalize(fixed, dim=1)[0]
    for y in range(3):
        for x in range(2):
            s = [
                max(0.0, float(a[:, k // 3, k % 3] @ b[:, y, x])) * float(weight_moving[0, k // 3, k % 3])
                for k in range(6)
            ]
            s = [v * float(weight_fixed[0, y, x]) for v in s]
            norm = (sum(v * v for v in s) + 1e-6) ** 0.5
            torch.testing.assert_close(found[0, :, y, x], torch.tensor([v / norm for v in s]))


def test_it_starts_at_the_identity():
    model = JointModel(PARAMETRIC)
    for mode in (True, False):
        last = model.train(mode)(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64), 1).rounds[-1]
        for flow in (last.ab.flow, last.ba.flow, last.ab.affine_flow):
            assert flow is not None and float(flow.detach().abs().max()) <= 1e-4


def test_it_takes_any_sizes_and_gates():
    model = JointModel(PARAMETRIC)
    output = model(torch.rand(2, 3, 48, 80), torch.rand(2, 3, 64, 32), 1)
    last = output.rounds[-1]
    assert last.ab.flow.shape == (2, 2, 6, 10) and last.ba.flow.shape == (2, 2, 8, 4)
    assert last.ab.confidence.shape == (2, 6, 10) and last.ab.similarity.shape == (2, 6, 10)
    assert float(last.ab.confidence.min()) >= 0 and float(last.ab.confidence.max()) <= 1
    # identity between frames of different shape: corners go to corners
    expected = cosegflow.resize_flow(torch.zeros(2, 2, 6, 10), (6, 10), (8, 4), from_size_b=(6, 10))
    torch.testing.assert_close(last.ab.flow, expected, atol=1e-4, rtol=0)


def test_gates_mask_the_correlation():
    """What the mask of b closes can change without changing the transformation; what it leaves open cannot."""
    model = JointModel(PARAMETRIC).eval()
    with torch.no_grad():
        model.matcher.affine.linear.weight.normal_(0, 0.05)
    pair = model.encode(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :4] = 1.0
    gate, everywhere = gate_mask(mask), gate_mask(torch.ones(1, 8, 8))
    changed = pair.features_b.clone()
    changed[..., 5:] = F.normalize(torch.randn(1, changed.shape[1], 8, 3), dim=1)
    free = model.match(pair)
    one = model.match(pair, everywhere, gate, free)[0].affine_flow
    other = model.match(pair._replace(features_b=changed), everywhere, gate, free)[0].affine_flow
    open_ = model.match(pair._replace(features_b=changed), everywhere, everywhere, free)[0].affine_flow
    assert one is not None and other is not None and open_ is not None
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    assert float((one - open_).detach().abs().max()) > 1e-4


def test_it_recovers_a_known_affine_map():
    """Trained on one pair and its known map, the way of the paper's synthetic stage."""
    torch.manual_seed(0)
    matcher = ParametricMatcher(50.0)
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(4, 24, 15, 15, generator=generator) - 0.5
    features = F.normalize(F.avg_pool2d(features, 3, 1, 1), dim=1)
    truth = torch.tensor(IDENTITY) + 0.2 * (torch.rand(4, 6, generator=generator) - 0.5)
    flow = matcher.flows(truth, None, (15, 15), (15, 15))
    seen = cosegflow.warp(features, flow, padding="border")  # what a shows, if b shows `features`
    volume = correlation_volume(features, seen)
    optimiser = torch.optim.Adam(matcher.affine.parameters(), 1e-3)
    errors = []
    for _ in range(50):
        found = matcher.flows(matcher.affine(volume), None, (15, 15), (15, 15))
        loss = (found - flow).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(float(loss.detach()) ** 0.5)
    assert errors[-1] <= 0.3 * errors[0], f"cells: {errors[0]:.2f} at first, {errors[-1]:.2f} at last"


def test_training_steps_move_both_stages():
    from test_joint import blobs

    from cosegflow.data.training import collate_training

    torch.manual_seed(0)
    weights = LossWeights(
        **{**dict.fromkeys(LossWeights.__dataclass_fields__, 0.0), "matching": 1.0, "known_flow": 1.0}
    )
    module = JointModule(PARAMETRIC, TrainConfig(weights=weights, contrast_size=32, task="match-only", rounds=0))
    batch = collate_training(blobs(2))
    optimiser = torch.optim.Adam(module.model.matcher.parameters(), 1e-4)
    seen = []
    for _ in range(8):
        loss = module.training_step(batch, 0)
        optimiser.zero_grad()
        loss.backward()
        grads = [p.grad for p in module.model.matcher.parameters()]
        assert all(g is not None and bool(torch.isfinite(g).all()) for g in grads)
        optimiser.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < seen[0]
    assert float(module.model.matcher.affine.linear.weight.abs().max()) > 0
    assert float(module.model.matcher.bend.linear.weight.abs().max()) > 0


def test_losses_of_a_parametric_matching_are_finite():
    model = JointModel(replace(PARAMETRIC, rounds=1))
    output = model(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    last = output.rounds[-1]
    score = losses.soft_inlier_score(output.features_a, output.features_b, last.ab.flow)
    value = losses.foreground_guided_matching(score, torch.ones_like(score)) + losses.cycle_consistency(
        last.ab.flow, last.ba.flow
    )
    value.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(bool(torch.isfinite(g).all()) for g in grads)

"""Known changes of a photograph: functions of (seed, number), within their ranges."""

import math

import pytest
import torch

from cosegflow.joint.self_supervision import random_colours, random_flow

pytestmark = pytest.mark.usefixtures("one_thread")

NUMBERS = torch.tensor([3, 4, 5])


def test_colours_are_a_function_of_seed_and_number():
    image = torch.rand(3, 3, 8, 6)
    found = random_colours(image, NUMBERS, seed=1)
    torch.manual_seed(7)
    assert torch.equal(random_colours(image[2:], torch.tensor([5]), seed=1)[0], found[2])
    assert torch.equal(random_colours(image.flip(0), NUMBERS.flip(0), seed=1).flip(0), found)
    assert not torch.equal(random_colours(image, NUMBERS, seed=2), found)
    same = random_colours(image[:1].expand(3, -1, -1, -1), NUMBERS, seed=1)
    assert not torch.equal(same[0], same[1]) and not torch.equal(same[1], same[2])


def test_colours_stay_in_range():
    """Contrast within 30 %, each channel's within 10 %, brightness within 0.1: an affine map of each channel."""
    numbers = torch.arange(300)
    grey = torch.full((300, 3, 1, 1), 0.5)
    image = torch.cat((grey, grey + 0.1), 3)
    dark, light = random_colours(image, numbers, seed=0).unbind(3)
    shift, gain = dark[..., 0] - 0.5, (light - dark)[..., 0] / 0.1
    assert float(shift.abs().max()) <= 0.1 + 1e-6 and float(shift.abs().max()) > 0.09
    assert float((shift - shift[:, :1]).abs().max()) <= 1e-6, "brightness is of all channels"
    assert float(gain.min()) >= 0.7 * 0.9 - 1e-5 and float(gain.max()) <= 1.3 * 1.1 + 1e-5
    assert float(gain.min()) < 0.72 and float(gain.max()) > 1.28
    tint = gain / gain.mean(1, keepdim=True)
    assert 0.05 < float((tint - 1).abs().max()) <= 0.2
    extreme = random_colours(torch.randint(0, 2, (300, 3, 2, 2)).float(), numbers, seed=0)
    assert float(extreme.min()) == 0 and float(extreme.max()) == 1


def test_strength_0_changes_nothing():
    image = torch.rand(3, 3, 8, 6)
    torch.testing.assert_close(random_colours(image, NUMBERS, seed=1, strength=0.0), image, rtol=0, atol=1e-6)
    whole, half = (random_colours(image * 0.2 + 0.4, NUMBERS, seed=1, strength=s) for s in (1.0, 0.5))
    assert float((half - image * 0.2 - 0.4).abs().max()) < float((whole - image * 0.2 - 0.4).abs().max())


@pytest.mark.parametrize("degrees", [0.0, 20.0, 180.0])
def test_rotation_is_bounded(degrees: float):
    """Without bends a warp is affine: rotation times a diagonal, so the first axis turns by the angle alone."""
    flow = random_flow(torch.arange(60), (16, 24), seed=0, bend=0.0, rotation=degrees)
    along = flow[:, :, 8, 13] - flow[:, :, 8, 12] + torch.tensor([1.0, 0.0])
    across = flow[:, :, 9, 12] - flow[:, :, 8, 12] + torch.tensor([0.0, 1.0])
    angles = torch.atan2(along[:, 1], along[:, 0]).abs() * 180 / math.pi
    assert float(angles.max()) <= degrees + 1e-2 and float(angles.max()) >= 0.8 * degrees
    assert float((along * across).sum(1).abs().max()) <= 1e-4
    for axis in (along, across):
        scale = axis.norm(dim=1)
        assert float(scale.min()) >= math.exp(-0.6) - 1e-3 and float(scale.max()) <= math.exp(0.6) + 1e-3

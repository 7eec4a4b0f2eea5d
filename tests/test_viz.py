"""Pictures."""

import numpy as np
import pytest
import torch

from cosegflow import viz


def test_wheel_and_flow_colours():
    assert viz.colour_wheel().shape == (55, 3)
    flow = torch.zeros(2, 1, 4)
    assert (viz.flow_to_colour(flow, 1.0) == 255).all()  # no motion is white
    flow[0, 0] = torch.tensor([1.0, 0.0, -1.0, 0.0])
    flow[1, 0] = torch.tensor([0.0, 1.0, 0.0, -1.0])
    colours = viz.flow_to_colour(flow, 1.0)[0].astype(int)
    assert len({tuple(c) for c in colours}) == 4
    assert colours[0, 0] > 240 and colours[0, 2] < 60  # Middlebury: to the right is red
    assert colours[2, 2] > 200 and colours[2, 0] < 60  # to the left is blue


def test_unknown_flow_is_black():
    flow = torch.zeros(2, 2, 2)
    flow[0, 0, 0] = torch.nan
    flow[1, 1, 1] = torch.inf
    picture = viz.flow_to_colour(flow)
    assert (picture[0, 0] == 0).all() and (picture[1, 1] == 0).all() and (picture[0, 1] == 255).all()


def test_overlay_keeps_the_object_and_greys_the_rest():
    image = torch.rand(3, 10, 12)
    mask = torch.zeros(10, 12)
    mask[3:7, 4:9] = 1
    picture = viz.overlay(image, mask)
    assert picture.shape == (10, 12, 3) and picture.dtype == np.uint8
    assert (picture[5, 6] == viz.to_pixels(image)[5, 6]).all()
    assert len(set(picture[0, 0].tolist())) == 1


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="flow"):
        viz.flow_to_colour(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="mask"):
        viz.overlay(torch.zeros(3, 4, 4), torch.zeros(4, 5))
    with pytest.raises(ValueError, match="image"):
        viz.to_pixels(torch.zeros(4, 4))


def test_pair_figure(tmp_path):
    pytest.importorskip("matplotlib", reason="the joint extra is not installed")
    panels = [(str(i), np.zeros((20, 30, 3), dtype=np.uint8)) for i in range(4)]
    viz.pair_figure(panels, tmp_path / "figure.png", columns=3)
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert viz.colour_map(torch.rand(4, 5)).shape == (4, 5, 3)

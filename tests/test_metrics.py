"""Metrics: hand-computed values."""

import pytest
import torch

pytest.importorskip("torchmetrics", reason="the joint extra is not installed")

from cosegflow.metrics import PCK, EndPointError, MaskIoU, box_length


def test_box_length():
    mask = torch.zeros(3, 6, 8, dtype=torch.bool)
    mask[0, 1:3, 2:7] = True
    mask[1, 4, 4] = True
    assert box_length(mask).tolist() == [5, 1, 0]


def test_pck_counts_the_boundary_and_averages_over_pairs():
    truth = torch.zeros(2, 2, 1, 4)
    flow = torch.zeros(2, 2, 1, 4)
    flow[0, 0, 0] = torch.tensor([0.0, 1.0, 2.0, 9.0])
    valid = torch.ones(2, 1, 4, dtype=torch.bool)
    metric = PCK((0.1, 0.2))
    metric.update(flow, truth, valid, torch.tensor([10.0, 10.0]))
    assert metric.compute().tolist() == pytest.approx([(0.5 + 1) / 2, (0.75 + 1) / 2])


def test_pairs_without_valid_pixels_do_not_count():
    metric, error = PCK((0.1,)), EndPointError()
    valid = torch.tensor([[[True]], [[False]]])
    flow = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(2, 2, 1, 1)
    metric.update(flow, torch.zeros(2, 2, 1, 1), valid, torch.tensor([10.0, 10.0]))
    error.update(flow, torch.zeros(2, 2, 1, 1), valid)
    assert float(metric.compute()) == 0.0
    assert float(error.compute()) == pytest.approx(5.0)
    empty = EndPointError()
    empty.update(flow[:1], flow[:1], torch.zeros(1, 1, 1, dtype=torch.bool))
    assert bool(torch.isnan(empty.compute()))


def test_nan_outside_the_valid_pixels_does_no_harm():
    flow = torch.zeros(1, 2, 1, 2)
    flow[..., 1] = torch.nan
    error = EndPointError()
    error.update(flow, torch.zeros(1, 2, 1, 2), torch.tensor([[[True, False]]]))
    assert float(error.compute()) == 0.0


def test_iou():
    metric = MaskIoU()
    metric.update(torch.tensor([[[1.0, 0.6, 0.4, 0.0]]]), torch.tensor([[[True, False, True, False]]]))
    assert float(metric.compute()) == pytest.approx(1 / 3)
    metric.update(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4, dtype=torch.bool))
    assert float(metric.compute()) == pytest.approx((1 / 3 + 1) / 2)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="flow"):
        EndPointError().update(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask"):
        MaskIoU().update(torch.zeros(1, 3, 3), torch.zeros(1, 3, 4, dtype=torch.bool))

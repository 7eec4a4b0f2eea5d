"""Metrics of the benchmarks: cases worked by hand, and the sample data against plain NumPy."""

import csv

import numpy as np
import pytest
import torch

pytest.importorskip("torchmetrics", reason="the joint extra is not installed")

from conftest import DATA
from PIL import Image

from cosegflow.metrics import (
    CategoryMeans,
    FlowAccuracy,
    KeypointPCK,
    LabelTransfer,
    PrecisionJaccard,
    keypoint_box_length,
    localisation_error,
    reference_length,
    rescale_keypoints,
    scale_flow,
    transfer_keypoints,
    valid_flow,
)

NAN = float("nan")


def points(*rows: tuple[float, float]) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.float32)


def mask(*rows: str) -> torch.Tensor:
    """One mask from rows of "0110"."""
    return torch.tensor([[[c == "1" for c in row] for row in rows]])


def test_keypoint_pck_per_image_per_point_and_per_category():
    metric = KeypointPCK((0.1, 0.2), ("bird", "car"))
    # errors 1, 2 and 0 with L = 10: limits 1 and 2; the last point is absent
    truth = points((0, 0), (10, 0), (0, 10), (NAN, NAN))
    metric.update(points((0, 1), (12, 0), (0, 10), (3, 3)), truth, torch.tensor([10.0]), "car")
    # error 5 with L = 20: limits 2 and 4
    metric.update(points((3, 4)), points((0, 0)), torch.tensor([20.0]), ["bird"])
    # no point at all: does not count
    metric.update(points((3, 4)), points((NAN, 0)), torch.tensor([20.0]), "bird")
    found = metric.compute()
    assert found.per_image.tolist() == pytest.approx([(2 / 3 + 0) / 2, (1 + 0) / 2])
    assert found.per_point.tolist() == pytest.approx([2 / 4, 3 / 4])
    assert found.per_image_by_category.tolist() == [[0, 0], pytest.approx([2 / 3, 1])]
    assert found.per_point_by_category.tolist() == [[0, 0], pytest.approx([2 / 3, 1])]
    assert found.pairs.tolist() == [1, 1] and found.points.tolist() == [1, 3]


def test_a_lost_keypoint_is_wrong_and_no_pair_is_nan():
    metric = KeypointPCK((0.5,))
    metric.update(points((NAN, NAN), (1, 1)), points((1, 1), (1, 1)), torch.tensor([10.0]))
    assert float(metric.compute().per_image) == 0.5
    empty = KeypointPCK((0.5,))
    empty.update(points((1, 1)), points((NAN, NAN)), torch.tensor([10.0]))
    assert bool(empty.compute().per_image.isnan()) and bool(empty.compute().per_point.isnan())


def test_reference_lengths():
    found = points((1, 2), (5, 12), (NAN, 99))
    box = torch.tensor([[2.0, 3, 9, 7]])
    assert keypoint_box_length(found).tolist() == [10]
    assert keypoint_box_length(points((NAN, NAN))).tolist() == [0]
    assert keypoint_box_length(torch.zeros(2, 0, 2)).tolist() == [0, 0]
    lengths = [float(reference_length(name, found, (30, 40), box)) for name in ("bbox", "bbox-kp", "img", "scnet")]
    assert lengths == [7, 10, 40, 224]
    with pytest.raises(ValueError, match="annotated box"):
        reference_length("bbox", found, (30, 40), None)
    with pytest.raises(ValueError, match="bbox-kp, img, scnet"):
        reference_length("side", found, (30, 40), box)  # type: ignore[arg-type]
    # 200 x 100 pixels, stretched to 224 x 224
    torch.testing.assert_close(rescale_keypoints(points((50, 50)), (100, 200)), points((56, 112)))
    torch.testing.assert_close(rescale_keypoints(torch.tensor([[[50, 50]]]), (100, 200)), points((56, 112)))


def test_transfer_of_keypoints():
    """flow(x, y) = (x / 2, 1) on 4 rows of 5 columns; a point outside moves as the nearest pixel does."""
    flow = torch.stack((torch.arange(5.0).expand(4, 5) / 2, torch.ones(4, 5)))[None]
    found = transfer_keypoints(flow, points((1.5, 2), (-2, 1), (7, 9), (NAN, 0)))
    torch.testing.assert_close(found, points((2.25, 3), (-2, 2), (9, 10), (NAN, NAN)), equal_nan=True)
    assert transfer_keypoints(flow, torch.zeros(1, 0, 2)).shape == (1, 0, 2)


def test_flow_accuracy_scales_with_the_other_image():
    """Errors 0, 1, 1.5 and one unknown pixel; max(20, 10) * 0.05 = 1, and max(4, 40) * 0.05 = 2 the other way."""
    metric = FlowAccuracy((0.05,), ("FG3DCar", "JODS"))
    truth = torch.zeros(1, 2, 1, 4)
    truth[0, 1, 0, 3] = -1e10
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0, 0] = torch.tensor([0.0, 1.0, 1.5, 0.0])
    assert valid_flow(truth).tolist() == [[[True, True, True, False]]]
    metric.update(flow, truth, (20, 10), "FG3DCar")
    metric.update(flow, truth, (4, 40), "JODS")
    means = metric.compute()
    assert float(means.overall) == pytest.approx((2 / 3 + 1) / 2)
    assert means.by_category.flatten().tolist() == pytest.approx([2 / 3, 1])
    only = FlowAccuracy((0.05, 0.1))
    lost = torch.full_like(flow, NAN)
    only.update(lost, truth, (20, 10))
    assert only.compute().overall.tolist() == [0, 0]
    only.update(flow, torch.full_like(flow, 1e9), (20, 10))  # nothing known: does not count
    assert only.compute().number.tolist() == [[1, 1]]


def test_a_flow_of_another_size_is_converted_with_positions_from_1():
    """u = 1; a from 2 to 4 columns, b from 2 to 6: u' = (1 + x 2/4) 6/2 - x = 3 + x/2 for x = 1 .. 4."""
    flow = torch.tensor([[[[1.0, 1.0]], [[-2.0, -2.0]]]])
    found = scale_flow(flow, (1, 4), (1, 6))
    assert found.tolist() == [[[[3.5, 4.0, 4.5, 5.0]], [[-2.0, -2.0, -2.0, -2.0]]]]
    assert scale_flow(flow, (1, 2), (1, 2)).tolist() == flow.tolist()
    metric = FlowAccuracy((0.05,))
    metric.update(flow, found.float(), (1, 6))
    assert float(metric.compute().overall) == 1.0
    flow[0, 0, 0, 1] = 1e10
    # new column 1 lies within old column 1; 2 and 3 lie between the two, 4 within the unknown one
    assert valid_flow(scale_flow(flow, (1, 4), (1, 6))).tolist() == [[[True, False, False, False]]]


def test_precision_and_jaccard():
    metric = PrecisionJaccard(categories=("Car100", "Horse100"))
    metric.update(mask("1100"), mask("1000"), "Car100")  # P 3/4, J 1/2
    metric.update(mask("1000"), mask("0000"), "Car100")  # P 3/4, no J: the truth is empty
    metric.update(torch.tensor([[[0.4, 0.6]]]), mask("01"), "Horse100")  # P 1, J 1
    means = metric.compute()
    assert means.overall.tolist() == pytest.approx([(3 / 4 + 3 / 4 + 1) / 3, (1 / 2 + 1) / 2])
    assert means.by_category.tolist() == [pytest.approx([3 / 4, 1 / 2]), [1, 1]]
    assert means.number.tolist() == [[2, 1], [1, 1]]


def test_label_transfer():
    """The object covers columns 1, 2 of the frame and 0, 1 of the other image; the box is 2 wide and 1 high."""
    truth, other = mask("0110"), mask("1100")
    right, still = torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4)
    right[:, 0] = -1
    metric = LabelTransfer()
    metric.update(right, truth, other)
    assert metric.compute().overall.tolist() == [1, 1, 0]
    metric.reset()
    metric.update(still, truth, other)  # carried 1100: 2 of 4 labels right, 1 of 3; each position 1/2 box off
    assert metric.compute().overall.tolist() == pytest.approx([2 / 4, 1 / 3, 1 / 2])
    # truncation: 0.5 further is the same pixel; column 3 leaves the image
    assert float(localisation_error(still[0] + torch.tensor([0.5, 0])[:, None, None], truth[0], other[0])) == 0.5
    # boxes 2 and 4 wide: |(x + 1 - 1) / 2 - (x + 1) / 4| = 1/4, 0, 1/4, 1/2
    assert float(localisation_error(still[0], truth[0], mask("1111")[0])) == pytest.approx(0.25)


def test_label_transfer_of_an_empty_object_counts_in_accuracy_only():
    metric = LabelTransfer()
    metric.update(torch.zeros(1, 2, 1, 4), mask("0110"), mask("0000"))
    assert metric.compute().overall[0] == 0.5 and bool(metric.compute().overall[1:].isnan().all())
    metric.reset()
    metric.update(torch.full((1, 2, 1, 4), 99.0), mask("0110"), mask("0110"))  # every match leaves the image
    assert metric.compute().overall[:2].tolist() == [0.5, 0] and bool(metric.compute().overall[2].isnan())


@pytest.mark.parametrize("kind", [KeypointPCK, FlowAccuracy, PrecisionJaccard, LabelTransfer])
def test_states_add_up_over_processes(kind: type):
    """Every state is a sum over items, so that two processes' states add up to those of one that saw all."""
    torch.manual_seed(1)
    flow, truth = torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 8)
    masks, others = torch.rand(3, 6, 8) > 0.5, torch.rand(3, 6, 8) > 0.5
    names = ["x", "y", "x"]

    def update(metric, chosen: slice):
        items = {
            KeypointPCK: (flow[:, :, 0].mT[chosen], truth[:, :, 0].mT[chosen], torch.full((3,), 20.0)[chosen]),
            FlowAccuracy: (flow[chosen], truth[chosen], (30, 20)),
            PrecisionJaccard: (masks[chosen], others[chosen]),
            LabelTransfer: (flow[chosen], masks[chosen], others[chosen]),
        }[kind]
        metric.update(*items, names[chosen])

    together, first, second = (kind(categories=("x", "y")) for _ in range(3))
    update(together, slice(0, 3))
    update(first, slice(0, 1))
    update(second, slice(1, 3))
    for state in first._defaults:
        assert first._reductions[state].__name__ == "dim_zero_sum"
        setattr(first, state, first._reductions[state](torch.stack((getattr(first, state), getattr(second, state)))))
    for one, all_ in zip(first.compute(), together.compute(), strict=True):
        torch.testing.assert_close(one, all_, equal_nan=True)


def test_unknown_categories_and_wrong_shapes():
    metric = CategoryMeans(1, ("x",))
    for category in ("z", None, ["x", "x"]):
        with pytest.raises(ValueError, match="category"):
            metric.update(torch.zeros(1, 1), category)
    with pytest.raises(ValueError, match="found"):
        KeypointPCK().update(torch.zeros(1, 2, 2), torch.zeros(1, 3, 2), torch.ones(1))
    with pytest.raises(ValueError, match="length"):
        KeypointPCK().update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), torch.ones(2))
    with pytest.raises(ValueError, match="truth"):
        PrecisionJaccard().update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match="flow"):
        LabelTransfer().update(torch.zeros(1, 2, 2, 3), mask("00", "00"), mask("00"))


def read_flo(path) -> np.ndarray:
    raw = path.read_bytes()
    width, height = np.frombuffer(raw, "<i4", 2, 4)
    return np.frombuffer(raw, "<f4", offset=12).reshape(height, width, 2).astype(np.float64)


@pytest.mark.skipif(not (DATA / "TSS").is_dir(), reason=f"no TSS sample in {DATA}")
@pytest.mark.parametrize("pair", ["FG3DCar/001_005", "JODS/car_01_02"])
def test_tss_identity_and_truth_against_numpy(pair: str):
    folder = DATA / "TSS" / "TSS_CVPR2016" / pair
    metric, exact, expected = FlowAccuracy((0.05, 0.1)), FlowAccuracy((0.05, 0.1)), []
    for one, two in ((1, 2), (2, 1)):
        truth = read_flo(folder / f"flow{one}.flo")
        width, height = Image.open(folder / f"image{two}.png").size
        valid = (np.abs(truth) < 1e9).all(-1)
        error = np.hypot(truth[valid][:, 0], truth[valid][:, 1])
        expected.append([1 - (error > alpha * max(height, width)).mean() for alpha in (0.05, 0.1)])
        flow = torch.from_numpy(truth.transpose(2, 0, 1))[None]
        metric.update(torch.zeros_like(flow), flow, (height, width))
        exact.update(flow.clone(), flow, (height, width))
    assert metric.compute().overall.tolist() == pytest.approx(np.mean(expected, 0).tolist(), abs=1e-12)
    assert exact.compute().overall.tolist() == [1.0, 1.0]


@pytest.mark.skipif(not (DATA / "PF-WILLOW").is_dir(), reason=f"no PF-WILLOW sample in {DATA}")
def test_pf_willow_identity_and_truth_against_numpy():
    metric, exact, expected = KeypointPCK(), KeypointPCK(), []
    with (DATA / "PF-WILLOW" / "test_pairs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            a, b = (np.array([[float(v) for v in row[c + s].split(";")] for c in "XY"]).T for s in "AB")
            length = np.ptp(b, axis=0).max()
            expected.append([(np.linalg.norm(a - b, axis=1) <= alpha * length).mean() for alpha in metric.alphas])
            a, b = (torch.from_numpy(v)[None] for v in (a, b))
            moved = transfer_keypoints(torch.zeros(1, 2, 300, 300, dtype=torch.float64), a)
            metric.update(moved, b, reference_length("bbox-kp", b, (300, 300), None))
            exact.update(b, b, reference_length("bbox-kp", b, (300, 300), None))
    assert len(expected) == 45
    assert metric.compute().per_image.tolist() == pytest.approx(np.mean(expected, 0).tolist(), abs=1e-12)
    assert exact.compute().per_image.tolist() == [1.0, 1.0, 1.0] == exact.compute().per_point.tolist()

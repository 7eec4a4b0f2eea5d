"""Each program in examples/ as its user runs it: it ends well, prints what it promises, and can fail."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import cosegflow

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# name -> (modules that it needs besides torch, how many checks it prints)
TABLE = {
    "raft_lookup": ((), 10),
    "global_matching": ((), 7),
    "dino_correspondence": (("skimage",), 12),
    "loftr_masks": ((), 3),
}
CHECK = re.compile(r"^(.*): (?:largest difference )?(\S+) \((limit|at most|at least) (\S+)\)$", re.MULTILINE)


def load(name):
    for needed in TABLE[name][0]:
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checks(text):
    """what -> (value, limit), and every value lies within its limit."""
    found = {what: (float(value), kind, float(limit)) for what, value, kind, limit in CHECK.findall(text)}
    for what, (value, kind, limit) in found.items():
        assert value >= limit if kind == "at least" else value <= limit, what
    return found


def test_the_table_has_every_example():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_example(name, capsys):
    load(name).main()
    assert len(checks(capsys.readouterr().out)) == TABLE[name][1]


@pytest.mark.parametrize("name", TABLE)
def test_docstring_gives_the_command(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert f"    python examples/{name}.py\n" in text and text.count("\n") <= 150


def test_as_a_program():
    environment = {**os.environ, "PYTHONPATH": str(Path(cosegflow.__file__).parents[1])}
    command = [sys.executable, "examples/loftr_masks.py"]
    done = subprocess.run(command, cwd=EXAMPLES.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(checks(done.stdout)) == TABLE["loftr_masks"][1]
    assert "confidence 0 here" in done.stdout and "best targets: equal" in done.stdout


def test_global_matching_keeps_what_both_views_have(capsys):
    load("global_matching").main()
    kept, both = re.search(r"consistent: (\d+) of 2160 pixels; (\d+) are in both", capsys.readouterr().out).groups()
    assert kept == both == str(2 * 28 * 33)


# (example, function of cosegflow, what is done to its first tensor): wrong kernels, and what must notice
FAULTS = {
    "raft_lookup": ("local_correlation", lambda out: out.flip(1)),
    "global_matching": ("transfer", lambda out: out + torch.nan),
    "dino_correspondence": ("resize_flow", lambda out: out + 3),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_wrong_result_ends_the_program(name, monkeypatch, capsys):
    example = load(name)
    function, spoil = FAULTS[name]
    right = getattr(cosegflow, function)
    monkeypatch.setattr(cosegflow, function, lambda *args, **options: spoil(right(*args, **options)))
    with pytest.raises(SystemExit, match=name):
        example.main()


def test_wrong_masks_end_the_program(monkeypatch):
    """Masks that are ignored: NaN comes out of the padding."""
    example = load("loftr_masks")
    right = cosegflow.match_both
    monkeypatch.setattr(cosegflow, "match_both", lambda a, b, *_, **options: right(a, b, **options))
    with pytest.raises(SystemExit, match="loftr_masks"):
        example.main()


def test_raft_block_takes_half_features_and_other_levels():
    """RAFT's features under autocast are halves; one level of radius 3 is RAFT-small's window."""
    example = load("raft_lookup")
    fmap1, fmap2, coords = torch.randn(1, 16, 9, 11), torch.randn(1, 16, 9, 11), 8 * torch.rand(1, 2, 9, 11)
    halves = fmap1.half(), fmap2.half()
    got = example.CorrBlock(*halves, num_levels=2, radius=3)(coords)
    want = example.PlainCorrBlock(*(h.float() for h in halves), num_levels=2, radius=3)(coords)
    assert got.dtype == torch.float32 and got.shape == (1, 98, 9, 11)
    assert (got - want).abs().max().item() <= 1e-5


def test_features_of_maps_and_of_tokens():
    """A class token and register tokens in front, or a map: the same features; another grid is an error."""
    example = load("dino_correspondence")
    conv = nn.Conv2d(3, 8, example.PATCH, stride=example.PATCH)
    image = torch.rand(1, 3, 3 * example.PATCH, 5 * example.PATCH)

    def tokens(x):
        return torch.cat((torch.rand(1, 5, 8), conv(x).flatten(2).transpose(1, 2)), 1)

    as_map, as_tokens = (example.dense_features(model, image, example.PATCH) for model in (conv, tokens))
    assert as_map.shape == (1, 8, 3, 5)
    assert (as_map - as_tokens).abs().max().item() <= 1e-6
    with pytest.raises(ValueError, match="model: need one feature for each 7 x 7 patch"):
        example.dense_features(conv, image, 7)

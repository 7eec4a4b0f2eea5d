"""``cosegflow data check``: what is there, what is missing, and the exit status."""

import argparse
import json
from pathlib import Path

import pytest

pytest.importorskip("skimage", reason="the joint extra is not installed")

from test_datasets import internet, pascal, photograph, spair, tss, willow

from cosegflow import data_command
from cosegflow.data import DatasetError


def check(*words: str) -> int:
    parser = argparse.ArgumentParser()
    data_command.add_options(parser)
    return data_command.main(parser.parse_args(["check", *words]))


def test_everything_below_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "my data [2]"
    tss(root / "deeper/TSS")
    willow(root / "PF-WILLOW")
    spair(root / "SPair-71k")
    internet(root / "Internet")
    out = tmp_path / "found.json"
    assert check(str(root), "--json", str(out)) == 0
    text = capsys.readouterr().out
    assert "6 pairs (800 in the full set), 6 photographs, 3 categories: all files there" in text
    assert "not found: pf-pascal, caltech-101, weizmann-horse, stamps" in text and "nothing is missing" in text
    found = json.loads(out.read_text())
    assert found["whole"] and [(d["dataset"], d["pairs"]) for d in found["datasets"]] == [
        ("tss", 6),
        ("internet", 9),
        ("pf-willow", 2),
        ("spair-71k", 1),
    ]
    assert not any(path.name.startswith(".unfinished") for path in tmp_path.iterdir())


def test_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    internet(tmp_path)
    for i in range(3):
        (tmp_path / f"Car100/GroundTruth/{i:04d}.png").unlink()
        (tmp_path / f"Horse100/GroundTruth/{i:04d}.png").unlink()
    assert check(str(tmp_path)) == 1
    text = capsys.readouterr().out
    assert "6 files missing; 3 of 9 pairs have all theirs" in text and "something is missing" in text
    assert "missing: Car100/GroundTruth/0000.png" in text and "and 1 more" in text and "NOT whole" in text


def test_one_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pascal(tmp_path / "p")
    willow(tmp_path / "w")
    assert check(str(tmp_path), "--dataset", "pf-pascal") == 0
    text = capsys.readouterr().out
    assert "pf-pascal (test)" in text and "pf-pascal (train)" in text and "willow" not in text
    assert check(str(tmp_path), "--dataset", "tss") == 1
    assert "need FG3DCar, JODS, PASCAL with a folder for each pair there, got none" in capsys.readouterr().out
    (tmp_path / "p/test.csv").write_text("source_image,target_image,XA,YA,XB,YB\na,b,1,x,1,1\n")
    assert check(str(tmp_path), "--dataset", "pf-pascal") == 1
    assert "test.csv: line 2: YA: need numbers, got 'x'" in capsys.readouterr().out
    (tmp_path / "p/test.csv").unlink()
    assert check(str(tmp_path), "--dataset", "pf-pascal") == 0  # only what is there must be whole


def test_reading_finds_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tss(tmp_path) / "TSS_CVPR2016/JODS/car_01_02"
    (folder / "flow2.flo").write_bytes(b"PIEH")
    assert check(str(tmp_path)) == 0
    assert check(str(tmp_path), "--read") == 1
    assert "flow2.flo: not a .flo file" in capsys.readouterr().out


def test_a_folder_of_photographs_counts_where_nothing_else_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("animals/a.png", "animals/b.png", "cars/a.png"):
        photograph(tmp_path / name)
    assert check(str(tmp_path)) == 1
    assert "category cars: need at least two photographs, got only a.png" in capsys.readouterr().out
    photograph(tmp_path / "cars/b.png")
    assert check(str(tmp_path)) == 0
    assert "folder (test)" in capsys.readouterr().out
    willow(tmp_path / "PF-WILLOW")
    assert check(str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "pf-willow (test)" in text and "folder (test)" not in text
    assert check(str(tmp_path), "--dataset", "folder") == 1


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(DatasetError, match=r"ROOT: .*nowhere: need an existing folder"):
        check(str(tmp_path / "nowhere"))
    assert check(str(tmp_path)) == 1
    assert "no data set found" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--json: .*is a folder"):
        check(str(tmp_path), "--json", str(tmp_path))
    with pytest.raises(SystemExit):
        check(str(tmp_path), "--dataset", "imagenet")

"""Lists of pairs: which one counts, coordinates as spreadsheets write them, and rows that cannot be read."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("skimage", reason="the joint extra is not installed")

from test_datasets import HEADER, pascal, photograph, tss, willow, write_csv

from cosegflow.data import DatasetError, open_dataset


def test_the_list_of_pairs_is_found_or_named(tmp_path: Path):
    willow(tmp_path)
    write_csv(tmp_path / "notes.csv", ["name", "remark"], ["x", "y"])  # no list of pairs
    assert len(open_dataset("pf-willow", tmp_path)) == 2
    other = write_csv(tmp_path / "other.csv", HEADER, *list(csv.reader((tmp_path / "test_pairs.csv").open()))[1:2])
    with pytest.raises(DatasetError, match=r"one \*.csv of pairs .* got 2: other.csv, test_pairs.csv"):
        open_dataset("pf-willow", tmp_path)
    assert len(open_dataset("pf-willow", tmp_path, pairs=other)) == 1
    assert len(open_dataset("pf-willow", tmp_path, pairs="other.csv")) == 1
    with pytest.raises(DatasetError, match=r"pairs: none.csv: no such file"):
        open_dataset("pf-willow", tmp_path, pairs="none.csv")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match="got none;"):
        open_dataset("pf-willow", empty)
    (empty / "semicolons.csv").write_text("source_image;target_image\na;b\n")
    with pytest.raises(DatasetError, match=r"got none \(semicolons.csv: not in UTF-8, or without these columns\)"):
        open_dataset("pf-willow", empty)
    with pytest.raises(DatasetError, match="root: need an existing folder"):
        open_dataset("pf-willow", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="split: need one of test, got 'train'"):
        open_dataset("pf-willow", tmp_path, split="train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a.png", "b.png", 3, "1;2", "1;2", "1;2", "1"), "line 2: 2 numbers in XB and 1 in YB"),
        (("a.png", "b.png", 3, "1;2", "1;2", "1", "1"), "line 2: 2 points in the source and 1 in the target"),
        (("a.png", "b.png", 3, "1;x", "1;2", "1;2", "1;2"), "line 2: XA: need numbers, got '1;x'"),
        (("a.png", "b.png", 3, "1;inf", "1;2", "1;2", "1;2"), "line 2: XA: need numbers"),
        (("a.png", "", 3, "1", "1", "1", "1"), "line 2: need a source and a target"),
        (("a.png", "b.png", 3), "line 2: need 7 columns, got 3"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path: Path, row: Sequence[object], message: str):
    path = write_csv(tmp_path / "pairs.csv", HEADER, row)
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset("pf-willow", tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_lists_that_cannot_be_read(tmp_path: Path):
    for name, content, message in (
        ("binary.csv", b"\xff\xfe\x00source", "not a CSV file"),
        ("empty.csv", b"", "empty; need a header"),
        ("header.csv", b"source_image,target_image,XA,YA,XB,YB\n", "has no row"),
        ("short.csv", b"source_image,target_image,XA,YA\na,b,1,1\n", "missing: XB, YB"),
        ("none.csv", b"source_image,target_image\na,b\n", "need key points"),
        ("other.csv", b"x,y\n1,2\n", "need the columns source_image and target_image"),
        ("twice.csv", b"source_image,target_image,XA,XA\na,b,1,1\n", "the column xa comes twice"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=message) as caught:
            open_dataset("pf-willow", tmp_path, pairs=name)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_lists_from_spreadsheets(tmp_path: Path):
    """A byte order mark, CRLF, blank lines, capital letters, spaces after commas, and quotes around a comma."""
    for i in range(2):
        photograph(tmp_path / f"PF-dataset/a, b/{i}, x.png")
    lines = (
        "\ufeffSource_Image, Target_Image, Class, xa, ya, xb, yb",
        "",
        '"PF-dataset/a, b/0, x.png", "PF-dataset/a, b/1, x.png", 3, "1;2", 3;4, 5;6, "7;"',
        ",,,,,,",
    )
    path = tmp_path / "pairs.csv"
    path.write_bytes("\r\n".join(lines).encode())
    with pytest.raises(DatasetError, match="line 3: 2 numbers in XB and 1 in YB"):
        open_dataset("pf-willow", tmp_path)
    path.write_bytes("\r\n".join(lines).replace("7;", "7;8;").encode())
    (pair,) = open_dataset("pf-willow", tmp_path)
    assert pair.keypoints_b is not None and pair.keypoints_b.tolist() == [[5, 7], [6, 8]] and pair.category == "a, b"


def test_the_one_list_of_any_name(tmp_path: Path):
    """TSS's and PF-PASCAL's lists have customary names; without these the one list there counts."""
    tss(tmp_path / "t", listed=True)
    (tmp_path / "t/data.csv").rename(tmp_path / "t/few.csv")
    (tmp_path / "t/few.csv").write_text("\n".join((tmp_path / "t/few.csv").read_text().splitlines()[:3]))
    assert len(open_dataset("tss", tmp_path / "t")) == 2
    root = pascal(tmp_path / "p")
    (root / "test.csv").rename(root / "pairs.csv")
    with pytest.raises(DatasetError, match=r"need test.csv or test_pairs.csv"):  # train.csv is a list, too
        open_dataset("pf-pascal", root)
    (root / "train.csv").unlink()
    assert open_dataset("pf-pascal", root).categories == ["car"]
    (root / "pairs.csv").rename(root / "train.csv")
    with pytest.raises(DatasetError, match=r"need test.csv or test_pairs.csv"):
        open_dataset("pf-pascal", root)

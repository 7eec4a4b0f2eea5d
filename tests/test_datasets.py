"""The data sets: miniature ones of every format, real samples where they are, and files that are missing or damaged."""

import csv
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA

pytest.importorskip("skimage", reason="the joint extra is not installed")

from PIL import Image
from scipy.io import savemat

import cosegflow
from cosegflow.data import DATASETS, DatasetError, collate_pairs, open_dataset
from cosegflow.data.entries import FilePairs, PairEntry
from cosegflow.data.registry import canonical_name
from cosegflow.match_command import write_flo


def photograph(path: Path, width: int = 40, height: int = 30, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, width: int = 40, height: int = 30, value: int = 255, empty: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((height, width), dtype=np.uint8)
    if not empty:
        pixels[height // 3 : 2 * height // 3, width // 4 : 3 * width // 4] = value
    Image.fromarray(pixels).save(path)
    return path


def write_csv(path: Path, header: Sequence[str], *rows: Sequence[object]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


HEADER = ("source_image", "target_image", "class", "XA", "YA", "XB", "YB")


def joined(values: Sequence[float]) -> str:
    return ";".join(str(v) for v in values)


def willow(root: Path, folder: str = "car(S) [1]") -> Path:
    """Three photographs, two rows; the second has an absent point and one outside of the image."""
    names = [f"PF-dataset/{folder}/my car {i}.png" for i in range(3)]
    for i, name in enumerate(names):
        photograph(root / name, 40 + 2 * i, 30, i)
    xs, ys = [1.0, 2.5, 3.0], [4.0, 5.0, 6.5]
    write_csv(
        root / "test_pairs.csv",
        HEADER,
        (names[0], names[1], 3, joined(xs), joined(ys), joined(ys), joined(xs)),
        (names[1], names[2], 3, "1;nan;-7.5", "4;5;6", "1;2;300", "1;2;3"),
    )
    return root


def test_names_and_aliases():
    assert canonical_name("SPair") == "spair-71k" and canonical_name("pf_willow") == "pf-willow"
    assert all(canonical_name(name) == name for name in DATASETS)
    with pytest.raises(DatasetError, match="need one of tss, internet"):
        canonical_name("imagenet")


def test_willow_with_joined_coordinates(tmp_path: Path):
    dataset = open_dataset("pf-willow", willow(tmp_path / "a b [c]"))
    assert len(dataset) == 2 and dataset.categories == ["car(S) [1]"] * 2 and dataset.name == "pf-willow"
    first, second = dataset
    assert first.keypoints_a is not None and first.keypoints_b is not None and first.keypoints_a.dtype == torch.float32
    assert first.keypoints_a.tolist() == [[1, 4], [2.5, 5], [3, 6.5]]
    assert first.keypoints_b.tolist() == [[4, 1], [5, 2.5], [6.5, 3]]
    assert first.image_a.shape == (3, 30, 40) and first.image_b.shape == (3, 30, 42)
    assert second.keypoints_a is not None and second.keypoints_b is not None
    assert second.keypoints_a[1].isnan().all() and second.keypoints_b[1].tolist() == [2, 2]  # absent in a only
    assert second.keypoints_a[2].tolist() == [-7.5, 6] and second.keypoints_b[2].tolist() == [300, 3]  # outside
    assert first.name != second.name


def test_willow_with_a_column_for_each_coordinate(tmp_path: Path):
    willow(tmp_path)
    header = [f"{axis}{i}" for axis in ("XA", "YA", "XB", "YB") for i in range(1, 11)]
    values = np.arange(40.0)
    names = [f"PF-dataset/car(S) [1]/my car {i}.png" for i in range(2)]
    (tmp_path / "test_pairs.csv").unlink()
    write_csv(tmp_path / "pairs.csv", ["imageA", "imageB", *header], [*names, *values])
    pair = open_dataset("pf-willow", tmp_path)[0]
    assert pair.keypoints_a is not None and pair.keypoints_b is not None
    np.testing.assert_array_equal(pair.keypoints_a.numpy(), values[:20].reshape(2, 10).T)
    np.testing.assert_array_equal(pair.keypoints_b.numpy(), values[20:].reshape(2, 10).T)


def test_both_directions(tmp_path: Path):
    dataset = open_dataset("pf-willow", willow(tmp_path), both_directions=True)
    assert len(dataset) == len(dataset.categories) == 4 and len({pair.name for pair in dataset}) == 4
    forward, back = dataset[0], dataset[2]
    assert torch.equal(forward.image_a, back.image_b) and torch.equal(forward.image_b, back.image_a)
    assert forward.keypoints_a is not None and back.keypoints_b is not None
    assert torch.equal(forward.keypoints_a, back.keypoints_b)
    with pytest.raises(IndexError):
        dataset[4]


def test_a_reversed_pair_exchanges_everything_of_a_and_b():
    named = [field.name for field in fields(PairEntry) if field.name.endswith(("_a", "_b"))]
    assert len(named) == 12
    entry = PairEntry("n", "c", **dict(zip(named, named, strict=True)), flow=Path("x"), mirrored=True)  # type: ignore[arg-type]
    back = entry.swapped()
    for name in named:
        assert getattr(back, name) == name[:-1] + {"a": "b", "b": "a"}[name[-1]]
    assert back.flow is None and back.mirrored and back.category == "c" and back.name != "n"


def test_photographs_that_are_missing_or_damaged(tmp_path: Path):
    dataset = open_dataset("pf-willow", willow(tmp_path))
    path = tmp_path / "PF-dataset/car(S) [1]/my car 1.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DatasetError, match=r"my car 1.png: damaged"):
        dataset[0]
    path.unlink()
    with pytest.raises(DatasetError, match=r"my car 1.png: no such file") as caught:
        dataset[0]
    assert "\n" not in str(caught.value)


def pascal(root: Path) -> Path:
    for i in range(3):
        photograph(root / f"PF-dataset-PASCAL/JPEGImages/{i}.png", 40, 30 + i, i)
    folder = root / "PF-dataset-PASCAL/Annotations/car"
    folder.mkdir(parents=True)
    for i in range(3):
        points = np.array([[1.0 + i, 2.0], [np.nan, np.nan], [30.0, 20.0]])
        savemat(folder / f"{i}.mat", {"kps": points, "bbox": np.array([[1, 2, 30, 20 + i]])})
    names = [f"PF-dataset-PASCAL/JPEGImages/{i}.png" for i in range(3)]
    write_csv(root / "test.csv", HEADER, (names[0], names[1], 7, "1;2", "3;4", "5;6", "7;8"))
    rows = [(names[0], names[2], 7, flip) for flip in (0, 1)]
    write_csv(root / "train.csv", ("source_image", "target_image", "class", "flip"), *rows)
    return root


def test_pascal(tmp_path: Path):
    root = pascal(tmp_path)
    test = open_dataset("pf-pascal", root)
    assert test.categories == ["car"]
    pair = test[0]
    assert pair.keypoints_a is not None and pair.box_a is not None and pair.box_b is not None
    assert pair.keypoints_a.tolist() == [[1, 3], [2, 4]]  # the list's own points come first
    assert pair.box_a.tolist() == [1, 2, 30, 20] and pair.box_b.tolist() == [1, 2, 30, 21]
    plain, mirrored = open_dataset("pf-pascal", root, split="train")
    assert plain.keypoints_a is not None and plain.keypoints_a[1].isnan().all() and plain.keypoints_a[0, 0] == 1
    assert torch.equal(mirrored.image_a, plain.image_a.flip(-1))
    assert mirrored.keypoints_a is not None and mirrored.keypoints_a[0].tolist() == [38, 2]
    assert mirrored.box_a is not None and mirrored.box_a.tolist() == [9, 2, 38, 20]
    with pytest.raises(DatasetError, match=r"need eval.csv or val.csv"):
        open_dataset("pf-pascal", root, split="val")
    batch = collate_pairs([plain, plain._replace(keypoints_a=torch.zeros(5, 2), keypoints_b=torch.zeros(5, 2))])
    assert batch.keypoints_a is not None and batch.keypoints_a.shape == (2, 5, 2)
    assert batch.keypoints_a[0, 3:].isnan().all() and batch.box_b is not None and batch.name == (plain.name,) * 2


def test_pascal_annotations_that_are_damaged(tmp_path: Path):
    root = pascal(tmp_path)
    path = root / "PF-dataset-PASCAL/Annotations/car/0.mat"
    whole = path.read_bytes()
    for content, message in ((b"", "damaged"), (whole[:150], "damaged"), (b"text " * 100, "damaged")):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=rf"0.mat: {message}") as caught:
            open_dataset("pf-pascal", root)[0]
        assert "\n" not in str(caught.value)
    for variables, message in (
        ({"x": 1}, "need the variables"),
        ({"kps": np.zeros((3, 3))}, "kps: need a list of x, y"),
        ({"bbox": np.array([5, 0, 1, 1])}, "bbox: need a box"),
    ):
        savemat(path, variables)
        with pytest.raises(DatasetError, match=message):
            open_dataset("pf-pascal", root)[0]
    path.unlink()
    assert open_dataset("pf-pascal", root)[0].box_a is None  # annotations are optional


def tss(root: Path, listed: bool = False) -> Path:
    base = root / "TSS_CVPR2016"
    rows = []
    for group, name, value in (("FG3DCar", "001_002", 255), ("JODS", "car_01_02", 1), ("PASCAL", "bike [1]", 255)):
        folder = base / group / name
        for n, (width, height) in ((1, (40, 30)), (2, (44, 28))):
            photograph(folder / f"image{n}.png", width, height, n)
            mask(folder / f"mask{n}.png", width, height, value)
            flow = np.full((2, height, width), 1e10, dtype=np.float32)
            flow[:, 10:18, 12:30] = np.array([1.5, -0.5], dtype=np.float32)[:, None, None] * n
            write_flo(folder / f"flow{n}.flo", flow)
            rows.append((f"TSS_CVPR2016/{group}/{name}/image{3 - n}.png", f"TSS_CVPR2016/{group}/{name}/image{n}.png"))
        (folder / "flip_gt.txt").write_text("1" if group == "PASCAL" else "0")
    if listed:
        write_csv(
            root / "data.csv",
            ("imageA", "imageB", "flow_dir", "flip", "category"),
            *((a, b, b[-5], int("PASCAL" in a), 1) for a, b in rows),
        )
    return root


@pytest.mark.parametrize("listed", [False, True])
def test_tss(tmp_path: Path, listed: bool):
    dataset = open_dataset("tss", tss(tmp_path, listed), both_directions=True)
    assert isinstance(dataset, FilePairs) and len(dataset) == 6  # both directions anyway
    assert dataset.categories == ["FG3DCar", "FG3DCar", "JODS", "JODS", "PASCAL", "PASCAL"]
    assert [dataset.entry(i).flip_gt for i in range(6)] == [False] * 4 + [True] * 2
    for index, pair in enumerate(dataset):
        n = index % 2 + 1
        assert pair.flow_ab is not None and pair.valid_ab is not None and pair.mask_a is not None
        assert pair.image_a.shape == ((3, 30, 40) if n == 1 else (3, 28, 44))
        assert pair.flow_ab.shape[1:] == pair.valid_ab.shape == pair.image_a.shape[1:]
        assert pair.valid_ab.sum() == 8 * 18 and float(pair.flow_ab.abs().max()) == 1.5 * n  # unknown flow is 0
        assert pair.flow_ab[:, 12, 14].tolist() == [1.5 * n, -0.5 * n]
        assert pair.mask_a.dtype == torch.bool and 0.1 < float(pair.mask_a.float().mean()) < 0.3


def test_tss_files_that_are_damaged(tmp_path: Path):
    folder = tss(tmp_path) / "TSS_CVPR2016/FG3DCar/001_002"
    dataset = open_dataset("tss", tmp_path)
    path = folder / "flow1.flo"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-4], "damaged .flo file"),
        (b"PIEX" + whole[4:], "not a .flo file"),
        (whole[:4] + b"\xff" * 8 + whole[12:], "damaged .flo file"),
        (b"", "not a .flo file"),
        ((folder / "flow2.flo").read_bytes(), "need the size of image1.png, 40 x 30, got 44 x 28"),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=rf"flow1.flo: {message}") as caught:
            dataset[0]
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    (folder / "mask1.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"mask1.png: not a mask"):
        dataset[0]
    mask(folder / "mask1.png", 20, 30)
    with pytest.raises(DatasetError, match=r"mask1.png: the mask has 20 x 30 pixels and the photograph 40 x 30"):
        dataset[0]
    mask(folder / "mask1.png", 80, 60)
    reduced = dataset[0].mask_a
    assert reduced is not None and reduced.shape == (30, 40) and int(reduced.sum()) == 10 * 20
    (folder / "mask1.png").unlink()
    with pytest.raises(DatasetError, match=r"mask1.png: no such file"):
        dataset[0]
    (folder / "flip_gt.txt").write_text("maybe")
    with pytest.raises(DatasetError, match=r"flip_gt.txt: need 0 or 1, got 'maybe'"):
        open_dataset("tss", tmp_path)
    (tmp_path / "data.csv").write_text("imageA,imageB,flow_dir,flip\nx/image1.png,x/image2.png,1,0\n")
    with pytest.raises(DatasetError, match=r"data.csv: line 2: flow_dir 1 needs imageB image1.png"):
        open_dataset("tss", tmp_path)


def spair(root: Path, size: tuple[int, int] = (50, 40)) -> Path:
    photograph(root / "JPEGImages/cat/a.jpg", 50, 40, 0)
    photograph(root / "JPEGImages/cat/b.jpg", 60, 40, 1)
    line = "000001-a-b:cat"
    (root / "PairAnnotation/test").mkdir(parents=True)
    found = {
        "src_imsize": [*size, 3], "trg_imsize": [60, 40, 3], "src_bndbox": [5, 5, 40, 30], "trg_bndbox": [1, 2, 50, 39],
        "src_kps": [[10, 12], [20, 22]], "trg_kps": [[11, 13], [21, 23]], "category": "cat",
    }  # fmt: skip
    (root / f"PairAnnotation/test/{line}.json").write_text(json.dumps(found))
    (root / "Layout/small").mkdir(parents=True)
    (root / "Layout/small/test.txt").write_text(line + "\n\n")
    return root


def test_spair(tmp_path: Path):
    spair(tmp_path / "SPair-71k")
    pair = open_dataset("spair", tmp_path)[0]
    assert pair.keypoints_b is not None and pair.box_b is not None and pair.name == "000001-a-b:cat"
    assert pair.keypoints_b.tolist() == [[11, 13], [21, 23]] and pair.box_b.tolist() == [1, 2, 50, 39]
    (tmp_path / "SPair-71k/Layout/small/test.txt").unlink()
    assert open_dataset("spair", tmp_path).categories == ["cat"]  # the annotations are the list
    with pytest.raises(DatasetError, match=r"need Layout/large/trn.txt"):
        open_dataset("spair", tmp_path, split="trn")


def test_spair_of_reduced_photographs_and_damaged_annotations(tmp_path: Path):
    root = spair(tmp_path, size=(100, 80))
    dataset = open_dataset("spair-71k", root)
    points = dataset[0].keypoints_a
    assert points is not None and points[0].tolist() == [4.75, 5.75]  # (x + 0.5) / 2 - 0.5
    path = root / "PairAnnotation/test/000001-a-b:cat.json"
    whole = json.loads(path.read_text())
    for content, message in (
        ("{", "damaged JSON"),
        ("[]", "need a JSON object, got list"),
        (json.dumps(whole | {"src_kps": [[1, 2]]}), "1 points in src_kps and 2 in trg_kps"),
        (json.dumps(whole | {"src_kps": "x"}), "src_kps: need a list"),
        (json.dumps(whole | {"src_imsize": [0, 1]}), "imsize: need width and height"),
        (json.dumps({"src_kps": []}), "missing: trg_kps, src_bndbox, trg_bndbox"),
    ):
        path.write_text(content)
        with pytest.raises(DatasetError, match=message) as caught:
            dataset[0]
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    (root / "Layout/small/test.txt").write_text("nonsense\n")
    with pytest.raises(DatasetError, match=r"test.txt: line 1: need id-source-target:category"):
        open_dataset("spair-71k", root)


def test_caltech(tmp_path: Path):
    names = [f"101_ObjectCategories/llama/image_{i}.jpg" for i in range(2)]
    for i, name in enumerate(names):
        photograph(tmp_path / name, 40, 30, i)
    square = ("10;20;20;10", "5;5;15;15")
    row = (names[0], names[1], 1, *square, "-5;60;60", "-5;-5;60")
    write_csv(tmp_path / "pairs.csv", HEADER, row)
    pair = open_dataset("caltech", tmp_path)[0]
    assert pair.mask_a is not None and pair.mask_b is not None and pair.category == "llama"
    assert pair.mask_a[5:16, 10:21].all() and int(pair.mask_a.sum()) == 11 * 11
    assert pair.mask_b.shape == (30, 40) and pair.mask_b[0, 39] and not pair.mask_b[29, 0]  # cut off at the edge
    write_csv(tmp_path / "pairs.csv", HEADER, (names[0], names[1], 1, "1;2", "1;2", *square))
    with pytest.raises(DatasetError, match=r"image_0.jpg: its outline has 2 corners"):
        open_dataset("caltech", tmp_path)[0]


def internet(root: Path) -> Path:
    for category in ("Airplane100", "Car100", "Horse100"):
        for i in range(3):
            photograph(root / category / f"{i:04d}.jpg", 40, 30, i)
            mask(root / category / "GroundTruth" / f"{i:04d}.png", empty=i == 1)
    return root


def test_internet(tmp_path: Path):
    dataset = open_dataset("internet", internet(tmp_path))
    assert (
        isinstance(dataset, FilePairs)
        and len(dataset) == 9
        and dataset.categories[:4] == ["Airplane100"] * 3 + ["Car100"]
    )
    assert [entry.image_a.stem for entry in dataset.entries[:3]] == ["0000", "0001", "0002"]
    assert [entry.image_b.stem for entry in dataset.entries[:3]] == ["0001", "0002", "0000"]
    empty = dataset[1].mask_a
    assert empty is not None and not empty.any()
    for path in list((tmp_path / "Car100").iterdir())[:10]:
        if path.is_file() and path.stem != "0000":
            path.unlink()
    with pytest.raises(DatasetError, match=r"category Car100: need at least two photographs, got only 0000.jpg"):
        open_dataset("internet", tmp_path)
    (tmp_path / "Car100/0000.jpg").unlink()
    with pytest.raises(DatasetError, match="category Car100: need at least two photographs, got none"):
        open_dataset("internet", tmp_path)


def test_weizmann(tmp_path: Path):
    base = tmp_path / "weizmann_horse_db"
    for split in ("test", "train"):
        for i in range(2):
            photograph(base / f"horse_{split}" / f"horse{i}.png", seed=i)
            mask(base / f"mask_{split}" / f"horse{i}.png", value=1)
    for split in ("test", "train"):
        pair = open_dataset("weizmann", tmp_path, split=split)[1]
        assert pair.mask_b is not None and int(pair.mask_b.sum()) == 10 * 20 and pair.category == "horse"
    assert len(open_dataset("weizmann", base)) == 2


def test_folder_of_photographs(tmp_path: Path):
    for name in ("red [cars]/one two.jpg", "red [cars]/b.PNG", "cats/a.jpeg", "cats/b.jpg", "cats/c.jpg"):
        photograph(tmp_path / name)
    (tmp_path / "cats/notes.txt").write_text("no photograph")
    (tmp_path / "cats/._a.jpeg").write_bytes(b"hidden")
    mask(tmp_path / "cats/GroundTruth/a.png")
    (tmp_path / "__MACOSX").mkdir()
    dataset = open_dataset("folder", tmp_path)
    assert dataset.categories == ["cats"] * 3 + ["red [cars]"] * 2
    assert dataset[4].mask_a is None
    with pytest.raises(DatasetError, match=r"GroundTruth/b.png: no such file"):
        dataset[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="category empty: need at least two photographs, got none"):
        open_dataset("folder", tmp_path)
    (tmp_path / "empty").rmdir()
    (tmp_path / "cats/away.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DatasetError, match=r"cats/away.jpg: no such file"):
        open_dataset("folder", tmp_path)[0]
    for name in ("two/same.png", "two/same.jpg"):
        photograph(tmp_path / "stems" / name)
    assert len({pair.name for pair in open_dataset("folder", tmp_path / "stems")}) == 2
    with pytest.raises(DatasetError, match="for each category, got 1 photographs that lie loose"):
        open_dataset("folder", photograph(tmp_path / "loose/x.jpg").parent)


def test_stamps(tmp_path: Path):
    dataset = open_dataset("stamps", "none")
    pair = dataset[3]
    assert pair.flow_ab is not None and pair.mask_b is not None and pair.valid_ab is not None and pair.name == "00003"
    assert all(dataset.categories[i] == dataset[i].category for i in (0, 3, 7))
    with pytest.raises(DatasetError, match="no stamps there"):
        open_dataset("stamps", tmp_path)
    with pytest.raises(DatasetError, match=r"pairs: this data set has no list of pairs, got x.csv"):
        open_dataset("stamps", "none", pairs="x.csv")
    with pytest.raises(DatasetError, match="in one direction only"):
        open_dataset("stamps", "none", both_directions=True)


REAL = (
    ("tss", "TSS", "test", 4),
    ("pf-willow", "PF-WILLOW", "test", 45),
    ("pf-pascal", "PF-PASCAL", "test", 14),
    ("pf-pascal", "PF-PASCAL", "train", 4),
    ("caltech-101", "Caltech-101", "test", 181),
    ("weizmann-horse", "Weizmann-horse", "test", 16),
)


@pytest.mark.parametrize(("name", "folder", "split", "count"), REAL)
def test_real_samples(name: str, folder: str, split: str, count: int):
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {folder} in {DATA}; set COSEGFLOW_DATA")
    dataset = open_dataset(name, DATA / folder, split=split)
    assert len(dataset) == count and len({pair.name for pair in map(dataset.__getitem__, range(4))}) == 4
    assert all(path.is_file() for path in dataset.files())
    for pair in (dataset[0], dataset[count - 1]):
        assert pair.image_a.shape[0] == 3 and pair.category in dataset.categories
        for points, image in ((pair.keypoints_a, pair.image_a), (pair.keypoints_b, pair.image_b)):
            if points is not None:
                size = torch.tensor((image.shape[2], image.shape[1]))
                assert ((points >= -0.5) & (points <= size)).all()
        for truth, image in ((pair.mask_a, pair.image_a), (pair.mask_b, pair.image_b)):
            if truth is not None:
                assert truth.shape == image.shape[1:] and 0.01 < float(truth.float().mean()) < 0.95


def test_real_flow_leads_from_the_object_of_a_to_that_of_b():
    if not (DATA / "TSS").is_dir():
        pytest.skip(f"no TSS in {DATA}; set COSEGFLOW_DATA")
    for pair in open_dataset("tss", DATA / "TSS"):
        assert pair.flow_ab is not None and pair.valid_ab is not None
        assert pair.mask_a is not None and pair.mask_b is not None
        assert torch.equal(pair.valid_ab, pair.mask_a)  # the flow is known on the foreground, exactly
        landed = cosegflow.warp(pair.mask_b[None, None].float(), pair.flow_ab[None])[0, 0][pair.valid_ab]
        assert float(landed.mean()) > 0.9, pair.name

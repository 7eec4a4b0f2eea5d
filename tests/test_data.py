"""Data: exact truth of composed pairs, the sources and their split, photographs of the user's own."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA

pytest.importorskip("skimage", reason="the joint extra is not installed")

from PIL import Image

import cosegflow
from cosegflow.data import (
    ComposedPairs,
    DataNotFoundError,
    DatasetError,
    Library,
    Pair,
    PhotographError,
    collate_pairs,
    compose_pair,
    load_library,
    photographs,
    read_photograph,
)
from cosegflow.data.annotations import fit_mask, read_flo, read_mask
from cosegflow.data.composer import random_warp
from cosegflow.data.photographs import read_reduced
from cosegflow.data.sources import Background, Stamp


@pytest.fixture(scope="module")
def fallback() -> Library:
    return load_library("none")


def test_warp_inverts_to_a_thousandth_of_a_pixel():
    rng = np.random.default_rng(0)
    for _ in range(5):
        warp = random_warp(rng, (100, 160), (200, 240))
        points = rng.uniform((0, 0), (240, 200), (500, 2))
        back, converged = warp.inverse(warp(points))
        assert converged.all()
        assert np.abs(back - points).max() < 2e-2


def test_flow_warps_b_onto_a():
    """A smooth stamp, no photometric noise to speak of: b sampled at the exact flow is a, inside the object."""
    ys, xs = np.mgrid[:120, :150]
    rgba = np.full((120, 150, 4), 255, dtype=np.uint8)
    rgba[..., 0], rgba[..., 1], rgba[..., 2] = xs * 1.5, ys * 2, 128 + 80 * np.sin(xs / 9) * np.cos(ys / 9)
    grounds = tuple(Background(str(i), np.full((64, 64, 3), 60 * i, dtype=np.uint8)) for i in (1, 2))
    library = Library((Stamp("s", "c", rgba),), grounds, "test")
    pairs = [compose_pair(np.random.default_rng(i), library, size=(160, 200)) for i in range(4)]
    batch = collate_pairs(pairs)
    assert batch.flow_ab is not None and batch.valid_ab is not None and batch.mask_a is not None
    for i in range(4):
        inner = torch.nn.functional.avg_pool2d(batch.valid_ab[i][None].float(), 9, 1, 4)[0] > 0.999
        assert int(inner.sum()) > 500
        found = cosegflow.warp(batch.image_b[i : i + 1], batch.flow_ab[i : i + 1])[0][:, inner]
        real = batch.image_a[i][:, inner]
        # each canvas has its own gain and offset per channel: compare after the best affine fit of the colours
        for channel in range(3):
            design = torch.stack((found[channel], torch.ones_like(found[channel])), 1)
            fit = torch.linalg.lstsq(design, real[channel][:, None]).solution
            residual = (design @ fit)[:, 0] - real[channel]
            assert float(residual.std()) < 0.03, (i, channel)
        share = batch.valid_ab[i].sum() / batch.mask_a[i].sum()
        assert float(share) > 0.9


def test_valid_flow_stays_on_the_object_of_b(fallback: Library):
    pair = compose_pair(np.random.default_rng(3), fallback)
    assert (
        pair.flow_ab is not None and pair.valid_ab is not None and pair.mask_b is not None and pair.mask_a is not None
    )
    assert pair.image_a.shape == (3, 240, 240) and pair.image_a.dtype == torch.float32
    assert float(pair.image_a.min()) >= 0 and float(pair.image_a.max()) <= 1
    assert bool((pair.mask_a | ~pair.valid_ab).all())
    landed, _ = cosegflow.warp(pair.mask_b[None, None].float(), pair.flow_ab[None], return_valid=True)
    assert float(landed[0, 0][pair.valid_ab].mean()) > 0.97


def test_pairs_depend_on_seed_and_index_only(fallback: Library):
    first, second = (ComposedPairs(fallback, 3, seed=5, size=(64, 80)) for _ in range(2))
    assert torch.equal(first[2].image_a, second[2].image_a)
    assert not torch.equal(first[1].image_a, second[2].image_a)
    assert first[0].mask_a is None and first[0].flow_ab is None  # training pairs carry no truth
    with pytest.raises(IndexError):
        first[3]


def test_two_stamps_of_one_category_have_masks_and_no_flow(fallback: Library):
    fur = Library(tuple(s for s in fallback.stamps if s.category == "fur"), fallback.backgrounds, "")
    pair = compose_pair(np.random.default_rng(0), fur, size=(64, 64), same_stamp=False)
    assert pair.flow_ab is None and pair.mask_a is not None


def test_collate():
    pair = Pair(torch.zeros(3, 4, 5), torch.zeros(3, 6, 7), "cat", torch.zeros(4, 5, dtype=torch.bool))
    batch = collate_pairs([pair, pair._replace(mask_a=None)])
    assert batch.image_b.shape == (2, 3, 6, 7) and batch.mask_a is None and batch.category == ("cat", "cat")
    with pytest.raises(ValueError, match="image_a"):
        collate_pairs([pair, pair._replace(image_a=torch.zeros(3, 4, 4))])
    with pytest.raises(ValueError, match="at least one"):
        collate_pairs([])


def test_collate_pads_key_points_with_nan():
    image = torch.zeros(3, 4, 5)
    one = Pair(image, image, keypoints_a=torch.ones(1, 2), keypoints_b=torch.ones(1, 2), box_b=torch.ones(4), name="x")
    three = one._replace(keypoints_a=torch.ones(3, 2), keypoints_b=torch.ones(3, 2), name="y")
    batch = collate_pairs([one, three])
    assert batch.keypoints_a is not None and batch.keypoints_b is not None and batch.box_b is not None
    assert batch.keypoints_a.shape == batch.keypoints_b.shape == (2, 3, 2)
    assert batch.keypoints_a[0, 1:].isnan().all() and not batch.keypoints_a[1].isnan().any()
    assert batch.box_b.shape == (2, 4) and batch.box_a is None and batch.name == ("x", "y")
    none = one._replace(keypoints_a=torch.zeros(0, 2), keypoints_b=torch.zeros(0, 2))
    empty = collate_pairs([none]).keypoints_a
    assert empty is not None and empty.shape == (1, 0, 2)
    assert collate_pairs([one, one._replace(keypoints_b=None)]).keypoints_b is None


def check_split(library: Library) -> None:
    training, held_out = library.split()
    assert training.stamps and held_out.stamps
    assert len(training.backgrounds) >= 2 and len(held_out.backgrounds) >= 2
    assert not {s.name for s in training.stamps} & {s.name for s in held_out.stamps}
    assert not {b.name for b in training.backgrounds} & {b.name for b in held_out.backgrounds}


def test_fallback_library(fallback: Library):
    check_split(fallback)
    for stamp in fallback.stamps:
        assert stamp.rgba.dtype == np.uint8 and stamp.rgba.shape[2] == 4 and max(stamp.rgba.shape[:2]) <= 192
        assert 0.2 < (stamp.rgba[..., 3] > 127).mean() < 0.95, stamp.name


def test_stamps_library():
    if not (DATA / "stamps" / "index.json").is_file():
        pytest.skip(f"no stamps in {DATA}; set COSEGFLOW_DATA")
    library = load_library(DATA)
    check_split(library)
    assert len(library.stamps) > 100


def test_debian_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "usr/share/tuxpaint/stamps/animals/birds"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "c_mirror", "drawing"):
        rgba = rng.integers(0, 256, (100, 120, 4), dtype=np.uint8)
        rgba[..., 3] = 0
        rgba[20:80, 20:100, 3] = 255
        if name == "drawing":
            rgba[..., :3] = 200
        Image.fromarray(rgba).save(folder / f"{name}.png")
    library = load_library(tmp_path)
    assert {Path(s.name).stem for s in library.stamps} == {"a", "b", "c"}
    assert {s.category for s in library.stamps} == {"animals/birds"}
    check_split(library)
    monkeypatch.setenv("COSEGFLOW_DATA", str(tmp_path))
    assert load_library().origin == library.origin


def test_data_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataNotFoundError, match="no stamps there"):
        load_library(tmp_path)
    monkeypatch.setenv("COSEGFLOW_DATA", str(tmp_path / "nowhere"))
    if not Path("/usr/share/tuxpaint/stamps").is_dir():
        assert "scikit-image" in load_library().origin


def test_held_out_file_of_two_categories_is_on_one_side(tmp_path: Path):
    root = tmp_path / "stamps" / "stamps"
    root.mkdir(parents=True)
    names = [f"{i}.png" for i in range(7)]
    for name in names:
        Image.new("RGBA", (90, 90), (200, 100, 50, 255)).save(root / name)
    index = {"x": [{"file": n} for n in names[:5]], "y": [{"file": n} for n in names[2:]]}
    (tmp_path / "stamps" / "index.json").write_text(json.dumps(index))
    sides: dict[str, set[bool]] = {}
    for stamp in load_library(tmp_path).stamps:
        sides.setdefault(stamp.name, set()).add(stamp.held_out)
    assert all(len(side) == 1 for side in sides.values())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "I;16", "1", "CMYK"])
def test_photographs_of_every_mode(tmp_path: Path, mode: str):
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
    deep = mode == "I;16"
    picture = Image.fromarray(ramp.astype(np.uint16) * 257) if deep else Image.fromarray(ramp).convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture.save(path)
    image = read_photograph(path)
    assert image.shape == (3, 30, 40) and image.dtype == torch.float32 and image.is_contiguous()
    assert float(image.min()) >= 0 and float(image.max()) <= 1
    if mode not in ("1", "P"):
        torch.testing.assert_close(image[0, 3], torch.from_numpy(ramp[3]).float() / 255, atol=0.02, rtol=0)


def test_exif_orientation_and_transparency(tmp_path: Path):
    picture = Image.new("RGB", (40, 20))
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    picture.save(tmp_path / "turned.png", exif=exif)
    image = read_photograph(tmp_path / "turned.png")
    assert image.shape == (3, 40, 20) and float(image[0, 0, -1]) == 1.0
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert float(read_photograph(tmp_path / "clear.png").min()) == 1.0


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_photographs_are_decoded_at_a_reduced_size(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch):
    """20 megapixels, held upright by EXIF."""
    ramp = np.broadcast_to(np.linspace(0, 255, 5400).astype(np.uint8), (3700, 5400))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp).convert(mode).save(tmp_path / "x.jpg", exif=exif)
    decoded = []
    to_rgb = photographs._to_rgb
    monkeypatch.setattr(photographs, "_to_rgb", lambda picture: decoded.append(picture.size) or to_rgb(picture))
    pixels = read_reduced(tmp_path / "x.jpg", 360)
    assert pixels.shape == (525, 360, 3) and pixels.dtype == np.uint8
    assert decoded == [(925, 1350)]  # libjpeg left out 15 of 16 pixels
    expected = np.linspace(0, 255, 525)[:, None, None]  # to the right became downwards
    assert np.abs(pixels - expected).max() < 4
    if mode == "RGB":
        image = read_photograph(tmp_path / "x.jpg")
        assert image.shape == (3, 5400, 3700) and abs(float(image[0, 2700, 100]) - 0.5) < 0.02


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "P", "L"])
def test_reduced_photographs_are_as_those_of_full_size(tmp_path: Path, mode: str):
    ramp = np.tile(np.linspace(0, 255, 90).astype(np.uint8), (60, 1))
    picture = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    picture.save(tmp_path / "x.png")
    whole = read_photograph(tmp_path / "x.png")
    small = torch.from_numpy(read_reduced(tmp_path / "x.png", 20).copy()).permute(2, 0, 1).float() / 255
    assert small.shape == (3, 20, 30)
    torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(whole, 3), atol=0.02, rtol=0)
    same = read_reduced(tmp_path / "x.png", 60)
    torch.testing.assert_close(torch.from_numpy(same.copy()).permute(2, 0, 1) / 255, whole, atol=0.003, rtol=0)


def test_masks_of_every_kind(tmp_path: Path):
    truth = np.zeros((20, 30), dtype=bool)
    truth[5:12, 4:20] = True
    byte = truth.astype(np.uint8)
    palette = Image.fromarray(byte, "P")
    palette.putpalette([255, 255, 255, 255, 0, 0])
    for name, picture in (
        ("zero-one", Image.fromarray(byte)),
        ("zero-255", Image.fromarray(byte * 255)),
        ("label-13", Image.fromarray(byte * 13)),
        ("bit", Image.fromarray(truth)),
        ("deep", Image.fromarray(np.where(truth, 65535, 20000).astype(np.uint16))),  # the ground is below half
        ("soft", Image.fromarray(np.where(truth, 140, 100).astype(np.uint8))),
        ("colour", Image.fromarray(np.stack((byte * 255, byte * 0, byte * 0), -1))),
        ("palette", palette),
        ("opaque", Image.merge("LA", (Image.fromarray(byte * 255), Image.new("L", (30, 20), 255)))),
    ):
        picture.save(tmp_path / f"{name}.png")
        found = read_mask(tmp_path / f"{name}.png", "x")
        assert found.dtype == np.bool_ and np.array_equal(found, truth), name
    Image.fromarray(byte * 255).save(tmp_path / "lossy.jpg", quality=95)
    assert (read_mask(tmp_path / "lossy.jpg", "x") != truth).sum() < 12
    exif = Image.Exif()
    exif[0x0112] = 6  # as for photographs: shown rotated by 90 degrees clockwise
    Image.fromarray(byte * 255).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "turned.png", "x"), np.rot90(truth, -1))
    Image.new("L", (30, 20)).save(tmp_path / "empty.png")
    assert not read_mask(tmp_path / "empty.png", "x").any()


def test_flow_is_known_where_both_components_are(tmp_path: Path):
    flow = np.array([[[1.5, 1e9, 2, np.nan]], [[-3, 1, -1e10, 0]]], dtype="<f4")
    head = np.float32(202021.25).tobytes() + np.array([4, 1], "<i4").tobytes()
    (tmp_path / "x.flo").write_bytes(head + flow.transpose(1, 2, 0).tobytes())
    found, known = read_flo(tmp_path / "x.flo", "x")
    assert known.tolist() == [[True, False, False, False]]
    assert found.tolist() == [[[1.5, 0, 0, 0]], [[-3, 0, 0, 0]]]


def test_masks_of_another_size():
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, 10:] = True
    path = Path("m.png")
    assert fit_mask(mask, (10, 20), path, "x") is mask
    for size in ((20, 40), (5, 10), (33, 67)):  # 33 x 67 is the nearest that a reduction to 33 rows has
        fitted = fit_mask(mask, size, path, "x")
        assert fitted.shape == size and fitted[:, size[1] // 2 + 1 :].all() and not fitted[:, : size[1] // 2].any()
    with pytest.raises(DatasetError, match=r"x: m.png: the mask has 20 x 10 pixels and the photograph 10 x 20"):
        fit_mask(mask, (20, 10), path, "x")


def test_the_limit_of_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow warns from 89 megapixels on and refuses twice as many; below the limit here nothing is printed."""
    Image.new("L", (40, 30)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photograph(tmp_path / "x.png").shape == (3, 30, 40)
    monkeypatch.setattr(photographs, "LARGEST_PIXELS", 1100)
    with pytest.raises(PhotographError, match=r"x.png: 40 x 30 pixels; at most 178 megapixels are read"):
        read_photograph(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(PhotographError, match=r"x.png: too many pixels; at most 178 megapixels"):
        read_photograph(tmp_path / "x.png")


def test_bad_photographs(tmp_path: Path):
    Image.new("RGB", (15, 400)).save(tmp_path / "tiny.png")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:2000])
    for name, message in (
        ("tiny.png", "15 x 400 pixels; need at least 16"),
        ("text.jpg", "not an image"),
        ("empty.png", "not an image"),
        ("cut.png", "damaged"),
        ("nothing.png", "no such file"),
        ("x" * 300 + ".png", "no such file"),
        (".", "is a folder"),
    ):
        with pytest.raises(PhotographError, match=message) as caught:
            read_photograph(tmp_path / name, "A")
        assert str(caught.value).startswith("A: ") and "\n" not in str(caught.value)

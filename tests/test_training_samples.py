"""Training samples: functions of (seed, number), photographs of one category, augmentation, the bounded cache."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA

pytest.importorskip("skimage", reason="the joint extra is not installed")

from PIL import Image
from torch.utils.data import DataLoader

from cosegflow.data import DatasetError, TrainingSample, TrainingSamples, collate_training, open_training_source
from cosegflow.data.augment import change_colours, random_crop, square_view
from cosegflow.data.cache import PhotographCache
from cosegflow.data.mixed import MixedSource
from cosegflow.data.photograph_source import PhotographSource

CATEGORIES = {"cat [1]": 4, "dog": 3, "two words": 5}


def photographs(root: Path, counts: dict[str, int]) -> Path:
    """Each photograph is of one grey level of its own, so that a sample tells which ones it shows."""
    level = 10
    for category, count in counts.items():
        (root / category).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (50 + i, 40), (level, level, level)).save(root / category / f"{i}.png")
            level += 15
    return root


def level(image: torch.Tensor) -> int:
    return round(float(image.mean()) * 255)


def same(x: TrainingSample, y: TrainingSample) -> bool:
    pairs = zip((x.image_a, x.image_b, x.image_c, x.ground), (y.image_a, y.image_b, y.image_c, y.ground), strict=True)
    equal = all((a is None and b is None) or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)
    return equal and x.category == y.category and x.number == y.number


def test_samples_depend_on_seed_and_number_only(tmp_path: Path):
    root = photographs(tmp_path, CATEGORIES)
    one, two = (TrainingSamples(open_training_source("folder", root), seed=7, size=32, triplets=True) for _ in range(2))
    numbers = [0, 5, 11, 12, 40, 10**6]
    forward = [one[n] for n in numbers]
    torch.manual_seed(99)
    np.random.seed(3)
    backward = [two[n] for n in reversed(numbers)][::-1]
    assert all(same(x, y) for x, y in zip(forward, backward, strict=True))
    assert all(same(x, one[n]) for x, n in zip(forward, numbers, strict=True))  # also from the cache
    other = TrainingSamples(open_training_source("folder", root), seed=8, size=32, triplets=True)
    assert not any(torch.equal(x.image_a, other[n].image_a) for x, n in zip(forward, numbers, strict=True))
    assert not torch.equal(forward[0].image_a, forward[3].image_a)


def test_workers_give_the_same_samples(tmp_path: Path):
    samples = TrainingSamples(open_training_source("folder", photographs(tmp_path, CATEGORIES)), seed=1, size=16)
    loader = DataLoader(samples, batch_size=4, sampler=range(3, 11), num_workers=2, collate_fn=collate_training)
    batches = list(loader)
    assert [batch.number.tolist() for batch in batches] == [[3, 4, 5, 6], [7, 8, 9, 10]]
    for batch in batches:
        assert batch.image_a.shape == (4, 3, 16, 16) and batch.number.dtype == torch.int64 and batch.image_c is None
        for i, number in enumerate(batch.number.tolist()):
            assert torch.equal(batch.image_a[i], samples[number].image_a)
            assert torch.equal(batch.ground[i], samples[number].ground)
            assert batch.category[i] == samples[number].category


def test_a_triplet_is_of_one_category_and_the_ground_is_of_another(tmp_path: Path):
    root = photographs(tmp_path, CATEGORIES)
    samples = TrainingSamples(open_training_source("folder", root), seed=0, size=16, triplets=True, augment=False)
    levels = {"cat [1]": range(10, 70, 15), "dog": range(70, 115, 15), "two words": range(115, 190, 15)}
    firsts = []
    for number in range(3 * samples.epoch_length):
        sample = samples[number]
        assert sample.image_c is not None and isinstance(sample.category, str)
        seen = [level(image) for image in (sample.image_a, sample.image_b, sample.image_c)]
        assert len(set(seen)) == 3 and all(value in levels[sample.category] for value in seen)
        assert level(sample.ground) not in levels[sample.category]
        firsts.append(seen[0])
    count = samples.epoch_length
    assert count == len(samples) == 12
    passes = [firsts[i * count : (i + 1) * count] for i in range(3)]
    assert all(len(set(one)) == count for one in passes)  # each photograph once as a in a pass
    assert passes[0] != passes[1] != passes[2]


def test_one_category_only(tmp_path: Path):
    """The ground is then another photograph of it, or one of scikit-image's where there is none."""
    source = open_training_source("folder", photographs(tmp_path / "four", {"horse": 4}))
    samples = TrainingSamples(source, seed=0, size=16, augment=False)
    for number in range(12):
        sample = samples[number]
        assert len({level(image) for image in (sample.image_a, sample.image_b, sample.ground)}) == 3
    source = open_training_source("folder", photographs(tmp_path / "two", {"horse": 2}))
    sample = TrainingSamples(source, seed=0, size=16, augment=False)[0]
    assert float(sample.ground.std()) > 0.01  # no photograph of one grey level


def test_categories_with_too_few_photographs(tmp_path: Path):
    root = photographs(tmp_path, {"full": 3, "pair": 2, "one": 1})
    (root / "empty").mkdir()
    source = open_training_source("folder", root)
    with pytest.warns(UserWarning, match=r"folder: left out, fewer than 2 photographs: empty \(0\), one \(1\)") as told:
        samples = TrainingSamples(source, seed=0, size=16)
    assert len(told) == 1 and samples.epoch_length == 5
    with pytest.warns(UserWarning, match="fewer than 3 photographs"):
        assert TrainingSamples(source, seed=0, size=16, triplets=True).epoch_length == 3
    with pytest.raises(DatasetError, match=r"a category of at least 2 photographs, got one \(1\)"):
        TrainingSamples(PhotographSource("folder", {"one": [root / "one/0.png"]}), seed=0)
    with pytest.raises(DatasetError, match="got no category"):
        TrainingSamples(PhotographSource("folder", {}), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrainingSamples(PhotographSource("x", {"full": source.categories["full"]}), seed=0)


def test_bad_arguments_and_damaged_photographs(tmp_path: Path):
    root = photographs(tmp_path, {"a": 3})
    source = open_training_source("folder", root)
    with pytest.raises(ValueError, match="seed: need 0 or more, got -1"):
        TrainingSamples(source, seed=-1)
    with pytest.raises(ValueError, match="size: need at least 16 pixels, got 8"):
        TrainingSamples(source, seed=0, size=8)
    samples = TrainingSamples(source, seed=0, size=16)
    with pytest.raises(IndexError):
        samples[-1]
    with pytest.raises(ValueError, match="at least one sample"):
        collate_training([])
    for i in range(3):
        (root / f"a/{i}.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"folder: .*/a/\d.png: not an image") as caught:
        samples[0]
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError) as from_worker:
        list(DataLoader(samples, batch_size=1, sampler=[0], num_workers=1, collate_fn=collate_training))
    assert str(from_worker.value) == str(caught.value)


def test_crops_have_a_corner_in_the_first_and_one_in_the_last_quarter():
    rng = np.random.default_rng(0)
    crops = [random_crop(rng, (80, 200)) for _ in range(300)]
    assert all(0 <= c.left <= 50 and 150 <= c.right <= 200 and 0 <= c.top <= 20 and 60 <= c.bottom <= 80 for c in crops)
    assert min(c.left for c in crops) < 2 and max(c.left for c in crops) > 48


def test_views():
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    image = square_view(ramp, 32)
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32 and image.is_contiguous()
    assert float(image[0, 0, 0]) < 0.05 and float(image[0, 0, -1]) > 0.95
    assert torch.equal(square_view(ramp, 32, mirror=True), image.flip(-1))
    jittered = change_colours(np.random.default_rng(0), image)
    assert float(jittered.min()) >= 0 and float(jittered.max()) <= 1
    assert 0 < float((jittered - image).abs().max()) < 0.2


def test_the_mirror_image_is_of_the_whole_sample(tmp_path: Path):
    (tmp_path / "a").mkdir()
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], 48, 0).repeat(3, 2)
    for i in range(3):
        Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / f"a/{i}.png")
    samples = TrainingSamples(open_training_source("folder", tmp_path), seed=0, size=16, triplets=True)
    signs = []
    for number in range(40):
        sample = samples[number]
        assert sample.image_c is not None
        slopes = [float(x[..., -1].mean() - x[..., 0].mean()) for x in (sample.image_a, sample.image_b, sample.image_c)]
        assert len({slope > 0 for slope in slopes}) == 1
        signs.append(slopes[0] > 0)
    assert 8 < sum(signs) < 32


def test_the_cache_is_bounded(tmp_path: Path):
    for i in range(5):
        Image.new("RGB", (60, 40), (i, i, i)).save(tmp_path / f"{i}.png")
    cache = PhotographCache(limit=3 * 20 * 30 * 3)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path in (*paths[:3], paths[0], paths[3]):  # the second is the least recently used one then
        assert cache.read(path, 20, "x").shape == (20, 30, 3)
    assert cache.used == 3 * 20 * 30 * 3
    for path in paths:
        path.unlink()
    assert cache.read(paths[0], 20, "x")[0, 0, 0] == 0
    with pytest.raises(DatasetError, match=r"1.png: no such file"):
        cache.read(paths[1], 20, "x")
    copy = pickle.loads(pickle.dumps(cache))
    assert copy.used == 0 and copy.limit == cache.limit


def test_stamps_as_a_source():
    samples = TrainingSamples(open_training_source("stamps", "none"), seed=2, size=32, triplets=True)
    sample, again = samples[10**5], samples[10**5]
    assert same(sample, again) and sample.image_c is not None and sample.image_c.shape == (3, 32, 32)
    assert not torch.equal(sample.image_a, sample.image_b) and not torch.equal(sample.image_b, sample.image_c)
    held_out = open_training_source("stamps", "none", split="test")
    assert held_out.epoch_length != samples.epoch_length


def test_sources_in_turn(tmp_path: Path):
    """Stamps and photographs: each sample is that of its source, under its own number."""
    stamps = open_training_source("stamps", "none")
    folder = open_training_source("folder", photographs(tmp_path, {**CATEGORIES, "pair": 2}))
    with pytest.warns(UserWarning, match="fewer than 3 photographs"):
        samples = TrainingSamples(MixedSource([stamps, folder]), seed=4, size=16, triplets=True)
    alone = [TrainingSamples(source, seed=4, size=16, triplets=True) for source in (stamps, folder.with_at_least(3))]
    for number in (0, 1, 6, 7, 2001):
        assert same(samples[number], alone[number % 2][number // 2]._replace(number=number))
    assert samples.epoch_length == 2 * max(source.epoch_length for source in alone)
    mixed = TrainingSamples(MixedSource([stamps, folder]), seed=4, size=16, truth=True)
    assert mixed[2].truth is not None
    with pytest.raises(DatasetError, match="folder: has no exact flow"):
        mixed[3]
    with pytest.raises(DatasetError, match="at least 2 photographs"):
        MixedSource([stamps, PhotographSource("x", {})]).with_at_least(2)


REAL = (
    ("caltech-101", "Caltech-101", None, 310),
    ("pf-willow", "PF-WILLOW", None, 10),
    ("pf-pascal", "PF-PASCAL", None, 2),
    ("weizmann-horse", "Weizmann-horse", None, 16),
    ("tss", "TSS", None, 4),
    ("caltech-101", "Caltech-101", "test", 310),
)


@pytest.mark.parametrize(("name", "folder", "split", "count"), REAL)
def test_real_sources(name: str, folder: str, split: str | None, count: int):
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {folder} in {DATA}; set COSEGFLOW_DATA")
    samples = TrainingSamples(open_training_source(name, DATA / folder, split=split), seed=0, size=48)
    assert samples.epoch_length == count
    sample = samples[0]
    assert sample.image_a.shape == (3, 48, 48) and not torch.equal(sample.image_a, sample.image_b)


def test_training_photographs_that_no_test_pair_shows():
    if not (DATA / "Caltech-101").is_dir():
        pytest.skip(f"no Caltech-101 in {DATA}; set COSEGFLOW_DATA")
    with pytest.raises(DatasetError, match="at least 2 photographs"):  # the sample has the test pairs' only
        TrainingSamples(open_training_source("caltech", DATA / "Caltech-101", split="train"), seed=0)

"""`cosegflow ablate`: the rows, the table, the evaluation's numbers, resuming, failures, Ctrl-C."""

import argparse
import json
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("lightning", reason="the joint extra is not installed")

from fit_runs import draw_folder

from cosegflow import ablate_command, cli
from cosegflow.ablation import run as run_module
from cosegflow.ablation import schedule
from cosegflow.ablation.composed import ComposedCache
from cosegflow.ablation.errors import AblationError
from cosegflow.ablation.evaluate import QUICK, Constants, evaluate_composed, evaluate_photographs, mask_agreement
from cosegflow.ablation.job import FINISHED_NAME, JOB_NAME, LOG_NAME, RESULT_NAME, Job, read_job
from cosegflow.ablation.rows import LENT, all_rows, choose_rows, configuration, plain_settings
from cosegflow.ablation.subjects import TrainedSubject, ZeroShotSubject
from cosegflow.ablation.table import COLUMNS, Measurement, read_table, write_table
from cosegflow.configuration import ConfigurationError, differences
from cosegflow.data.composer import ComposedPairs, compose_pair
from cosegflow.data.sources import Library, load_library
from cosegflow.joint.checkpoint import LAST_NAME, load_checkpoint
from cosegflow.joint.config import FitConfig, LossWeights
from cosegflow.joint.fit import fit
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.predict import Prediction, predict, predict_rounds

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = ModelConfig(backbone="tiny", image_size=64)
TINY = [
    "model.backbone=tiny", "model.image_size=64", "data.size=64", "data.batch=2", "data.workers=0",
    "train.contrast_size=32", "train.accelerator=cpu", "train.steps=3", "train.checkpoint_every=1",
]  # fmt: skip
SMALL = Constants(size=64, pairs=3, clutter=(0, 3), clutter_pairs=2, rounds=3)


@pytest.fixture(scope="module")
def held_out() -> Library:
    return load_library("none").split()[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, held_out: Library) -> ComposedCache:
    return ComposedCache(tmp_path_factory.mktemp("cache"), held_out, 64)


@pytest.fixture
def no_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COSEGFLOW_DATA", raising=False)


def arguments(out: Path, *options: object) -> list[str]:
    sets = [word for setting in TINY for word in ("--set", setting)]
    return ["ablate", "--out", str(out), "--data", "none", "--quick", "--steps", "3", *sets, *map(str, options)]


def jobs(out: Path, *options: object) -> list[Job]:
    parser = argparse.ArgumentParser()
    ablate_command.add_options(parser)
    return ablate_command.make_jobs(parser.parse_args(arguments(out, *options)[1:]))


def measurement(**values: Any) -> Measurement:
    plain = Measurement(
        row="joint", seed=1, dataset="stamps", metric="pck@0.1", condition="clutter=4,masks=0", value=0.1 + 0.2,
        pairs=48, settings={"train.steps": 5, "data.dataset": 'a,"b"\n'}, digest="0123456789ab", date="2026-01-01",
        commit="c0ffee", modified=False, version="1", torch="2.13", cpu="Any CPU, 2 GHz", threads=2,
    )  # fmt: skip
    return replace(plain, **values)


def test_rows_differ_from_the_default_as_named(tmp_path: Path):
    default = configuration(all_rows()[0], {}, None, Path("run"), 0)
    assert differences(FitConfig(), default) == ["data.validation"], "no choice of checkpoints by a held-out truth"
    names = [row.name for row in all_rows()]
    assert len(set(names)) == len(names)
    weights = vars(LossWeights())
    assert {f"without {name}" for name, weight in weights.items() if weight > 0} <= set(names)
    for row in all_rows():
        config = configuration(row, {}, None, Path("run"), 0)
        changed = differences(default, config)
        for name, value in row.settings.items():
            assert plain_settings(config)[name] == value
            assert name in changed or plain_settings(default)[name] == value
        assert set(changed) <= set(row.settings)
        assert bool(changed) == (row.name not in ("joint", "untrained", "zero-shot")), row.name
    assert [row.name for row in all_rows() if row.main] == ["joint", "match-only", "coseg-only", "supervised"]


def test_choosing_rows():
    assert [row.name for row in choose_rows("without-gating, joint")] == ["joint", "without gating"]
    assert [row.name for row in choose_rows("main")][-2:] == ["untrained", "zero-shot"]
    assert len(choose_rows("all")) == len(all_rows())
    with pytest.raises(AblationError, match=r"^--rows: 'mach-only' is no row; did you mean 'match-only'\?$"):
        choose_rows("joint,mach-only")


def test_bad_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], no_photographs: None):
    out = tmp_path / "out"
    for options, message in (
        (["--rows", "joint,jiont"], "--rows: 'jiont' is no row; did you mean 'joint'?"),
        (["--set", "train.step=3"], "--set: train.step is no setting; did you mean 'train.steps'?"),
        (["--set", "train.steps"], "--set: need SECTION.NAME=VALUE, got 'train.steps'"),
        (["--set", "train.level=x"], "--set train.level: need a number, got 'x'"),
        (["--set", "train.seed=3"], "--set: train.seed is chosen for each run"),
        (["--data", str(tmp_path / "no")], "--data: need an existing folder or 'none'"),
        (["--data", str(tmp_path)], "no stamps there"),
    ):
        assert cli.main(["ablate", "--out", str(out), *options]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cosegflow")]
        assert len(errors) == 1 and message in errors[0], errors
    assert not out.exists()


def test_table_round_trip(tmp_path: Path):
    rows = [
        measurement(),
        measurement(modified=None, dataset="", metric="steps", value=200.0, pairs=None, condition=""),
        measurement(modified=True, value=1e-17),
        measurement(value=math.nan),
    ]
    write_table(tmp_path / "t.csv", rows)
    found = read_table(tmp_path / "t.csv")
    assert found[:3] == rows[:3] and math.isnan(found[3].value)
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    with pytest.raises(AblationError, match="is inf"):
        write_table(tmp_path / "t.csv", [measurement(value=math.inf)])
    assert len(read_table(tmp_path / "t.csv")) == 4, "the old file is whole"
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text().replace("1e-17", "much"))
    with pytest.raises(AblationError, match=r"t\.csv, line \d+: is not a measurement"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(AblationError, match="no table of the ablation"):
        (tmp_path / "u.csv").write_text("a,b\n1,2\n")
        read_table(tmp_path / "u.csv")
    with pytest.raises(AblationError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


def test_clutter_is_exact_and_changes_nothing_else(held_out: Library):
    def pair(clutter: int | None):
        return compose_pair(np.random.default_rng(3), held_out, size=(64, 64), clutter=clutter)

    none, some, more = pair(0), pair(2), pair(6)
    for other in (some, more):
        for name in ("mask_a", "mask_b", "flow_ab", "valid_ab"):
            assert torch.equal(getattr(none, name), getattr(other, name))
        inside = none.mask_a.expand(3, -1, -1)
        changed = (none.image_a - other.image_a).abs()
        assert float(changed[~inside].mean()) > 2 * float(changed[inside].mean()) > 0, "below the object"
    assert float((none.image_a - more.image_a).abs().mean()) > float((none.image_a - some.image_a).abs().mean())


def test_composed_pairs_are_kept_exactly(cache: ComposedCache, held_out: Library, monkeypatch: pytest.MonkeyPatch):
    first = list(cache.load(2, 3))
    direct = ComposedPairs(held_out, 2, seed=1, size=(64, 64), truth=True, clutter=3)
    monkeypatch.setattr(ComposedPairs, "__getitem__", lambda *_: pytest.fail("they were there"))
    again = list(cache.load(2, 3))
    monkeypatch.undo()
    for i, (one, other) in enumerate(zip(first, again, strict=True)):
        for name in ("image_a", "image_b", "mask_a", "mask_b", "flow_ab", "valid_ab"):
            assert torch.equal(getattr(one, name), getattr(other, name))
            torch.testing.assert_close(getattr(one, name), getattr(direct[i], name), rtol=0, atol=1e-7)
        assert one.category == direct[i].category
    path = cache.path(2, 3)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AblationError, match="is damaged; remove it"):
        list(cache.load(2, 3))
    path.unlink()


class Oracle:
    """Knows the truth of the pairs of a cache, by their first photograph; `wrong` moves the flow of round 0."""

    masks, refines, used = True, True, 1
    device = torch.device("cpu")

    def __init__(self, cache: ComposedCache, wrong: float = 0.0) -> None:
        sets = [cache.load(SMALL.pairs, None), *(cache.load(SMALL.clutter_pairs, n) for n in SMALL.clutter)]
        self.known = {pair.image_a.numpy().tobytes(): pair for pairs in sets for pair in pairs}
        self.wrong = wrong

    def rounds(self, image_a: Tensor, image_b: Tensor, count: int) -> list[Prediction]:
        pair = self.known[image_a[0].numpy().tobytes()]
        flows = [pair.flow_ab + (self.wrong if k == 0 else 0.0) for k in range(count + 1)]
        masks = pair.mask_a[None].float(), pair.mask_b[None].float()
        return [Prediction(flow[None], *masks, torch.ones_like(masks[0])) for flow in flows]


def by_name(values: Sequence[Any]) -> dict[tuple[str, str], float]:
    return {(value.metric, value.condition): value.value for value in values}


def test_an_oracle_is_perfect(cache: ComposedCache):
    values = evaluate_composed(Oracle(cache, wrong=1000.0), cache, SMALL)  # type: ignore[arg-type]
    found = by_name(values)
    for condition in ("", "rounds=1", "rounds=3", "clutter=0,masks=1", "clutter=3,masks=1"):
        assert [found[f"pck@{a}", condition] for a in ("0.05", "0.1", "0.15")] == [1.0, 1.0, 1.0]
        assert found["end_point_error", condition] == 0.0 and found["jaccard", condition] == 1.0
        assert found["consistency", condition] >= 0.97, "but for half covered pixels of the edge"
    for condition in ("rounds=0", "clutter=0,masks=0", "clutter=3,masks=0"):
        assert found["pck@0.15", condition] == 0.0
        assert found["end_point_error", condition] == pytest.approx(1000 * 2**0.5, rel=1e-5)
    assert {value.pairs for value in values if "clutter" in value.condition} == {2}
    assert {value.pairs for value in values if "clutter" not in value.condition} == {3}


def test_consistency_on_known_masks():
    """A shift by 2 pixels; the mask of b is right in one half of the object."""
    flow, valid = torch.zeros(1, 2, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool)
    flow[:, 0] = 2.0
    valid[:, 2:6, 1:5] = True
    mask_a, mask_b = valid.float(), torch.zeros(1, 8, 8)
    mask_b[:, 2:6, 3:5] = 1.0
    found = Prediction(flow, mask_a, mask_b, mask_a)
    assert mask_agreement(found, flow, valid).tolist() == [0.5]
    assert mask_agreement(found._replace(mask_b=mask_a.roll(2, 2)), flow, valid).tolist() == [1.0]
    assert mask_agreement(found._replace(mask_a=1 - mask_a), flow, valid).tolist() == [0.5]
    assert bool(mask_agreement(found, flow, torch.zeros_like(valid)).isnan().all())


def test_all_rounds_from_one_pass(held_out: Library):
    pair = ComposedPairs(held_out, 1, seed=1, size=(72, 56))[0]
    model = JointModel(MODEL).eval()
    rounds = predict_rounds(model, pair.image_a[None], pair.image_b[None], 3)
    assert len(rounds) == 4
    for count in (0, 2):
        model.config = replace(MODEL, rounds=count)
        for value, wanted in zip(rounds[count], predict(model, pair.image_a[None], pair.image_b[None]), strict=True):
            torch.testing.assert_close(value, wanted)


def test_what_a_model_cannot_do_is_left_out(cache: ComposedCache):
    model = JointModel(MODEL)
    subjects = {
        "joint": TrainedSubject(model),
        "match-only": TrainedSubject(model, masks=False),
        "zero-shot": ZeroShotSubject(MODEL),
    }
    found = {name: by_name(evaluate_composed(s, cache, SMALL)) for name, s in subjects.items()}  # type: ignore[arg-type]
    assert all(math.isfinite(value) for values in found.values() for value in values.values())
    plain = {"pck@0.05", "pck@0.1", "pck@0.15", "end_point_error"}
    clutter = {f"clutter={n},masks={m}" for n in (0, 3) for m in (0, 1)}
    for name, masks in (("joint", True), ("match-only", False), ("zero-shot", False)):
        assert {m for m, c in found[name] if not c} == plain | ({"jaccard", "consistency"} if masks else set())
    assert {c for _, c in found["joint"]} == {"", *clutter, *(f"rounds={k}" for k in range(4))}
    assert {c for _, c in found["match-only"]} == {c for _, c in found["zero-shot"]}
    assert {c for _, c in found["zero-shot"]} == {"", "clutter=0,masks=0", "clutter=3,masks=0"}
    joint = found["joint"]
    assert joint["jaccard", ""] == joint["jaccard", "rounds=2"], "as the configuration uses it"


def test_photographs_as_eval_gives_them():
    from conftest import DATA

    folder = DATA / "Weizmann-horse"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    model = JointModel(MODEL)
    values = evaluate_photographs(TrainedSubject(model), "weizmann-horse", folder, 2)
    assert [(v.metric, v.pairs) for v in values] == [("precision", 2), ("jaccard", 2)]
    assert all(0 <= value.value <= 1 for value in values)
    assert evaluate_photographs(TrainedSubject(model, masks=False), "weizmann-horse", folder, 2) == []


def test_a_job_is_written_and_read(tmp_path: Path):
    (job,) = jobs(tmp_path, "--rows", "joint")
    assert read_job(job.write()) == job
    assert job.constants == replace(QUICK, size=64) and job.folder == tmp_path / "quick" / "runs" / "joint-0"
    assert job.settings["train.steps"] == 3 and "data.root" not in job.settings and "out" not in job.settings
    (other,) = jobs(tmp_path, "--rows", "joint", "--set", "train.level=0.5")
    assert other.digest != job.digest and replace(job, seed=1).digest == job.digest
    assert replace(job, constants=SMALL).digest != job.digest
    assert replace(job, constants=SMALL).training_digest == job.training_digest, "evaluated anew, not trained anew"
    photographs = draw_folder(tmp_path / "photographs")
    seen = [jobs(tmp_path, "--rows", "joint", "--set", f"data.photographs={photographs}")[0].digest for _ in range(2)]
    next(photographs.glob("*/*")).unlink()
    seen += [jobs(tmp_path, "--rows", "joint", "--set", f"data.photographs={photographs}")[0].digest]
    assert seen[0] == seen[1] != seen[2] != job.digest, "which photographs there are decides what is trained"
    (job.folder / "kept").touch()
    job.write()
    assert (job.folder / "kept").is_file()
    other.write()
    assert [path.name for path in job.folder.iterdir()] == [JOB_NAME]
    assert list((tmp_path / "quick" / "old").glob("joint-0-*/kept"))


def test_training_goes_on_from_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A state of step 2 of 3, as a killed run leaves it: one step more; a finished run is not trained again."""
    (job,) = jobs(tmp_path, "--rows", "joint")
    job.write()
    config = job.config
    fit(replace(config, train=replace(config.train, steps=2)))
    for path in (job.folder / "model").iterdir():
        path.unlink()
    (job.folder / "model").rmdir()
    resumed: list[Path | None] = []
    monkeypatch.setattr(run_module, "fit", lambda c, resume: resumed.append(resume) or fit(c, resume))
    spent = run_module.train(job)
    assert resumed == [job.folder / LAST_NAME]
    assert spent["steps"] == 3 and spent["train_seconds"] == pytest.approx(3 * spent["step_seconds"])
    assert run_module.train(job) == spent and len(resumed) == 1
    (job.folder / FINISHED_NAME).unlink()  # killed after its last step
    assert run_module.train(job) == {"steps": 3.0} and len(resumed) == 2
    assert isinstance(load_checkpoint(job.folder), JointModel)


def lines(path: Path) -> list[Measurement]:
    return read_table(path / "quick" / "ablation.csv")


@pytest.mark.timeout(300)
def test_runs_failures_and_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One run has a damaged state: it is reported, the others go on. Mended, only that one is run again."""
    options = arguments(tmp_path, "--rows", "joint,match-only,untrained")
    (job,) = jobs(tmp_path, "--rows", "match-only")
    job.write()
    (job.folder / LAST_NAME).write_bytes(b"damaged")
    assert cli.main(options) == 1
    said = capsys.readouterr()
    assert "match-only-0 failed: resume: " in said.err and "cannot be read as safetensors" in said.err
    assert "joint-0: PCK@.05" in said.out and "pf-willow: not evaluated (--data is none)" in said.out
    before = lines(tmp_path)
    assert {m.row for m in before} == {"joint", "untrained"}
    joint = [m for m in before if m.row == "joint"]
    assert {m.dataset for m in joint} == {"stamps", ""} and all(m.settings["train.steps"] == 3 for m in joint)
    assert {m.metric: m.value for m in joint if not m.dataset}["steps"] == 3.0
    assert all(m.pairs for m in before if m.dataset) and {m.threads for m in joint} == {job.threads}
    assert all("train.steps" not in m.settings for m in before if m.row == "untrained")

    (job.folder / LAST_NAME).unlink()
    log = tmp_path / "quick" / "runs" / "joint-0" / LOG_NAME
    written = log.stat().st_mtime_ns
    assert cli.main(options) == 0
    assert "3 runs, 2 of them in" in capsys.readouterr().out
    after = lines(tmp_path)
    assert after[: len(before)] == before and {m.row for m in after[len(before) :]} == {"match-only", LENT}
    assert log.stat().st_mtime_ns == written


class Recorded(schedule._Process):
    """Remembers the processes."""

    made: list["Recorded"]

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.made.append(self)


@pytest.mark.timeout(200)
def test_ctrl_c_stops_the_children_and_keeps_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """It comes when the short run is done and the long one at work."""
    monkeypatch.setattr(Recorded, "made", [], raising=False)
    monkeypatch.setattr(schedule, "_Process", Recorded)
    said: list[str] = []

    def interrupt(self: schedule.Progress, text: str) -> Iterator[None]:
        said.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(schedule.Progress, "say", interrupt)
    assert cli.main(arguments(tmp_path, "--rows", "joint,zero-shot", "--steps", "100000")) == 130
    assert len(said) == 1 and said[0].startswith("zero-shot-0: PCK@.05")
    assert "interrupted; 1 of 2 runs are in" in capsys.readouterr().err
    assert {m.row for m in lines(tmp_path)} == {"zero-shot"}
    assert len(Recorded.made) == 2 and all(one.process.poll() is not None for one in Recorded.made)


@pytest.mark.timeout(100)
def test_a_run_ends_with_its_parent(tmp_path: Path):
    """Its standard input ends, as after kill -9 of the parent: two must never train in one folder."""
    (job,) = jobs(tmp_path, "--rows", "joint", "--steps", "100000")
    process = schedule._Process(job)
    try:
        process.close()
        assert process.process.wait(60) == 1
    finally:
        process.stop(signal.SIGKILL)
        process.process.wait()


def test_other_settings_keep_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def made(wanted: Sequence[Job], at_once: int, keep: Any) -> list[Any]:
        for job in wanted:
            keep(job, [measurement(row=job.row.name, seed=job.seed, digest=job.digest)])
        return []

    monkeypatch.setattr(schedule, "run_jobs", made)
    options = ("--rows", "joint,match-only", "--seeds", 2)
    assert cli.main(arguments(tmp_path, *options)) == 0
    first = lines(tmp_path)
    assert [(m.row, m.seed) for m in first] == [("joint", 0), ("match-only", 0), ("joint", 1), ("match-only", 1)]
    assert cli.main(arguments(tmp_path, "--rows", "joint", "--set", "train.level=0.5")) == 0
    assert "other settings' results of joint 0; the old file is kept" in capsys.readouterr().out
    second = lines(tmp_path)
    assert [(m.row, m.seed) for m in second] == [("match-only", 0), ("joint", 1), ("match-only", 1), ("joint", 0)]
    (kept,) = (tmp_path / "quick" / "old").glob("ablation-*.csv")
    assert read_table(kept) == first


def test_the_job_file_is_json(tmp_path: Path):
    (job,) = jobs(tmp_path, "--rows", "without-gating")
    content = json.loads(job.write().read_text())
    assert content["row"] == "without-gating" and content["training_digest"] == job.training_digest
    assert not (job.folder / RESULT_NAME).exists()
    with pytest.raises(ConfigurationError, match=r"train\.steps"):
        _ = replace(job, overrides={"train.steps": "x"}).config

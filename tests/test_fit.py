"""`cosegflow fit`: samples by step, losses by sample, validation, precision, clipping, logs, early stopping, errors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="the joint extra is not installed")

from dataclasses import replace

import lightning
import yaml
from fit_runs import TINY, draw_folder, fit_options

from cosegflow import cli
from cosegflow.configuration import ConfigurationError
from cosegflow.data.registry import open_training_source
from cosegflow.data.training import TrainingSamples, collate_training
from cosegflow.joint import fit as fit_module
from cosegflow.joint.checkpoint import BEST_NAME, LAST_NAME, load_checkpoint, load_training_state
from cosegflow.joint.config import IDLE_LOSSES, DataConfig, FitConfig, LossWeights, TrainConfig
from cosegflow.joint.fit import model_of_task
from cosegflow.joint.fit_data import VALIDATION_SEED, FitData, StepBatches, find_photographs
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.module import JointModule
from cosegflow.joint.self_supervision import random_flow

MODEL = ModelConfig(backbone="tiny", image_size=64)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("data") / "photos (1)")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("cosegflow")]
    assert len(lines) == 1, lines
    return lines[0]


def test_step_batches_are_a_function_of_the_step():
    whole = list(StepBatches(6, 4))
    assert whole[5] == [20, 21, 22, 23]
    assert list(StepBatches(6, 4, first=4)) == whole[4:] and len(StepBatches(6, 4, first=4)) == 6
    ranks = [list(StepBatches(6, 2, rank=r, world=2)) for r in (0, 1)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole


def test_random_flow_is_smooth_and_a_function_of_seed_and_number():
    flow = random_flow(torch.tensor([3, 4, 5]), (48, 64), seed=1)
    assert flow.shape == (3, 2, 48, 64) and bool(torch.isfinite(flow).all())
    assert float((flow[..., 1:] - flow[..., :-1]).abs().max()) < 2.5
    torch.manual_seed(7)
    assert torch.equal(random_flow(torch.tensor([5]), (48, 64), seed=1)[0], flow[2])
    assert not torch.equal(random_flow(torch.tensor([5]), (48, 64), seed=2)[0], flow[2])
    assert not torch.equal(flow[0], flow[1])


def test_losses_do_not_depend_on_how_samples_are_batched(photographs: Path):
    """The mean of two half batches is the whole batch: what DDP averages is what one process computes."""
    source = open_training_source("folder", photographs)
    samples = TrainingSamples(source, seed=0, size=64, triplets=True)
    weights = LossWeights(**dict.fromkeys(vars(LossWeights()), 1.0))
    module = JointModule(MODEL, TrainConfig(weights=weights, contrast_size=32))

    def terms(numbers: range) -> dict[str, torch.Tensor]:
        batch = collate_training([samples[n] for n in numbers])
        return module.loss_terms(batch, module.model(batch.image_a, batch.image_b, 1))

    with torch.no_grad():
        whole, first, second = terms(range(4)), terms(range(2)), terms(range(2, 4))
    assert set(whole) == set(vars(weights))
    for name, value in whole.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, value, rtol=2e-5, atol=1e-6, msg=name)


def test_transitivity_trains_through_the_command(tmp_path: Path, photographs: Path, capsys):
    options = fit_options(photographs, tmp_path / "run", "--train.steps", 2, "--train.weights.transitivity", 1)
    assert cli.main(options) == 2
    assert "train.weights.transitivity: needs data.triplets" in one_line(capsys)
    assert cli.main([*options, "--data.triplets", "true"]) == 0


def moves(out: Path, photographs: Path, *options: object) -> torch.Tensor:
    """How two steps of plain SGD with learning rates 0.01 and 0.005 move the parameters, as one vector."""
    rates = [f"--train.{name}=0.01" for name in ("learning_rate", "adapter_learning_rate", "tail_learning_rate")]
    sgd = ("--train.steps", 2, "--train.warmup", 0, "--train.optimiser", "sgd", *rates)
    assert cli.main(fit_options(photographs, out, *sgd, *options)) == 0
    lightning.seed_everything(0, verbose=False)
    start, end = JointModel(MODEL).state_dict(), load_checkpoint(out).state_dict()
    assert all(value.dtype == torch.float32 for value in end.values())
    return torch.cat([(end[k] - start[k]).flatten() for k in end])


def test_gradient_clipping(tmp_path: Path, photographs: Path):
    """The two steps together are as long as the rates times the largest norm allow, and nearly so."""
    length = float(moves(tmp_path / "run", photographs, "--train.gradient_clip", 1e-3).norm())
    assert 0.005 * 1e-3 <= length <= 1.001 * 0.015 * 1e-3


def test_bf16_mixed(tmp_path: Path, photographs: Path):
    """Its own rounding, and about the same step as float32; the parameters stay float32."""
    full = moves(tmp_path / "full", photographs)
    mixed = moves(tmp_path / "mixed", photographs, "--train.precision", "bf16-mixed")
    assert not torch.equal(full, mixed)
    assert float(torch.nn.functional.cosine_similarity(full, mixed, dim=0)) >= 0.5


def test_stamps_validate_against_the_truth_and_log(tmp_path: Path):
    """Held-out composed pairs, scores, pictures in TensorBoard, the best checkpoint, a model that loads."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    options = ["--data.dataset", "stamps", "--data.root", "none", "--data.validation", "3", "--train.steps", "5"]
    assert cli.main(["fit", *TINY, *options, "--train.validate_every", "2", "--out", str(out)]) == 0
    log = EventAccumulator(str(out / "tensorboard"))
    log.Reload()
    assert {"val/score", "val/pck@0.1", "val/iou"} <= set(log.Tags()["scalars"])
    scores = [event.value for event in log.Scalars("val/score")]
    assert [event.step for event in log.Scalars("val/score")] == [2, 4, 5]
    assert all(0 <= score <= 1 for score in scores)
    assert len(log.Images("pairs/0")) == 3
    state = load_training_state(out / BEST_NAME, "best")
    (kept,) = [v for k, v in state["callbacks"].items() if k.startswith("KeepCheckpoints")]
    assert kept["best_score"] == pytest.approx(max(scores), abs=1e-6) and state["global_step"] == kept["best_step"]
    best = load_checkpoint(out / BEST_NAME).state_dict()
    assert all(torch.equal(v, best[k]) for k, v in JointModel.from_pretrained(out / "model").state_dict().items())


def test_early_stopping_and_files_without_tensorboard(tmp_path: Path, photographs: Path, monkeypatch, capsys):
    """With learning rates of 0 no score is better than the first."""
    monkeypatch.setattr(fit_module, "find_spec", lambda name: None)
    out = tmp_path / "run"
    rates = [f"--train.{name}=0" for name in ("learning_rate", "adapter_learning_rate", "tail_learning_rate")]
    early = ("--train.patience", 2, "--train.validate_every", 1, "--data.validation", 2, "--train.steps", 20)
    assert cli.main(fit_options(photographs, out, *early, *rates, "--train.weight_decay", 0)) == 0
    assert "3 steps of 20 (stopped early)" in capsys.readouterr().out
    (table,) = out.glob("csv/*/metrics.csv")
    assert "val/score" in table.read_text().splitlines()[0]
    assert {p.name for p in (out / "pictures").iterdir()} >= {"step0000001_0.jpg", "step0000003_1.jpg"}


@pytest.mark.parametrize(
    "model", [("--model.matcher", "parametric"), ("--model.decoder", "paper"), ("--model.kernel_sigma", 5)]
)
def test_other_models_train_and_come_back(tmp_path: Path, photographs: Path, model: tuple[str, object]):
    out = tmp_path / "run"
    assert cli.main(fit_options(photographs, out, "--train.steps", 2, "--train.checkpoint_every", 1, *model)) == 0
    state = load_training_state(out / LAST_NAME, "last")["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
    assert cli.main(["fit", "--out", str(out), "--resume", "--train.steps", "3"]) == 0
    assert str(getattr(load_checkpoint(out).config, model[0].removeprefix("--model."))) in (str(model[1]), "5.0")


def test_validation_samples_are_plain_and_others_than_in_training(photographs: Path):
    data = FitData(DataConfig("folder", photographs, size=64), seed=4)
    source = open_training_source("folder", photographs)
    plain = TrainingSamples(source, seed=4 + VALIDATION_SEED, size=64, augment=False)
    assert torch.equal(data.held_out[3].image_a, plain[3].image_a)
    augmented = TrainingSamples(source, seed=4, size=64)
    assert torch.equal(data.samples[3].image_a, augmented[3].image_a)


def test_epochs_are_passes_over_the_photographs(tmp_path: Path, photographs: Path, capsys):
    assert cli.main(fit_options(photographs, tmp_path / "run", "--train.epochs", 0.5)) == 0  # of 10, two at a time
    assert "3 steps" in capsys.readouterr().out


def test_a_folder_is_not_overwritten_and_a_run_can_be_extended(tmp_path: Path, photographs: Path, capsys):
    out = tmp_path / "run"
    assert cli.main(fit_options(photographs, out, "--train.steps", 2)) == 0
    assert cli.main(fit_options(photographs, out, "--train.steps", 2)) == 2
    assert "holds a run already; go on with --resume" in one_line(capsys)
    (out / ".unfinished-x.safetensors").write_text("of a run that was killed while it wrote")
    assert cli.main(["fit", "--out", str(out), "--resume"]) == 0, "complete: nothing to do"
    assert not list(out.glob(".unfinished-*"))
    assert cli.main(["fit", "--out", str(out), "--resume", "auto", "--train.steps", "4"]) == 0
    assert load_training_state(out / LAST_NAME, "last")["global_step"] == 4
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["steps"] == 4
    assert cli.main(["fit", "--out", str(out), "--resume", "--model.beta", "50"]) == 2
    assert "another model.beta" in one_line(capsys)
    assert cli.main(["fit", "--out", str(out), "--resume", str(out / "nothing")]) == 2
    assert "--resume: " in one_line(capsys)
    assert cli.main(["fit", "--out", str(tmp_path / "b"), "--resume", str(out / "config.yaml")]) == 2
    assert "cannot be read as safetensors" in one_line(capsys)


def state_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_replaces_no_other_run(tmp_path: Path, photographs: Path, capsys):
    """Neither by --resume of a state elsewhere, nor from the library, nor where only a best state or a model is."""
    one, two = tmp_path / "one", tmp_path / "two"
    for out, seed in ((one, 0), (two, 1)):
        assert cli.main(fit_options(photographs, out, "--train.steps", 1, "--train.seed", seed)) == 0
    before = state_bytes(two)
    assert cli.main(["fit", "--out", str(two), "--resume", str(one / LAST_NAME), "--train.steps", "2"]) == 2
    assert "holds another run" in one_line(capsys)
    with pytest.raises(ConfigurationError, match="holds a run already"):
        fit_module.fit(replace(FitConfig(), out=two))
    assert state_bytes(two) == before
    (two / LAST_NAME).rename(two / BEST_NAME)
    assert cli.main(fit_options(photographs, two, "--train.steps", 1)) == 2
    assert "holds a run already" in one_line(capsys)
    (two / BEST_NAME).unlink()
    for options in ((), ("--resume",)):
        assert cli.main([*fit_options(photographs, two, "--train.steps", 1), *options]) == 2
        assert "holds a trained model" in capsys.readouterr().err
    assert state_bytes(two).items() <= before.items()


def test_a_named_state_goes_on_in_its_own_folder(tmp_path: Path, photographs: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(fit_options(photographs, tmp_path / "mine", "--train.epochs", 0.2)) == 0
    assert cli.main(["fit", "--resume", "mine/last.safetensors", "--train.steps", "3"]) == 0
    assert "3 steps\n" in capsys.readouterr().out, "steps, not the epochs of the stored run"
    assert load_training_state(tmp_path / "mine" / LAST_NAME, "last")["global_step"] == 3
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_takes_changed_rates(tmp_path: Path, photographs: Path):
    """The optimiser's state would bring those of the stored run, and the option would do nothing."""
    out = tmp_path / "run"
    assert cli.main(fit_options(photographs, out, "--train.steps", 4, "--train.warmup", 0)) == 0
    rates = {"learning_rate": 0.3, "adapter_learning_rate": 0.2, "tail_learning_rate": 0.1}
    more = [f"--train.{name}={rate}" for name, rate in rates.items()]
    assert cli.main(["fit", "--out", str(out), "--resume", "--train.steps=8", "--train.weight_decay=0.5", *more]) == 0
    (optimiser,) = load_training_state(out / LAST_NAME, "last")["optimizer_states"]
    groups = optimiser["param_groups"]
    assert [group["initial_lr"] for group in groups] == list(rates.values())
    assert all(group["weight_decay"] == 0.5 for group in groups)


def test_without_anything_to_resume_it_says_so_and_starts(tmp_path: Path, photographs: Path, capsys):
    assert cli.main([*fit_options(photographs, tmp_path / "run", "--train.steps", 1), "--resume"]) == 0
    assert "has no training state; starting from the first step" in one_line(capsys)


def test_settings_of_the_stored_run_count_when_options_are_checked(tmp_path: Path, photographs: Path):
    out = tmp_path / "run"
    assert cli.main(fit_options(photographs, out, "--train.steps", 1, "--data.triplets", "true")) == 0
    assert cli.main(["fit", "--out", str(out), "--resume", "--train.steps=2", "--train.weights.transitivity=1"]) == 0


def test_the_best_state_comes_along_to_another_folder(tmp_path: Path, photographs: Path):
    """Learning rates of 0 give no better score: it stays the best, and is the model."""
    out, longer = tmp_path / "run", tmp_path / "longer"
    options = ("--train.steps", 2, "--data.validation", 2, "--train.validate_every", 1)
    assert cli.main(fit_options(photographs, out, *options)) == 0
    best = load_training_state(out / BEST_NAME, "best")
    rates = [f"--train.{name}=0" for name in ("learning_rate", "adapter_learning_rate", "tail_learning_rate")]
    worse = ["--train.steps", "3", *rates]
    assert cli.main(["fit", "--out", str(longer), "--resume", str(out / BEST_NAME), *worse]) == 0
    assert (longer / BEST_NAME).read_bytes() == (out / BEST_NAME).read_bytes()
    model = JointModel.from_pretrained(longer / "model").state_dict()
    assert all(torch.equal(v, model[k.removeprefix("model.")]) for k, v in best["state_dict"].items())
    fresh = tmp_path / "fresh"  # the last state leaves its best behind: the best of the new folder counts
    assert cli.main(["fit", "--out", str(fresh), "--resume", str(out / LAST_NAME), *worse]) == 0
    (kept,) = [v for k, v in load_training_state(fresh / LAST_NAME, "")["callbacks"].items() if k.startswith("Keep")]
    assert kept["best_step"] == 3 and (fresh / BEST_NAME).is_file()


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path, photographs: Path, monkeypatch, capsys):
    out = tmp_path / "run"
    options = ("--data.validation", 2, "--train.validate_every", 1)
    assert cli.main(fit_options(photographs, out, "--train.steps", 1, *options)) == 0
    before = [(out / name).read_bytes() for name in (LAST_NAME, BEST_NAME)]
    step = JointModule.training_step
    monkeypatch.setattr(JointModule, "training_step", lambda self, *batch: step(self, *batch) * torch.nan)
    more = ("--train.steps=6", "--train.checkpoint_every=1")
    assert cli.main(["fit", "--out", str(out), "--resume", *more]) == 2
    assert "weights are not finite at step 2" in one_line(capsys)
    assert [(out / name).read_bytes() for name in (LAST_NAME, BEST_NAME)] == before


def test_a_full_disk_is_one_line_and_the_old_state_stays(tmp_path: Path, photographs: Path):
    """A limit on the size of files stands for the disk."""
    resource = pytest.importorskip("resource")
    out = tmp_path / "run"
    assert cli.main(fit_options(photographs, out, "--train.steps", 1)) == 0
    before = (out / LAST_NAME).read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "cosegflow", "fit", "--out", str(out), "--resume", "--train.steps", "2"],
        capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("cosegflow")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert len(lines) == 1 and "last.safetensors: cannot write" in lines[0]
    assert (out / LAST_NAME).read_bytes() == before and not list(out.glob(".unfinished-*"))


@pytest.mark.parametrize("task", ["joint", "match-only", "coseg-only"])
def test_each_loss_alone_trains(task: str, photographs: Path):
    """Every loss that the task uses gives gradients to what the task trains; the others are not computed."""
    samples = TrainingSamples(open_training_source("folder", photographs), seed=0, size=64, triplets=True)
    batch = collate_training([samples[n] for n in range(2)])
    for name in vars(LossWeights()):
        weights = replace(LossWeights(**dict.fromkeys(vars(LossWeights()), 0.0)), **{name: 1.0})
        if name in IDLE_LOSSES[task]:
            with pytest.raises(ValueError, match="weights"):
                TrainConfig(task=task, weights=weights)
            continue
        module = JointModule(MODEL, TrainConfig(task=task, weights=weights, contrast_size=32))
        output = module.model(batch.image_a, batch.image_b, module._rounds)
        terms = module.loss_terms(batch, output)
        assert set(terms) == {name}
        module.training_step(batch, 0).backward()
        moved = [p.grad for p in module.parameters() if p.requires_grad and p.grad is not None]
        assert moved and all(bool(torch.isfinite(g).all()) for g in moved)
        assert name == "area" or max(float(g.abs().max()) for g in moved) > 0, name
        assert (len(output.rounds) == 1) == (task != "joint"), "alone, a task has nothing to refine"


def test_a_trained_model_uses_what_its_task_learns():
    model = replace(MODEL, rounds=3)
    assert model_of_task(model, "joint") == model
    assert model_of_task(model, "match-only") == replace(model, rounds=0)
    assert model_of_task(model, "coseg-only") == replace(model, rounds=0, flow_cues=False)


@pytest.mark.parametrize("task", ["match-only", "coseg-only"])
def test_the_model_of_a_task_alone(task: str, tmp_path: Path, photographs: Path):
    """What is written is used as its task means, without being told."""
    assert cli.main(fit_options(photographs, tmp_path / "run", "--train.steps", 2, "--train.task", task)) == 0
    model = JointModel.from_pretrained(tmp_path / "run")
    assert model.config.rounds == 0 and model.config.flow_cues == (task != "coseg-only")
    lightning.seed_everything(0, verbose=False)
    start = JointModel(model.config).state_dict()
    moved = {
        name.partition(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, start[name])
    }
    assert moved == ({"decoder"} if task == "coseg-only" else {"adapter", "tail"})
    output = model(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64))
    assert len(output.rounds) == 1 and output.rounds[0].gate_a is None


def test_photographs_beside_the_stamps(tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch):
    """auto is Caltech-101 where it lies beside the stamps; else there are none, as where the stamps are "none"."""
    assert find_photographs(DataConfig(photographs=tmp_path)) == tmp_path
    assert find_photographs(DataConfig(photographs=None)) is None
    assert find_photographs(DataConfig(photographs=Path("none"))) is None
    monkeypatch.setenv("COSEGFLOW_DATA", str(tmp_path))
    assert find_photographs(DataConfig()) is None
    beside = tmp_path / "Caltech-101" / "101_ObjectCategories"
    draw_folder(beside)
    assert find_photographs(DataConfig()) == find_photographs(DataConfig(root=tmp_path)) == beside
    assert find_photographs(DataConfig(root=Path("none"))) is None
    assert find_photographs(DataConfig(root=photographs)) is None
    data = FitData(DataConfig(root=Path("none"), photographs=photographs, size=32), 0)
    assert [data.samples[n].category in ("kind0", "kind1") for n in range(4)] == [False, True, False, True]
    with pytest.raises(ValueError, match="photographs: only stamps are mixed with them, got dataset 'folder'"):
        DataConfig(dataset="folder", photographs=photographs)


def test_exact_supervision_through_the_command(tmp_path: Path, photographs: Path, capsys):
    """On composed samples alone it trains; photographs have no truth, which one line says."""
    exact = ("--train.steps", 2, "--train.supervision", "exact")
    stamps = ["fit", *TINY, "--data.dataset", "stamps", "--data.root", "none", *map(str, exact)]
    for options in (
        fit_options(photographs, tmp_path / "run", *exact),
        [*stamps, "--data.photographs", str(photographs), "--out", str(tmp_path / "run")],
    ):
        assert cli.main(options) == 2
        assert "train.supervision: 'exact' needs data.dataset stamps" in one_line(capsys)
    assert cli.main([*stamps, "--data.photographs", "null", "--out", str(tmp_path / "stamps")]) == 0
    with pytest.raises(ValueError, match="supervision: 'exact' trains both tasks; need task 'joint', got 'match-only'"):
        TrainConfig(supervision="exact", task="match-only")


def test_a_run_says_which_photographs_auto_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    beside = draw_folder(tmp_path / "Caltech-101" / "101_ObjectCategories")
    options = ["fit", *TINY, "--data.dataset", "stamps", "--data.root", "none", "--train.steps", "1"]
    assert cli.main([*options, "--out", str(tmp_path / "none")]) == 0
    assert "photographs: null" in (tmp_path / "none" / "config.yaml").read_text()
    monkeypatch.setattr("cosegflow.joint.fit.find_photographs", lambda config: beside)
    assert cli.main([*options, "--out", str(tmp_path / "some")]) == 0
    assert f"photographs: {beside}" in (tmp_path / "some" / "config.yaml").read_text()


def test_ctrl_c_keeps_the_last_checkpoint_and_says_how_to_go_on(
    tmp_path: Path, photographs: Path, monkeypatch, capsys, request
):
    out = tmp_path / "my run"
    step = JointModule.training_step

    def interrupted(self: JointModule, batch, batch_idx: int):
        if self.trainer.global_step == 3:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setattr(JointModule, "training_step", interrupted)
    assert cli.main(fit_options(photographs, out, "--train.steps", 6, "--train.checkpoint_every", 2)) == 130
    line = one_line(capsys)
    assert "interrupted at step 3" in line and f"cosegflow fit --out '{out}' --resume" in line
    assert load_training_state(out / LAST_NAME, "last")["global_step"] == 2
    assert JointModel.from_pretrained(out).config == MODEL, "the last state serves where there is no model yet"
    with pytest.raises(KeyboardInterrupt):  # Lightning switches it off; we switch it on again
        signal.raise_signal(signal.SIGINT)


def test_bad_data(tmp_path: Path, photographs: Path, capsys):
    """Each is one line that names the folder, before anything is written."""
    out = tmp_path / "run"
    lone = draw_folder(tmp_path / "lone", categories=1, photographs=1)
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    for root, message in ((lone, "kind0 (1)"), (tmp_path / "empty", "cat"), (tmp_path / "nothing", "nothing")):
        assert cli.main(fit_options(root, out)) == 2
        assert message in one_line(capsys)
    assert cli.main(["fit", *TINY, "--data.dataset", "cats", "--out", str(out)]) == 2
    assert "dataset: need one of" in one_line(capsys)
    assert not out.exists()
    (tmp_path / "file").write_text("x")
    assert cli.main(fit_options(photographs, tmp_path / "file" / "run")) == 2
    assert "--out: " in one_line(capsys)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_photograph_is_named(tmp_path: Path, capsys, workers: int):
    root = draw_folder(tmp_path / "photos", categories=1, photographs=3)
    (root / "kind0" / "photo [1].png").write_bytes(b"nothing")
    assert cli.main(fit_options(root, tmp_path / "run", "--train.steps", 3, "--data.workers", workers)) == 2
    line = one_line(capsys)
    assert line.startswith("cosegflow: error: ") and "photo [1].png" in line and "Traceback" not in line


def test_own_backbone_through_the_library(tmp_path: Path, photographs: Path):
    from cosegflow.joint.backbones import TinyBackbone
    from cosegflow.joint.checkpoint import CheckpointError
    from cosegflow.joint.fit import fit

    config = FitConfig(
        tmp_path / "run",
        DataConfig("folder", photographs, size=64, batch=2, workers=0, validation=0),
        MODEL,
        TrainConfig(steps=1, contrast_size=32, accelerator="cpu"),
    )
    result = fit(config, backbone=TinyBackbone(seed=3))
    assert result.step == result.planned == 1 and result.best_score is None
    with pytest.raises(CheckpointError, match="backbone of your own"):
        JointModel.from_pretrained(result.model)
    model = JointModel.from_pretrained(result.model, TinyBackbone(seed=3))
    assert bool(np.isfinite(model.adapter.up.weight.detach().numpy()).all())


def test_what_lightning_cannot_do_is_one_line(tmp_path: Path, photographs: Path, capsys):
    assert cli.main(fit_options(photographs, tmp_path / "run", "--train.strategy", "dpp")) == 2
    assert "train.strategy: " in one_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_matcher_trained_without_masks_predicts_without_gates(photographs: Path, tmp_path: Path):
    assert cli.main(fit_options(photographs, tmp_path / "run", "--train.steps", 1, "--train.task", "match-only")) == 0
    assert JointModel.from_pretrained(tmp_path / "run").config.rounds == 0
    steps = ("--train.steps", 2, "--train.task", "match-only", "--resume")
    assert cli.main(fit_options(photographs, tmp_path / "run", *steps)) == 0

"""A training run: from a `FitConfig` to a folder with checkpoints, logs and the trained model."""

import logging
import math
import os
import shlex
import signal
import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from cosegflow._version import __version__
from cosegflow.atomic_file import replaced
from cosegflow.configuration import ConfigurationError, build, differences, flatten, to_plain, to_yaml
from cosegflow.joint.callbacks import KeepCheckpoints, LogPictures, SafetensorsIO, StepBar
from cosegflow.joint.checkpoint import (
    BEST_NAME,
    CONFIG_NAME,
    LAST_NAME,
    CheckpointError,
    load_checkpoint,
    load_training_state,
    save_pretrained,
)
from cosegflow.joint.config import FitConfig, Task, TrainConfig
from cosegflow.joint.fit_data import FitData, find_photographs
from cosegflow.joint.model import ModelConfig
from cosegflow.joint.module import SCORE, JointModule
from cosegflow.report import OutputError, check_output


class FitInterrupted(KeyboardInterrupt):
    """Ctrl-C; the message says what is kept and how to go on."""


@dataclass(frozen=True)
class FitResult:
    """What a run has come to."""

    step: int
    planned: int
    best_score: float | None
    """None without validation."""
    best_step: int | None
    model: Path
    """A folder for `JointModel.from_pretrained`."""
    first: bool = True
    """Whether this is the process that reports, of several."""


def quiet_lightning() -> None:
    """Only warnings of ours: Lightning's advice on loggers and workers does not apply here."""
    warnings.filterwarnings("ignore", module="lightning|torchmetrics|torch.utils.data")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def world_size(train: TrainConfig) -> tuple[int, int]:
    """(processes on this machine, machines): torchrun's where it started this process, else `train.devices` and 1."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    return train.devices, 1


def stored_configuration(path: Path, argument: str) -> FitConfig:
    """The configuration of a training state.

    Raises:
        CheckpointError: no such file, no training state, or one of another version's settings.
    """
    state = load_training_state(path, argument)
    try:
        return build(FitConfig, flatten(state["cosegflow"]["configuration"], FitConfig, str(path)))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{argument}: {path}: is not complete (no {error})") from None
    except ValueError as error:
        raise CheckpointError(f"{argument}: {path}: does not fit this version ({error})") from None


def check_resume(stored: FitConfig, wanted: FitConfig, argument: str) -> None:
    """Raises CheckpointError where the model, the task or the optimiser differ, so that the stored state does not fit.

    `model.weights` may differ: the file may have moved.
    """
    for name in differences(stored, wanted):
        fixed = name.startswith("model.") and name != "model.weights"
        if fixed or name in ("train.task", "train.optimiser"):
            raise CheckpointError(f"{argument}: was trained with another {name}; a run goes on only with the same")


def model_of_task(model: ModelConfig, task: Task) -> ModelConfig:
    """What a task does not learn, the trained model does not use either: match-only no masks, coseg-only no flow."""
    if task == "match-only":
        return replace(model, rounds=0)
    return replace(model, rounds=0, flow_cues=False) if task == "coseg-only" else model


def check_folder(out: Path, resume: Path | None) -> None:
    """Raises ConfigurationError where `out` holds a run, or a model, that is not gone on with and would be replaced."""
    held = next((n for n in (LAST_NAME, BEST_NAME, f"model/{CONFIG_NAME}") if (out / n).is_file()), None)
    if held is None or (resume is not None and resume.absolute().parent.resolve() == out.resolve()):
        return
    if resume is not None:
        raise ConfigurationError(f"--out: {out}: holds another run than that of {resume}; name another folder")
    if held.startswith("model"):
        raise ConfigurationError(f"--out: {out}: holds a trained model and no training state; name another folder")
    raise ConfigurationError(f"--out: {out}: holds a run already; go on with --resume, or name another folder")


def _strategy(train: TrainConfig, world: int) -> Any:
    """DDP for several processes. A mask loss reaches every parameter; without any, some may go without a gradient."""
    if train.strategy != "auto" or world == 1:
        return train.strategy
    w = train.weights
    masks = max(w.matching, w.rejection, w.price, w.foreground, w.pasted, w.task, w.contrast, w.edges, w.area) > 0
    return DDPStrategy(find_unused_parameters=train.task == "joint" and not masks)


def make_logger(out: Path) -> Logger:
    """TensorBoard where its package is installed, else CSV files."""
    if find_spec("tensorboard") is not None:
        return TensorBoardLogger(out, name="tensorboard", version="")
    return CSVLogger(out, name="csv")


def fit(config: FitConfig, resume: Path | None = None, backbone: nn.Module | None = None) -> FitResult:
    """Trains; writes config.yaml, last.safetensors, best.safetensors, logs and model/ into `config.out`.

    Args:
        config: all settings.
        resume: a training state to go on from.
        backbone: any `Backbone`, instead of the one that the configuration names.

    Raises:
        ConfigurationError, OutputError, DatasetError, CheckpointError: one line, before any training. DatasetError
            also for a photograph that cannot be read, OutputError for a checkpoint that cannot be written.
        DivergedError: the weights are not finite any more.
        FitInterrupted: Ctrl-C.
    """
    out = check_output(config.out, "--out")
    check_folder(out, resume)
    quiet_lightning()
    # What "auto" found here is what a resumed run goes on with, and what config.yaml says.
    data = replace(config.data, photographs=find_photographs(config.data))
    config = replace(config, data=data, model=model_of_task(config.model, config.train.task))
    if resume is not None:
        check_resume(stored_configuration(resume, "--resume"), config, "--resume")
    samples = FitData(config.data, config.train.seed, truth=config.train.supervision == "exact")
    local, machines = world_size(config.train)
    world = local * machines
    if 0 < config.data.validation < world:
        raise ConfigurationError(f"data.validation: need 0 or at least one sample for each of {world} processes")
    train = config.train
    if train.epochs is not None:
        train = replace(train, steps=math.ceil(train.epochs * samples.epoch_length / (config.data.batch * world)))
    samples.steps = train.steps
    lightning.seed_everything(train.seed, verbose=False)
    module = JointModule(config.model, train, backbone)
    extra = {"version": __version__, "configuration": to_plain(config), "own_backbone": module.model.own_backbone}
    keep = KeepCheckpoints(out, train.checkpoint_every, extra, resume)
    callbacks: list[lightning.Callback] = [StepBar(), keep]
    if config.data.validation:
        callbacks.append(LogPictures(out / "pictures"))
    if train.patience is not None:
        callbacks.append(EarlyStopping(SCORE, mode="max", patience=train.patience, check_on_train_epoch_end=False))
    trainer = _make_trainer(replace(config, train=train), callbacks, local, machines)
    if trainer.is_global_zero:
        _start_folder(config)
    try:
        run_trainer(trainer, module, datamodule=samples, ckpt_path=resume)
    except KeyboardInterrupt:
        last = out / LAST_NAME
        kept = f"{last} is kept; go on with: cosegflow fit --out {shlex.quote(str(out))} --resume"
        if not last.is_file():
            kept = "there is no checkpoint yet (train.checkpoint_every)"
        raise FitInterrupted(f"interrupted at step {trainer.global_step}; {kept}") from None
    best = out / BEST_NAME if keep.best_step is not None and (out / BEST_NAME).is_file() else None
    if trainer.is_global_zero:
        save_pretrained(load_checkpoint(best, "best", backbone) if best else module.model, out / "model")
    step = trainer.global_step
    return FitResult(step, train.steps, keep.best_score, keep.best_step, out / "model", trainer.is_global_zero)


def _make_trainer(
    config: FitConfig, callbacks: list[lightning.Callback], local: int, machines: int
) -> lightning.Trainer:
    train = config.train
    try:
        return lightning.Trainer(
            default_root_dir=config.out,
            accelerator=train.accelerator,
            devices=local,
            num_nodes=machines,
            strategy=_strategy(train, local * machines),
            plugins=[SafetensorsIO()],
            precision="bf16-mixed" if train.precision == "bf16-mixed" else "32-true",
            gradient_clip_val=train.gradient_clip or None,
            max_steps=train.steps,
            max_epochs=-1,
            check_val_every_n_epoch=None,
            val_check_interval=train.validate_every,
            limit_val_batches=1.0 if config.data.validation else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=min(10, train.steps),
            use_distributed_sampler=False,
            sync_batchnorm=local * machines > 1 and train.accelerator != "cpu" and torch.cuda.is_available(),
            enable_model_summary=False,
            logger=make_logger(config.out),
            callbacks=callbacks,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"train.accelerator, train.devices, train.strategy: {reason}") from None


def _start_folder(config: FitConfig) -> None:
    """Makes the run's folder and writes its configuration."""
    out = config.out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for stale in [*out.glob(".unfinished-*.safetensors"), *out.glob(".unfinished-*.yaml")]:
            stale.unlink()  # of a run that was killed while it wrote
        with replaced(out / "config.yaml") as temporary:
            temporary.write_text(to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--out: {out}: cannot write ({error.strerror or error})") from None


def run_trainer(trainer: lightning.Trainer, module: JointModule, **options: Any) -> None:
    """trainer.fit(module, **options), where Ctrl-C is KeyboardInterrupt.

    Lightning makes a SystemExit of it, and leaves it switched off.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, **options)
    except (SystemExit, KeyboardInterrupt):
        if not trainer.interrupted:
            raise
    finally:
        signal.signal(signal.SIGINT, handler)
    if trainer.interrupted:
        raise KeyboardInterrupt

"""Callbacks of a training run: progress bar, checkpoints, pictures."""

import shutil
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from cosegflow.atomic_file import replaced
from cosegflow.joint.checkpoint import BEST_NAME, LAST_NAME, load_training_state, save_training_state
from cosegflow.joint.module import SCORE, JointModule
from cosegflow.joint.pictures import pair_strip
from cosegflow.joint.predict import predict
from cosegflow.report import OutputError, save_picture


class DivergedError(ValueError):
    """Training has made weights that are not finite; one line that says what is kept."""


class StepBar(TQDMProgressBar):
    """Lightning's progress bar over all steps of the run, with the time that is left; it has no epochs."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 25, leave=False)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts at the resumed step, so that the pace is that of this run."""
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        bar.total = trainer.max_steps
        bar.initial = bar.n = trainer.global_step
        bar.set_description("training")

    def on_train_epoch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """The one epoch starts with the run."""

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Without the logger's version number."""
        items = super().get_metrics(*args, **kwargs)
        items.pop("v_num", None)
        return items


class SafetensorsIO(CheckpointIO):
    """Lightning's checkpoints as safetensors with JSON metadata, written aside and renamed; nothing is unpickled."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `save_training_state`; OutputError where it cannot be written."""
        try:
            save_training_state(checkpoint, Path(path))
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"--out: {path}: cannot write ({reason}); an older one is kept as it was") from None

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `load_training_state`; tensors come to the CPU, Lightning moves them."""
        return load_training_state(Path(path), "--resume")

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes the file."""
        Path(path).unlink(missing_ok=True)


class KeepCheckpoints(Checkpoint):
    """Keeps the last training state and that of the best validation score.

    The last one is written between two steps, after the validation that may follow a step: resumed, the run repeats
    nothing and leaves nothing out.
    """

    def __init__(self, folder: Path, every: int, extra: dict[str, Any], resume: Path | None = None) -> None:
        """every: steps; extra: plain values to store under the key "cosegflow"; resume: what the run goes on from."""
        self.folder, self.every, self.extra, self.resume = folder, every, extra, resume
        self.best_score: float | None = None
        self.best_step: int | None = None
        self._written: int | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """The best state of another run, where that is gone on from, is the best here too."""
        best = self.folder / BEST_NAME
        resume = self.resume
        if trainer.is_global_zero and resume is not None and resume.name == BEST_NAME and not best.is_file():
            with replaced(best) as temporary:
                shutil.copyfile(resume, temporary)
        trainer.strategy.barrier("best")

    def state_dict(self) -> dict[str, Any]:
        """Part of the training state."""
        return {"best_score": self.best_score, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Part of the training state. A best state that stayed in another run's folder does not count here."""
        if (self.folder / BEST_NAME).is_file():
            self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the run's configuration."""
        checkpoint["cosegflow"] = self.extra

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """A resumed run need not write what it has just read."""
        self._written = trainer.global_step
        # Saved between two steps, Lightning's total already counts the next one and would validate one step early.
        trainer.fit_loop.epoch_loop.batch_progress.total.reset_on_restart()

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Writes the state after every so many steps, once all that belongs to the last of them is done."""
        if trainer.global_step % self.every == 0 and trainer.global_step != self._written:
            self._write_last(trainer)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Stops after the last step, which makes Lightning validate: the final weights too may be the best."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Writes the state where the score is the best so far."""
        score = trainer.callback_metrics.get(SCORE)
        if score is None or not torch.isfinite(score):
            return
        if self.best_score is None or float(score) > self.best_score:
            self.best_score, self.best_step = float(score), trainer.global_step
            self._save(trainer, BEST_NAME)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Writes the final state."""
        if trainer.global_step != self._written:
            self._write_last(trainer)

    def _write_last(self, trainer: lightning.Trainer) -> None:
        self._save(trainer, LAST_NAME)
        self._written = trainer.global_step

    def _save(self, trainer: lightning.Trainer, name: str) -> None:
        learnt = [p for p in trainer.lightning_module.parameters() if p.requires_grad]
        if not all(bool(torch.isfinite(p).all()) for p in learnt):
            raise DivergedError(
                f"train: the weights are not finite at step {trainer.global_step}; the checkpoints of earlier steps in"
                f" {self.folder} are kept; try smaller learning rates"
            )
        trainer.save_checkpoint(self.folder / name)


class LogPictures(lightning.Callback):
    """The strips of `pair_strip` of the first validation pairs: to TensorBoard, else as files."""

    def __init__(self, folder: Path, count: int = 4) -> None:
        """folder: for the files, where there is no TensorBoard."""
        self.folder, self.count = folder, count

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One strip of pictures for each of the first pairs."""
        if batch_idx or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, JointModule)
        image_a: Tensor = batch.image_a[: self.count]
        image_b: Tensor = batch.image_b[: self.count]
        found = predict(pl_module.model, image_a, image_b)
        for index in range(len(image_a)):
            strip = pair_strip(image_a[index], image_b[index], found, index)
            board: Any = getattr(trainer.logger, "experiment", None)
            if hasattr(board, "add_image"):
                board.add_image(f"pairs/{index}", strip, trainer.global_step, dataformats="HWC")
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_picture(self.folder / f"step{trainer.global_step:07d}_{index}.jpg", strip)

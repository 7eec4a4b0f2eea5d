"""Checkpoints: the trained weights and the configuration; small, since the frozen backbone is not in them."""

import os
import tempfile
from pathlib import Path

import torch

from cosegflow._version import __version__
from cosegflow.joint.model import JointModel, ModelConfig

FORMAT = "cosegflow-joint-1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; one line that names the argument."""


def save_checkpoint(model: JointModel, path: Path | str) -> None:
    """Writes to a temporary file beside `path`, then renames it; an interrupted run leaves the old file whole."""
    path = Path(path)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}
    handle, temporary = tempfile.mkstemp(prefix="unfinished-", suffix=".ckpt", dir=path.parent)
    os.close(handle)
    try:
        torch.save(
            {"format": FORMAT, "version": __version__, "model": model.config.to_dict(), "state": state}, temporary
        )
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_checkpoint(path: Path | str, argument: str = "checkpoint") -> JointModel:
    """The model of a checkpoint, in evaluation mode, on the CPU. Never unpickles anything but tensors.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, or one that does not fit this version's model.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{argument}: {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise CheckpointError(f"{argument}: {path}: cannot be read as a checkpoint ({reason})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{argument}: {path}: is not a checkpoint of cosegflow (need format {FORMAT})")
    try:
        model = JointModel(ModelConfig(**content["model"]))
        kept = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
        model.load_state_dict({**kept, **content["state"]})
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise CheckpointError(f"{argument}: {path}: does not fit this version ({reason})") from None
    return model.eval()

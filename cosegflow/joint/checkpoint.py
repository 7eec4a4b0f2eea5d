"""Checkpoints: a folder with the trained model, the training state of `cosegflow fit`, and the demo's model file.

The frozen backbone is in none of them, so they are small. Every file is written aside and renamed, and none is read
with pickle: safetensors, or `torch.load(weights_only=True)` for the demo's.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosegflow._version import __version__
from cosegflow.atomic_file import replaced
from cosegflow.configuration import build, flatten
from cosegflow.joint.model import JointModel, ModelConfig
from cosegflow.joint.nested import NestedStateError, pack, unpack

FORMAT = "cosegflow-joint-1"
PRETRAINED_FORMAT = "cosegflow-joint-2"
TRAINING_FORMAT = "cosegflow-training-1"
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
LAST_NAME, BEST_NAME = "last.safetensors", "best.safetensors"


def find_training_state(folder: Path) -> Path | None:
    """The state that a run in `folder` goes on from, where there is one.

    Killed after a validation and before its first regular checkpoint, a run has only a best state.
    """
    return next((folder / name for name in (LAST_NAME, BEST_NAME) if (folder / name).is_file()), None)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; one line that names the argument."""


@contextmanager
def _as_os_error() -> Iterator[None]:
    """A full disk is an OSError in safetensors' writing too."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(_short(error)) from None


def trained_state(model: JointModel) -> dict[str, Tensor]:
    """The model's state without the frozen backbone."""
    return {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}


def save_checkpoint(model: JointModel, path: Path | str) -> None:
    """Writes one file (the demo's); an interrupted run leaves the old file whole."""
    state = trained_state(model)
    with replaced(Path(path)) as temporary:
        torch.save(
            {"format": FORMAT, "version": __version__, "model": model.config.to_dict(), "state": state}, temporary
        )


def save_pretrained(model: JointModel, folder: Path | str) -> None:
    """See `JointModel.save_pretrained`."""
    from safetensors.torch import save_file

    from cosegflow.report import staged_folder

    config = {
        "format": PRETRAINED_FORMAT,
        "version": __version__,
        "own_backbone": model.own_backbone,
        "model": model.config.to_dict(),
    }
    with staged_folder(folder, "folder") as stage, _as_os_error():
        save_file(pack(trained_state(model))[0], stage / WEIGHTS_NAME)
        (stage / CONFIG_NAME).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def save_training_state(state: Mapping[str, Any], path: Path) -> None:
    """Writes Lightning's nested training state to one safetensors file.

    Raises:
        NestedStateError: the state holds something that is neither a tensor nor a plain value.
        OSError: it cannot be written; the file that was there is whole.
    """
    from safetensors.torch import save_file

    tensors, text = pack(dict(state))
    with replaced(path) as temporary, _as_os_error():
        save_file(tensors, temporary, metadata={"format": TRAINING_FORMAT, "version": __version__, "state": text})


def load_training_state(path: Path, argument: str) -> dict[str, Any]:
    """The nested state that `save_training_state` wrote; tensors on the CPU.

    Raises:
        CheckpointError: no such file, or not a training state of ours.
    """
    tensors, metadata = _read_safetensors(path, argument)
    if metadata.get("format") != TRAINING_FORMAT:
        raise CheckpointError(f"{argument}: {path}: is no training state of cosegflow fit (need {TRAINING_FORMAT})")
    try:
        state = unpack(tensors, metadata["state"])
    except (NestedStateError, KeyError) as error:
        raise CheckpointError(f"{argument}: {path}: {error}") from None
    assert isinstance(state, dict)
    return state


def _read_safetensors(path: Path, argument: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{argument}: {path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{argument}: {path}: cannot be read as safetensors ({_short(error)})") from None


def _short(error: Exception) -> str:
    """The first sentence of an error's first line, or its type."""
    return (str(error).splitlines() or [""])[0].partition(". ")[0][:120] or type(error).__name__


def load_checkpoint(
    path: Path | str, argument: str = "checkpoint", backbone: nn.Module | None = None, weights: str | None = None
) -> JointModel:
    """The model of a checkpoint, in evaluation mode, on the CPU.

    Args:
        path: a folder of `JointModel.save_pretrained`; the folder of a run of ``cosegflow fit`` (its ``model``, while
            it runs its best or last state); a training state (.safetensors); or a model file (.ckpt) of the demo.
        argument: how messages call it.
        backbone: the user's own, for a model that was trained with one.
        weights: the local file of the backbone's weights, instead of the stored `ModelConfig.weights`.

    Raises:
        CheckpointError: no such file, not a checkpoint of ours, or one that does not fit this version's model or the
            given backbone.
    """
    path = _resolve(Path(path), argument)
    if path.is_dir():
        config, state, own = _read_folder(path, argument)
    elif path.suffix == ".safetensors":
        config, state, own = _read_training(path, argument)
    else:
        config, state, own = _read_file(path, argument)
    if weights is not None:
        config["weights"] = weights
    if own and backbone is None:
        raise CheckpointError(f"{argument}: {path}: was trained with a backbone of your own: pass it as backbone=")
    try:
        model = JointModel(build(ModelConfig, flatten(config, ModelConfig, "model")), backbone)
        kept = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
        model.load_state_dict({**kept, **state})
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])[:160]
        raise CheckpointError(f"{argument}: {path}: does not fit this version ({reason})") from None
    return model.eval()


_Content = tuple[dict[str, Any], dict[str, Tensor], bool]


def _resolve(path: Path, argument: str) -> Path:
    """A folder with config.json, or a file: what `path` names, or what a run's folder has, the finished model first."""
    if path.name == WEIGHTS_NAME:
        return path.parent
    if not path.is_dir() or (path / CONFIG_NAME).is_file():
        return path
    if (path / "model" / CONFIG_NAME).is_file():
        return path / "model"
    for name in (BEST_NAME, LAST_NAME):
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{argument}: {path}: has no {CONFIG_NAME}, and is no folder of a run of cosegflow fit")


def _read_folder(folder: Path, argument: str) -> _Content:
    path = folder / CONFIG_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{argument}: {path}: cannot be read ({_short(error)})") from None
    if not isinstance(content, dict) or content.get("format") != PRETRAINED_FORMAT:
        raise CheckpointError(f"{argument}: {path}: is not of cosegflow (need format {PRETRAINED_FORMAT})")
    return dict(content["model"]), _read_safetensors(folder / WEIGHTS_NAME, argument)[0], bool(content["own_backbone"])


def _read_training(path: Path, argument: str) -> _Content:
    state = load_training_state(path, argument)
    try:
        ours = state["cosegflow"]
        found = {k.removeprefix("model."): v for k, v in state["state_dict"].items() if k.startswith("model.")}
        return dict(ours["configuration"]["model"]), found, bool(ours["own_backbone"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{argument}: {path}: is not complete (no {error})") from None


def _read_file(path: Path, argument: str) -> _Content:
    if not path.is_file():
        raise CheckpointError(f"{argument}: {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{argument}: {path}: cannot be read as a checkpoint ({_short(error)})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{argument}: {path}: is not a checkpoint of cosegflow (need format {FORMAT})")
    try:
        return dict(content["model"]), dict(content["state"]), False
    except KeyError as error:
        raise CheckpointError(f"{argument}: {path}: is not complete (no {error})") from None

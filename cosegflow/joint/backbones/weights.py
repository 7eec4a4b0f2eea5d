"""Pretrained weights: from a local file, or from a hub through torchvision or timm where they are installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosegflow.joint.backbones.protocol import BackboneError


def first_line(error: BaseException, most: int = 120) -> str:
    """The first line of an error's text, or its type."""
    return (str(error).splitlines() or [""])[0][:most] or type(error).__name__


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a file of `torch.save`, by name. Never unpickles anything but tensors.

    A dictionary that holds them below "state_dict" or "model" is unpacked.

    Raises:
        BackboneError: no such file, or not a file of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"weights: {path}: no such file")
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError as error:
        raise BackboneError(f"weights: {path}: needs {error.name}: pip install safetensors") from None
    except Exception as error:
        raise BackboneError(f"weights: {path}: cannot be read as a file of weights ({first_line(error)})") from None
    for name in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise BackboneError(f"weights: {path}: holds no dictionary of tensors")
    return dict(content)


def load_state(net: nn.Module, state: Mapping[str, Tensor], name: str, origin: str, head: str = "") -> None:
    """Loads `state` into `net`: every name and shape must fit.

    Args:
        net: the network without its classifier.
        state: tensors by name.
        name, origin: of the backbone and of the weights, for the message.
        head: names that begin so belong to the classifier and are left out; "": none.

    Raises:
        BackboneError: the state is another network's.
    """
    state = {k: v for k, v in state.items() if not head or not k.startswith(head)}
    own = net.state_dict()
    # Files from before 2018 lack batch norm's counters, which frozen statistics never read.
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, value)
    missing, unknown = own.keys() - state.keys(), state.keys() - own.keys()
    shaped = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    for what, keys in (("lacks", missing), ("has another shape of", shaped), ("has the unknown", unknown)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise BackboneError(f"weights: {origin}: does not fit {name}: it {what} {min(keys)}{more}")
    net.load_state_dict(state)


def hub_state(name: str, torchvision_weights: str, timm_name: str | None = None) -> dict[str, Tensor]:
    """ImageNet weights under torchvision's names, fetched (or found in their caches) by torchvision or timm.

    Args:
        name: of the backbone, for the message.
        torchvision_weights: such as "ResNet50_Weights.IMAGENET1K_V1".
        timm_name: timm's model with the same names of tensors; None: there is none.

    Raises:
        BackboneError: neither is there, or neither reaches its hub.
    """
    reasons = []
    try:
        # Beside a build of torch that is not its own, torchvision fails at import, and not only by ImportError.
        from torchvision import models

        kind, member = torchvision_weights.split(".")
        return dict(getattr(getattr(models, kind), member).get_state_dict(progress=False))
    except Exception as error:
        reasons.append(f"torchvision: {first_line(error, 80)}")
    if timm_name is not None:
        try:
            import timm

            return dict(timm.create_model(timm_name, pretrained=True).state_dict())
        except Exception as error:
            reasons.append(f"timm: {first_line(error, 80)}")
    raise BackboneError(
        f"backbone: {name}: no pretrained weights ({'; '.join(reasons)}): give a local file of torchvision's {name} as"
        " weights"
    )

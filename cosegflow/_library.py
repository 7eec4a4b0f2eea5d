"""Loads the compiled kernels once, and keeps the reason where that fails.

Importing `cosegflow` never fails because of the extension: the first operation that needs it does, with the reason.
"""

import json
from pathlib import Path
from typing import Any

import torch

from cosegflow import _arch_list

_load_error: BaseException | None = None
try:
    import cosegflow._C  # noqa: F401  (registers torch.ops.cosegflow)
except ImportError as error:
    _load_error = error


def is_available() -> bool:
    """Whether the compiled kernels could be loaded."""
    return _load_error is None


def load_error() -> BaseException | None:
    """Why the compiled kernels could not be loaded, or None."""
    return _load_error


def build_info() -> dict[str, Any]:
    """What the build recorded: ``cuda``, ``cuda_reason``, ``arch_list``, ``torch``, ``torch_target``, ``python``."""
    path = Path(__file__).with_name("_build_info.json")
    return json.loads(path.read_text()) if path.exists() else {}


_BUILD_INFO = build_info()
HAS_CUDA_KERNELS = bool(_BUILD_INFO.get("cuda"))
HAS_SM90A = HAS_CUDA_KERNELS and _arch_list.has_sm90a(_BUILD_INFO.get("arch_list") or "")
"""Whether the kernels of Hopper were built."""


def require(device: torch.device) -> None:
    """Raises RuntimeError where the kernels for tensors on `device` do not exist, with the reason and the remedy."""
    if _load_error is not None:
        raise RuntimeError(
            f"cosegflow's compiled kernels could not be loaded: {_load_error}. They need torch >= 2.10 and are built "
            "by `pip install --no-build-isolation .` in the source folder; `python -m cosegflow.info` tells more."
        ) from _load_error
    if device.type == "cuda" and not HAS_CUDA_KERNELS:
        raise RuntimeError(
            f"this build of cosegflow has no CUDA kernels: {_BUILD_INFO.get('cuda_reason', 'no build record')}. "
            "Install the CUDA toolkit (nvcc), then reinstall with COSEGFLOW_FORCE_CUDA=1."
        )
    if device.type not in ("cpu", "cuda", "meta"):
        raise RuntimeError(f"cosegflow has kernels for cpu and cuda, not for tensors on {device}")

"""Checks of arguments: each failure is one error that names the argument, what came and what is needed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cosegflow.reference import accumulate_dtype

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_tensor(name: str, value: object) -> None:
    """TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def require_features(name: str, value: Tensor) -> None:
    """Raises unless `value` is a floating (B, C, H, W) tensor with at least one channel and pixel."""
    require_tensor(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")
    if value.dim() != 4:
        raise ValueError(f"{name} must have shape (B, C, H, W), got {tuple(value.shape)}")
    if any(size == 0 for size in value.shape[1:]):
        raise ValueError(f"{name} must have at least one channel, row and column, got shape {tuple(value.shape)}")


def require_pair(fa: Tensor, fb: Tensor) -> None:
    """Raises unless fa and fb are features of one dtype, device, batch size and number of channels."""
    require_features("fa", fa)
    require_features("fb", fb)
    if fa.dtype != fb.dtype and not torch.is_autocast_enabled(fa.device.type):  # autocast makes them one
        raise TypeError(f"fb must have the dtype of fa, {fa.dtype}, got {fb.dtype}")
    require_device("fb", fb, "fa", fa)
    if fa.shape[:2] != fb.shape[:2]:
        raise ValueError(
            f"fa and fb must have the same batch size and number of channels, got fa {tuple(fa.shape)} and "
            f"fb {tuple(fb.shape)}"
        )


def require_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {value.device}")


def as_mask(name: str, mask: Tensor | None, batch: int, size: Sequence[int], like: Tensor) -> Tensor | None:
    """The mask as (B, H, W), or None; (B, 1, H, W) means the same. Floating or bool, on the device of `like`."""
    if mask is None:
        return None
    require_tensor(name, mask)
    if mask.dtype not in FLOATING and mask.dtype != torch.bool:
        raise TypeError(f"{name} must be floating or bool, got {mask.dtype}; for a mask of integers pass `{name} > 0`")
    if mask.dim() == 4 and mask.shape[1] == 1:
        mask = mask.squeeze(1)
    height, width = size
    if tuple(mask.shape) != (batch, height, width):
        raise ValueError(
            f"{name} must have shape {(batch, height, width)} or {(batch, 1, height, width)}, got {tuple(mask.shape)}"
        )
    require_device(name, mask, "the features", like)
    return mask


def as_beta(beta: float | Tensor, batch: int, like: Tensor) -> Tensor:
    """beta as a tensor of one value or (B,) in the accumulate dtype, on the device of `like`; never synchronises."""
    dtype = accumulate_dtype(like.dtype)
    if isinstance(beta, Tensor):
        if beta.dtype not in FLOATING:
            raise TypeError(f"beta must be a number or a floating tensor, got a tensor of {beta.dtype}")
        if beta.dim() > 1 or (beta.dim() == 1 and beta.shape[0] not in (1, batch)):
            raise ValueError(f"beta must be a number, a 0-dim tensor or have shape ({batch},), got {tuple(beta.shape)}")
        if beta.dim() == 1:
            require_device("beta", beta, "the features", like)
        return beta.to(device=like.device, dtype=dtype)
    if isinstance(beta, bool) or not isinstance(beta, (int, float)):
        raise TypeError(f"beta must be a number or a floating tensor, got {type(beta).__name__}")
    if not math.isfinite(beta):
        raise ValueError(f"beta must be finite, got {beta}")
    return torch.full((), beta, dtype=dtype, device=like.device)


def not_implemented(name: str, argument: str) -> NotImplementedError:
    """The error for an argument of the API whose kernels are still to come."""
    return NotImplementedError(f"cosegflow.{name}: {argument} is part of the API but not implemented yet")

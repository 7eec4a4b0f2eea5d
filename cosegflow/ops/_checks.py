"""Checks of arguments: each failure is one error that names the argument, what came and what is needed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cosegflow.ops._autocast import autocast_dtype
from cosegflow.reference import accumulate_dtype

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_tensor(name: str, value: object) -> None:
    """TypeError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def require_dense(name: str, value: Tensor) -> None:
    """TypeError for sparse and nested tensors."""
    if value.is_nested or value.layout != torch.strided:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor (torch.strided), got {kind}")


def require_features(name: str, value: Tensor, shape: str = "(B, C, H, W)") -> None:
    """Raises unless `value` is a dense floating tensor of rank 4 with at least one channel and pixel."""
    require_tensor(name, value)
    require_dense(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {value.dtype}")
    if value.dim() != 4:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    if any(size == 0 for size in value.shape[1:]):
        raise ValueError(f"{name} must have at least one channel, row and column, got shape {tuple(value.shape)}")


def wrong_flow(name: str, flow: Tensor, needed: str) -> ValueError:
    """The error for a flow of another shape than `needed`; one with channels last is told what to do."""
    hint = ""
    if flow.dim() == 4 and flow.shape[3] == 2 and flow.shape[1] != 2:
        hint = f"; where the channels come last, pass {name}.permute(0, 3, 1, 2)"
    return ValueError(f"{name} must have shape {needed}, got {tuple(flow.shape)}{hint}")


def require_pair(fa: Tensor, fb: Tensor) -> None:
    """Raises unless fa and fb are features of one dtype (after autocast), device, batch size and channel count."""
    require_features("fa", fa)
    require_features("fb", fb)
    require_device("fb", fb, "fa", fa)
    if fa.dtype != fb.dtype and autocast_dtype(fa) != autocast_dtype(fb):
        raise TypeError(f"fb must have the dtype of fa, {fa.dtype}, got {fb.dtype}")
    if fa.shape[:2] != fb.shape[:2]:
        raise ValueError(
            f"fa and fb must have the same batch size and number of channels, got fa {tuple(fa.shape)} and "
            f"fb {tuple(fb.shape)}"
        )


def require_flag(name: str, value: bool) -> None:
    """TypeError unless `value` is a bool: a tensor would have to wait for its device."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def require_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {value.device}")


def as_mask(
    name: str, mask: Tensor | None, batch: int, size: Sequence[int], like_name: str, like: Tensor
) -> Tensor | None:
    """The mask as (B, H, W), or None; (B, 1, H, W) means the same. Floating or bool, on the device of `like`."""
    if mask is None:
        return None
    require_tensor(name, mask)
    require_dense(name, mask)
    if mask.dtype not in FLOATING and mask.dtype != torch.bool:
        raise TypeError(f"{name} must be floating or bool, got {mask.dtype}; for a mask of integers pass `{name} > 0`")
    if mask.dim() == 4 and mask.shape[1] == 1:
        mask = mask.squeeze(1)
    height, width = size
    if tuple(mask.shape) != (batch, height, width):
        raise ValueError(
            f"{name} must have shape {(batch, height, width)} or {(batch, 1, height, width)}, got {tuple(mask.shape)}"
        )
    require_device(name, mask, like_name, like)
    return mask


def as_beta(beta: float | Tensor, batch: int, like_name: str, like: Tensor) -> Tensor:
    """beta as a tensor of one value or (B,) in the accumulate dtype, on the device of `like`; never synchronises."""
    dtype = accumulate_dtype(like.dtype)
    if isinstance(beta, Tensor):
        if beta.dtype not in FLOATING:
            raise TypeError(f"beta must be a number or a floating tensor, got a tensor of {beta.dtype}")
        if beta.dim() > 1 or (beta.dim() == 1 and beta.shape[0] not in (1, batch)):
            raise ValueError(f"beta must be a number, a 0-dim tensor or have shape ({batch},), got {tuple(beta.shape)}")
        if beta.dim() == 1 or beta.device.type != "cpu":  # a 0-dim tensor on the CPU goes with any device
            require_device("beta", beta, like_name, like)
        return beta.to(device=like.device, dtype=dtype)
    if isinstance(beta, bool) or not isinstance(beta, (int, float, np.integer, np.floating)):
        raise TypeError(f"beta must be a number or a floating tensor, got {type(beta).__name__}")
    # While compiling, a float that changes is a symbol, which has no isfinite.
    if not torch.compiler.is_compiling() and not abs(beta) <= torch.finfo(dtype).max:
        raise ValueError(f"beta must be finite in {dtype}, got {beta}")
    return torch.full((), beta, dtype=dtype, device=like.device)


def as_sigma(kernel_sigma: float | None) -> float:
    """kernel_sigma as the operators take it: 0 for no window."""
    if kernel_sigma is None:
        return 0.0
    if isinstance(kernel_sigma, bool) or not isinstance(kernel_sigma, (int, float, np.integer, np.floating)):
        raise TypeError(f"kernel_sigma must be a number or None, got {type(kernel_sigma).__name__}")
    if not 0 < kernel_sigma < float("inf"):
        raise ValueError(f"kernel_sigma must be positive and finite (pixels), or None, got {kernel_sigma}")
    return float(kernel_sigma)

"""Autocast: the features are cast, and nothing else, because a rounded coordinate is a wrong coordinate.

`torch.library.register_autocast` would cast masks, flow and values too, so the operators have Autocast kernels of ours.
"""

from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("cosegflow", "IMPL")  # keeps the Autocast kernels registered while it lives


def autocast_dtype(features: Tensor) -> torch.dtype:
    """The dtype that autocast gives to features here: their own where it is off; float64 stays, as in torch's rules."""
    kind = features.device.type
    if kind not in ("cpu", "cuda") or features.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return features.dtype
    return torch.get_autocast_dtype(kind)


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which plain torch keeps the dtypes it is given on the device of `tensor`."""
    kind = tensor.device.type
    return torch.autocast(kind if kind in ("cpu", "cuda") else "cpu", enabled=False)


def autocast_features(name: str) -> None:
    """Registers the Autocast kernels of an operator whose first two arguments are fa and fb."""
    operator = getattr(torch.ops.cosegflow, name).default
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    keys = keys | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def kernel(fa: Tensor, fb: Tensor, *args: Any, **kwargs: Any) -> Any:
        fa, fb = fa.to(autocast_dtype(fa)), fb.to(autocast_dtype(fb))
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operator(fa, fb, *args, **kwargs)

    LIBRARY.impl(name, kernel, "AutocastCPU")
    LIBRARY.impl(name, kernel, "AutocastCUDA")

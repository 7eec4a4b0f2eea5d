"""float32 on CUDA: how its products are rounded follows what torch is told for matrix products.

`torch.get_float32_matmul_precision()`: "highest" is 0 (multiply-adds of float32), "high" 1 (tensor cores, each number
as a sum of two bfloat16), "medium" 2 (rounded to bfloat16): `cosegflow::Precision` in csrc/include. Operators get the
number as an argument.

Under torch.compile the number is a constant of the graph, and Dynamo's own guard tells "highest" from the other two and
no more (torch 2.13). So a guard of ours asks `current` before each call of the compiled function: another answer
recompiles.
"""

from typing import Any

import torch


def current() -> int:
    """What torch says now.

    torch.backends' `fp32_precision` decides what cuBLAS does; mixed with the older setting, it makes
    get_float32_matmul_precision raise or tell what no longer holds.
    """
    if torch.backends.cuda.matmul.fp32_precision not in ("tf32", "bf16"):
        return 0
    try:
        return 2 if torch.get_float32_matmul_precision() == "medium" else 1
    except RuntimeError:
        return 1


def _guard() -> bool:
    """Makes what Dynamo traces now depend on `current`; False where this torch has no such guard."""
    try:
        from torch._dynamo.guards import GuardBuilder, install_guard
        from torch._dynamo.source import AttrSource, CallFunctionNoArgsSource, ImportSource

        root, *attributes = f"{__name__}.{current.__name__}".split(".")
        source: Any = ImportSource(root)
        for attribute in attributes:
            source = AttrSource(source, attribute)
        install_guard(CallFunctionNoArgsSource(source).make_guard(GuardBuilder.EQUALS_MATCH))
    except (ImportError, AttributeError, TypeError):
        return False
    return True


@torch.compiler.assume_constant_result
def float32_precision(dtype: torch.dtype, device: torch.device) -> int:
    """The operators' argument `precision` for features of this dtype and device; 0 where it means nothing."""
    if dtype != torch.float32 or device.type != "cuda":
        return 0
    found = current()
    if torch._guards.TracingContext.try_get() is not None and not _guard():
        return min(found, 1)  # a graph that cannot tell "medium" from "high" serves both
    return found

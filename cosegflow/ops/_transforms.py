"""torch.func: which calls the kernels serve, and how.

`register_autograd` does not cover torch.func's transforms (grad raises, forward mode gives tangents of 0 without a
word). So under them an operator runs inside an autograd.Function made from the same two functions, `setup` and
`backward`, that are registered for it:

* vmap folds the mapped dimension into the batch: one call of the kernel, nothing stored that a larger batch would not;
* one level of grad, vjp or jacrev, in any order with vmap, calls the backward operator, mapped the same way;
* forward mode and second derivatives evaluate `reference.py` (`reference_wanted`): exact under every transform, but it
  stores the volume. So do transforms inside torch.compile, which cannot trace the Function (torch 2.13).

Rejected: the Function for every call. torch.compile of 2.13 fails on it, and eager calls would pay for it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from cosegflow._operators import operators

_functions: dict[str, type[torch.autograd.Function]] = {}


def reference_wanted() -> bool:
    """Whether the transforms at work here are ones that only the plain-torch reference serves."""
    active = torch._C._are_functorch_transforms_active()
    if torch.compiler.is_compiling():
        return active
    if forward_ad._current_level >= 0:
        return True
    if not active:
        return False
    kinds = [level.key() for level in get_interpreter_stack() or ()]
    return any(k not in (TransformType.Vmap, TransformType.Grad) for k in kinds) or kinds.count(TransformType.Grad) > 1


def run(name: str, *args: Any) -> Any:
    """Calls the operator `name`, under vmap and grad too.

    Raises:
        torch.OutOfMemoryError: the binding's RuntimeError says so (the stable ABI has no classes of errors).
    """
    if torch.compiler.is_compiling():
        return getattr(operators, name)(*args)
    try:
        if torch._C._are_functorch_transforms_active():
            return _functions[name].apply(*args)
        return getattr(operators, name)(*args)
    except RuntimeError as error:
        if "out of memory" in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise torch.OutOfMemoryError(str(error)) from None
        raise


def _fold(value: Any, dim: int | None, size: int, per_image: bool) -> Any:
    """Moves a mapped dimension into the batch, which comes first; what is not mapped is repeated."""
    if not isinstance(value, Tensor):
        return value
    if per_image and value.dim() - (dim is not None) == 0:  # a 0-dim beta; one for all unless it is mapped
        return value
    if dim is None:
        return value.unsqueeze(0).expand(size, *value.shape).flatten(0, 1)
    return value.movedim(dim, 0).flatten(0, 1)


def register(
    name: str,
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> None:
    """Registers the autograd formulas of operator `name` with torch, and the Function that serves transforms.

    Every tensor argument has the batch as its first dimension, but for `beta`, which may be 0-dim; so has every
    output, or it is empty.
    """
    torch.library.register_autograd(f"cosegflow::{name}", backward, setup_context=setup)
    names = [a.name for a in getattr(operators, name).default._schema.arguments]

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        size = info.batch_size
        batch = next(
            a.shape[1 if d == 0 else 0] if d is not None else a.shape[0]
            for a, d, n in zip(args, in_dims, names, strict=False)
            if isinstance(a, Tensor) and n != "beta"
        )
        folded = [_fold(a, d, size, n == "beta") for a, d, n in zip(args, in_dims, names, strict=False)]
        if "beta" in names and isinstance(args[names.index("beta")], Tensor):
            at = names.index("beta")
            if in_dims[at] is not None and args[at].dim() == 1:  # one beta for each mapped call: one for each image
                folded[at] = args[at].repeat_interleave(batch)
        outputs = run(name, *folded)
        single = isinstance(outputs, Tensor)
        results = [o if o.dim() == 1 and o.numel() == 0 else o.unflatten(0, (size, batch)) for o in
                   ((outputs,) if single else outputs)]  # fmt: skip
        dims = [None if o.dim() == 1 and o.numel() == 0 else 0 for o in ((outputs,) if single else outputs)]
        return (results[0], dims[0]) if single else (tuple(results), tuple(dims))

    members = {
        "forward": staticmethod(lambda *args: getattr(operators, name)(*args)),
        "setup_context": staticmethod(lambda ctx, inputs, output: setup(ctx, inputs, output)),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
    }
    _functions[name] = type(name, (torch.autograd.Function,), members)

"""What peers that torch.compile compiles share."""

import importlib
from types import FunctionType


def prepare(function: FunctionType) -> None:
    """Before `function` is compiled.

    The harness differentiates one graph several times, which buffers that a backward has given away forbid; so the
    compiled backward reuses none of them. And compiled code is kept by code object: with one of its own a case never
    meets the limit of recompilations. (torch._dynamo.reset() would throw away what others have compiled.)
    """
    setattr(importlib.import_module("torch._functorch.config"), "donated_buffer", False)  # noqa: B010
    function.__code__ = function.__code__.replace()
